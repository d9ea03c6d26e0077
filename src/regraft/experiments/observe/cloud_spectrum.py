"""How the variance of a cloud of states divides among its directions.

Shapes: S depths, N tokens, M kept tokens, D width, K directions with variance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.core.quantities import quantity

TOP_DIRECTIONS = (1, 5, 10, 50, 100)
"""Numbers of leading directions whose share of the variance is given."""
SHOWN_DIRECTIONS = 200
"""Singular values of a depth that the map shows."""
NOTHING = 1e-15
"""Variance below which a direction counts as none, as published."""
FLOOR = 1e-10
"""Added to a singular value before its logarithm, as published."""
PUBLISHED = "residual-geometry study of Qwen3-4B (hivaze/dl-experiments)"


def variances_of_rows(states_ND: Tensor) -> Tensor:
    """Variance along each principal direction, largest first, of a cloud that is at hand: (K,) with K the
    smaller of N - 1 and D. Divided by N - 1."""
    wide_ND = states_ND.double()
    sigma = torch.linalg.svdvals(wide_ND - wide_ND.mean(0))
    return (sigma.square() / (len(states_ND) - 1))[: _directions(*states_ND.shape)]


def variances_of_covariance(covariance_DD: Tensor, tokens: int) -> Tensor:
    """The same from a covariance that was divided by N."""
    values = torch.linalg.eigvalsh(covariance_DD).flip(0).clamp_min(0.0)
    return (values * (tokens / (tokens - 1)))[: _directions(tokens, len(covariance_DD))]


def _directions(tokens: int, width: int) -> int:
    """Directions in which so many tokens can spread at all: what is left of the others is rounding."""
    return min(tokens - 1, width)


def spectrum_quantities(variances: list[np.ndarray], tokens: int) -> dict[str, Any]:
    """Shares of the variance, flatness and singular values at every depth, from each depth's variances."""
    table_SK = np.stack(variances)
    total = table_SK.sum(1, keepdims=True)
    share_SK = table_SK / np.where(total > 0, total, np.nan)
    within = np.cumsum(share_SK, axis=1)
    first = np.stack([within[:, min(k, within.shape[1]) - 1] for k in TOP_DIRECTIONS], axis=1)
    sigma = np.sqrt(table_SK[:, :SHOWN_DIRECTIONS] * (tokens - 1))
    return {
        "variance_topk": quantity(
            ("depth", "directions"), first, "share of the variance in the first directions",
            "The first line near 1: one direction carries the cloud; lines far apart: many do.", PUBLISHED,
        ),
        "isoscore": quantity(
            "depth", 1 - first[:, 0], "share of the variance outside the first direction",
            "1 minus the first line of the variance shares; not the measure of that name by Rudman et al.",
            PUBLISHED,
        ),
        "spectral_flatness": quantity(
            "depth", np.array([flatness(row) for row in table_SK]),
            "geometric over arithmetic mean of variances",
            "1: all directions vary alike; near 0: few do nearly all of it.", PUBLISHED,
        ),
        "log_singular_values": quantity(
            ("depth", "direction"),
            np.log10(sigma + FLOOR),
            "log10 of the singular value of the centred states",
            "A first value far above the others: one direction takes the cloud over at that depth.",
            PUBLISHED,
        ),
    }  # fmt: skip


def flatness(variances_K: np.ndarray) -> float:
    """Geometric over arithmetic mean of the variances that are any; NaN where there is none."""
    some = variances_K[variances_K > NOTHING]
    return float(np.exp(np.log(some).mean()) / some.mean()) if len(some) else float("nan")
