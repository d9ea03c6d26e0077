"""A linear map for each block, fitted by ridge regression to what the block adds to the stream.

Shapes: N calibration tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.core.progress import advance
from regraft.model.block_call import split_call
from regraft.model.parts import Stack
from regraft.model.recording import Recording

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, in times the mean variance of the inputs; the one with the least error on
held-out prompts stays."""
HELD_OUT = 5
"""Every fifth prompt is held out."""


class LinearMap:
    """x + W x + b in a block's place; called as the block is."""

    def __init__(self, weight_DD: Tensor, bias_D: Tensor, tokens: int):
        self.weight_DD, self.bias_D, self.tokens = weight_DD, bias_D, tokens

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The stream that leaves, for the arguments of a block."""
        _, stream = split_call(args, kwargs)
        return stream + stream @ self.weight_DD.t() + self.bias_D

    @staticmethod
    def fitted_on(maps: Sequence[tuple[LinearMap, float]]) -> int:
        """How many tokens the maps were fitted on."""
        return maps[0][0].tokens


def fit_blocks(recordings: Sequence[Recording], stack: Stack) -> list[tuple[LinearMap, float]]:
    """For each block of a stack the linear map that the recordings suggest, and its R squared on held-out
    tokens."""
    made = []
    for block in stack.blocks:
        pairs = list(stream_pairs(recordings, block.index))
        x_ND, y_ND = (torch.cat(side) for side in zip(*pairs, strict=True))
        prompt_N = torch.cat(
            [torch.full((len(x),), number, device=x.device) for number, (x, _) in enumerate(pairs)]
        )
        weight, bias, fit = ridge_regression(x_ND.double(), (y_ND - x_ND).double(), prompt_N)
        made.append((LinearMap(weight.to(x_ND), bias.to(x_ND), len(x_ND)), fit))
        advance("linear maps", len(made), len(stack.blocks))
    return made


def stream_pairs(recordings: Sequence[Recording], block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The stream before and after a block at every real token, prompt by prompt."""
    for recording in recordings:
        real = recording.real_at(block)
        for row in range(recording.prompts):
            yield recording.pre(block)[row, real[row]], recording.post(block)[row, real[row]]


def ridge_regression(x_ND: Tensor, y_ND: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor, float]:
    """W, b of y ~ W x + b, and R squared on every fifth group (prompt), held out; then fitted anew on all
    tokens.

    The ridge is the best, on the groups held out, of seven between 1e-6 and 1 times the inputs' mean
    variance. R squared is NaN where there are fewer than five groups: then the middle ridge is taken.
    """
    held = group_N % HELD_OUT == HELD_OUT - 1
    if not bool(held.any()):
        _, (weight, bias) = next(_solutions(x_ND, y_ND, RIDGES[len(RIDGES) // 2 :][:1]))
        return weight, bias, float("nan")
    test = held
    spread = (y_ND[test] - y_ND[test].mean(0)).pow(2).sum()
    scored = []
    for ridge, (weight, bias) in _solutions(x_ND[~held], y_ND[~held], RIDGES):
        error = (y_ND[test] - x_ND[test] @ weight.t() - bias).pow(2).sum()
        scored.append((float(1 - error / spread), ridge))
    fit, ridge = max(scored)
    _, (weight, bias) = next(_solutions(x_ND, y_ND, (ridge,)))
    return weight, bias, fit


def _solutions(
    x_ND: Tensor, y_ND: Tensor, ridges: Sequence[float]
) -> Iterator[tuple[float, tuple[Tensor, Tensor]]]:
    """The solution for each ridge, from one decomposition of the inputs' covariance."""
    mean_x, mean_y = x_ND.mean(0), y_ND.mean(0)
    x, y = x_ND - mean_x, y_ND - mean_y
    values, vectors = torch.linalg.eigh(x.t() @ x / len(x))
    against = vectors.t() @ (x.t() @ y) / len(x)
    scale = values.clamp(min=0).mean()
    for ridge in ridges:
        weight = (vectors @ (against / (values.clamp(min=0) + ridge * scale)[:, None])).t()
        yield ridge, (weight, mean_y - weight @ mean_x)
