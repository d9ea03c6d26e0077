"""Weight spectra: how many directions each weight matrix really uses.

Works on one matrix at a time, from the checkpoint's files where it can. Shapes: O outputs, I inputs, K
singular values of one matrix, R matrices in all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.checkpoint.roles import ROLES
from regraft.core.progress import advance
from regraft.model.model import Model
from regraft.model.weights import Weights, weights_of

TOPS = (1, 8, 32, 128)
"""Numbers of leading directions whose share of the energy is given."""
HEAD_SHARE = 4
"""The exponent is fitted to the first quarter of a spectrum: behind it, finite width bends the line."""
MEASURES = {
    "effective_rank": "directions",
    "effective_rank_ratio": "of the smaller side of the matrix",
    "entropy_rank": "directions",
    "stable_rank": "directions",
    "power_law": "exponent of the first quarter of the spectrum",
    "power_law_fit": "R squared of that fit",
    **{f"energy_{k}": f"share of the squared singular values in the first {k}" for k in TOPS},
    "condition": "largest over smallest singular value",
    "largest": "largest singular value",
}


def spectra(weights: Model | Weights, roles: list[str] | None = None) -> xr.Dataset:
    """Find all singular values of every weight matrix in every block, and how many directions each one uses.

    Effective rank: participation ratio of the squared singular values, (sum s^2)^2 / sum s^4; entropy rank:
    exp of the entropy of s / sum s (Roy and Vetterli, 2007); stable rank: sum s^2 / largest^2 (Rudelson and
    Vershynin, 2007); power law: minus the slope of log s against log rank over the first quarter of the
    spectrum, with its R squared.

    Args:
        roles: only these roles, for example q k v o gate up down; without it, every matrix in every block.

    Raises:
        ValueError: no matrix of such a role, or no block.
    """
    held = weights_of(weights)
    matrices = [m for m in held.matrices if roles is None or m.role in roles]
    if not matrices:
        known = ", ".join(sorted({m.role for m in held.matrices})) or "none"
        raise ValueError(
            f"there is no matrix of the role {', '.join(roles or [])} here: the roles are {known}"
        )
    rows, spectrum_RK = (
        [],
        np.full((len(matrices), max(min(m.shape) for m in matrices)), np.nan, dtype=np.float32),
    )
    for matrix, values_OI in held.walk(matrices):
        sigma_K = singular_values(values_OI).cpu().numpy()
        del values_OI
        spectrum_RK[len(rows), : len(sigma_K)] = sigma_K
        rows.append((matrix, measures(sigma_K)))
        advance("matrices", len(rows), len(matrices))
    return _dataset(held, rows, spectrum_RK)


def singular_values(matrix_OI: Tensor) -> Tensor:
    """All singular values, (K,), in float64, largest first: the smallest matter to the condition number."""
    return torch.linalg.svdvals(matrix_OI.double())


def measures(sigma_K: np.ndarray) -> dict[str, float]:
    """The measures of one spectrum; NaN where a matrix of zeros has none."""
    if not sigma_K[0] > 0:
        return dict.fromkeys(MEASURES, float("nan"))
    energy = sigma_K**2 / (sigma_K**2).sum()
    share = sigma_K / sigma_K.sum()
    rank = 1 / (energy**2).sum()
    slope, fit = power_law(sigma_K)
    return {
        "effective_rank": rank,
        "effective_rank_ratio": rank / len(sigma_K),
        "entropy_rank": float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())),
        "stable_rank": 1 / energy[0],
        "power_law": slope,
        "power_law_fit": fit,
        **{f"energy_{k}": float(energy[:k].sum()) for k in TOPS},
        "condition": float(sigma_K[0] / sigma_K[-1]) if sigma_K[-1] > 0 else float("inf"),
        "largest": float(sigma_K[0]),
    }


def power_law(sigma_K: np.ndarray) -> tuple[float, float]:
    """Exponent a of s_i ~ i^-a over the first quarter of the spectrum (at least four values), and R squared
    of the fit."""
    head = sigma_K[: max(4, len(sigma_K) // HEAD_SHARE)]
    head = head[head > 0]
    if len(head) < 3:
        return float("nan"), float("nan")
    x, y = np.log(np.arange(1, len(head) + 1)), np.log(head)
    slope, level = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    flat = spread <= 1e-20 * len(y)
    return float(-slope), 1.0 if flat else float(1 - ((y - slope * x - level) ** 2).sum() / spread)


def _dataset(held: Weights, rows: list[Any], spectrum_RK: np.ndarray) -> xr.Dataset:
    matrices = [matrix for matrix, _ in rows]
    found = sorted(
        {m.role for m in matrices}, key=lambda r: (ROLES.index(r) if r in ROLES else len(ROLES), r)
    )
    blocks = list(dict.fromkeys(m.block for m in matrices))
    table = {name: np.array([values[name] for _, values in rows]) for name in MEASURES}

    def mean(name: str) -> np.ndarray:
        """Mean over the experts of a block: one number for each role and block, NaN where the block has
        none."""
        cells: dict[tuple[int, int], list[float]] = {}
        for matrix, value in zip(matrices, table[name], strict=True):
            cells.setdefault((found.index(matrix.role), blocks.index(matrix.block)), []).append(value)
        grid = np.full((len(found), len(blocks)), np.nan)
        for cell, values in cells.items():
            grid[cell] = np.mean(values)
        return grid

    return xr.Dataset(
        {
            **{name: ("matrix", table[name], {"units": MEASURES[name]}) for name in MEASURES},
            "rank_ratio": (
                ("role", "block"),
                mean("effective_rank_ratio"),
                {"units": MEASURES["effective_rank_ratio"], "correlate": "rank ratio"},
            ),
            "singular_values": (("matrix", "place"), spectrum_RK, {"units": "singular value"}),
        },
        coords={
            "tensor": ("matrix", [m.tensor for m in matrices]),
            "matrix_role": ("matrix", [m.role for m in matrices]),
            "matrix_block": ("matrix", [m.block for m in matrices]),
            "expert": ("matrix", [m.expert for m in matrices]),
            "rows": ("matrix", [m.shape[0] for m in matrices]),
            "columns": ("matrix", [m.shape[1] for m in matrices]),
            "role": found,
            "block": blocks,
        },
        attrs={"matrices": len(matrices), "notes": "; ".join(held.notes)},
    )
