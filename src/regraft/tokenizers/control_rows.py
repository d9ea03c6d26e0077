"""New rows that know nothing of their tokens: what a method has to beat.

Shapes: N new tokens, V old tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CONTROLS = ("random", "gaussian")
"""`random`: as a table is filled before any training; `gaussian`: as the old rows are distributed."""
USUAL_RANGE = 0.02
"""Standard deviation of fresh rows where a configuration names none: transformers' own default."""


@dataclass(frozen=True)
class DrawnRows:
    """Rows drawn at random, without a look at any token.

    `random`: independent numbers around 0 with the standard deviation `spread`. `gaussian`: normal with the
    mean and the covariance of all old rows ("Initializing New Word Embeddings for Pretrained Language
    Models", Hewitt, 2021). Each table is drawn on its own, all from one stream.
    """

    count: int
    kind: str
    spread: float
    draws: torch.Generator

    @property
    def mean_N(self) -> np.ndarray:
        """No row is the mean row."""
        return np.zeros(self.count)

    def rows(self, table_VX: Tensor, mean_X: Tensor) -> Tensor:
        """The new rows of one table, in its dtype; drawn in double precision."""
        normal_NX = torch.randn(self.count, table_VX.shape[1], generator=self.draws, dtype=torch.float64)
        if self.kind == "random":
            return (self.spread * normal_NX).to(table_VX)
        old_VX = table_VX.detach().double().cpu()
        centred_VX = old_VX - old_VX.mean(0)
        values_X, axes_XX = torch.linalg.eigh(centred_VX.T @ centred_VX / max(1, len(old_VX) - 1))
        # The symmetric root: unlike axes alone it does not hang on how rounding turns axes of equal length,
        # so a seed draws the same rows wherever the covariance is the same.
        root_XX = (axes_XX * values_X.clamp(min=0).sqrt()) @ axes_XX.T
        shaped_NX = normal_NX @ root_XX
        return (mean_X.detach().double().cpu() + shaped_NX).to(table_VX)


def drawn(kind: str, count: int, spread: float, seed: int) -> DrawnRows:
    """Control rows for so many tokens; the same seed draws the same rows."""
    return DrawnRows(count, kind, spread, torch.Generator().manual_seed(seed))
