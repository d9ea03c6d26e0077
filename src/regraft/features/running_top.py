"""The largest of a long stream for every feature, with what stood around each, in memory that does not grow
with the stream.

Shapes: F features, N tokens of a piece, k kept, W tokens of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

BEFORE, BEHIND = 16, 7
"""Tokens of a window in front of the one that it is kept for, and behind it."""


class RunningTop:
    """The k tokens with the largest keys of every feature so far, keys that are not above zero left out.

    `places_Fk` says where each token stands in the stream (-1: there are fewer), `windows_FkW` the feature's
    values around it; NaN where its row of text had begun or ended.

    >>> top, values = RunningTop(features=2, k=1), torch.tensor([[1.0, 0.0], [3.0, 0.5]])
    >>> top.add(values, values, rows_N=torch.tensor([0, 0]), first=10)
    >>> top.places_Fk.tolist(), top.values_Fk.tolist()
    ([[11], [11]], [[3.0], [0.5]])
    """

    def __init__(self, features: int, k: int):
        self.keys_Fk = torch.zeros(features, k)
        self.places_Fk = torch.full((features, k), -1, dtype=torch.int64)
        self.windows_FkW = torch.full((features, k, BEFORE + 1 + BEHIND), float("nan"))

    @property
    def values_Fk(self) -> Tensor:
        """The feature's value at each token that is kept; 0 where there are fewer."""
        return self.windows_FkW[..., BEFORE].nan_to_num(0.0)

    def add(self, keys_NF: Tensor, values_NF: Tensor, rows_N: Tensor, first: int) -> None:
        """Take in tokens `first`, `first + 1`, ... of the stream.

        Args:
            keys_NF: by which tokens are kept.
            values_NF: the features' values.
            rows_N: the number of the row of text that each token stands in.
        """
        k = self.keys_Fk.shape[1]
        top = torch.cat([self.keys_Fk, keys_NF.T], dim=1).topk(k, dim=1)
        fresh = (top.indices >= k) & (top.values > 0)
        old = top.indices.clamp_max(k - 1)
        kept = self.windows_FkW.gather(1, old[..., None].expand(-1, -1, self.windows_FkW.shape[-1]))
        places = torch.where(fresh, first + top.indices - k, self.places_Fk.gather(1, old))
        self.keys_Fk = top.values.clamp_min(0)
        self.places_Fk = torch.where(top.values > 0, places, -1)
        feature, slot = fresh.nonzero(as_tuple=True)
        at_M1 = (top.indices[feature, slot] - k)[:, None]
        around_MW = at_M1 + torch.arange(-BEFORE, BEHIND + 1)
        inside = (around_MW >= 0) & (around_MW < len(values_NF))
        around_MW = around_MW.clamp(0, len(values_NF) - 1)
        inside &= rows_N[around_MW] == rows_N[at_M1]
        found_MW = values_NF[around_MW, feature[:, None]]
        kept[feature, slot] = torch.where(inside, found_MW, float("nan"))
        self.windows_FkW = torch.where((top.values > 0)[..., None], kept, float("nan"))


class RunningSample(RunningTop):
    """An even random sample of the tokens at which each feature is above zero."""

    def __init__(self, features: int, k: int, seed: int = 0):
        super().__init__(features, k)
        self.draw = torch.Generator().manual_seed(seed)

    def sample(self, values_NF: Tensor, rows_N: Tensor, first: int) -> None:
        """Take in tokens `first`, `first + 1`, ... of the stream."""
        drawn_NF = torch.rand(values_NF.shape, generator=self.draw).clamp_min(1e-9)
        self.add(drawn_NF * (values_NF > 0), values_NF, rows_N, first)
