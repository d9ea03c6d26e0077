"""Weight spectra: how many directions each weight matrix really uses.

Works on one matrix at a time, from the checkpoint's files where it can. Shapes: O outputs, I inputs, K
singular values of one matrix, R matrices in all.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.checkpoint.roles import ROLES
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.experiments.observe.spectrum_groups import GROUPS, group_quantities
from regraft.experiments.observe.spectrum_measures import (
    ENERGIES,
    MEASURES,
    OF_A_BLOCK,
    PUBLISHED,
    VALUES,
    measures,
    rank_at_energy,
)
from regraft.model.model import Model
from regraft.model.weights import Matrix, Weights, weights_of

Measured = tuple[Matrix, dict[str, float], list[float]]
"""A matrix, its measures, and how many directions hold each share of its energy."""


def spectra(weights: Model | Weights, roles: list[str] | None = None, outside: bool = False) -> xr.Dataset:
    """Find all singular values of every weight matrix in every block, and how many directions each one uses.

    Effective rank: participation ratio of the squared singular values, (sum s^2)^2 / sum s^4; entropy rank:
    exp of the entropy of s / sum s (Roy and Vetterli, 2007); stable rank: sum s^2 / largest^2 (Rudelson and
    Vershynin, 2007); power law: minus the slope of log s against log rank over the first quarter of the
    spectrum, and over all of it, with R squared. Beside each ratio stands what independent entries of the
    same shape would give (Marchenko and Pastur, 1967); ranks are compared between groups of roles, and
    between early and late blocks (Welch's t, corrected for the number of roles).

    Args:
        roles: only these roles, for example q k v o gate up down; without it, every matrix in every block.
        outside: also the matrices outside the blocks (embedding, positions, output matrix, kernels of
            convolutions with their inputs at all places side by side), whose sides are as long as the
            vocabulary.

    Raises:
        ValueError: no matrix of such a role, or no block.

    Examples:
        >>> data = regraft.spectra(model, roles=["q", "k"])
        >>> dict(data["effective_rank"].sizes), data["effective_rank"].attrs["units"]
        ({'matrix': 24}, 'directions')
    """
    held = weights_of(weights)
    matrices = [m for m in held.matrices if roles is None or m.role in roles]
    matrices += _outside(held) if outside else []
    if not matrices:
        known = ", ".join(sorted({m.role for m in held.matrices})) or "none"
        raise ValueError(
            f"there is no matrix of the role {', '.join(roles or [])} here: the roles are {known}"
        )
    spectrum_RK = np.full((len(matrices), max(min(m.shape) for m in matrices)), np.nan, dtype=np.float32)
    rows: list[Measured] = []
    for matrix, values_OI in held.walk(matrices):
        sigma_K = singular_values(values_OI.flatten(1)).cpu().numpy()
        deviation, average = torch.std_mean(values_OI.double(), correction=0)
        moments = {"weight_mean": float(average), "weight_std": float(deviation)}
        del values_OI
        spectrum_RK[len(rows), : len(sigma_K)] = sigma_K
        told = measures(sigma_K, matrix.shape) | moments
        rows.append((matrix, told, rank_at_energy(sigma_K)))
        advance("matrices", len(rows), len(matrices))
    return _dataset(held, rows, spectrum_RK)


LONG, ROWS = 100_000, 8_192
"""Rows or columns from which on a table is reduced to its triangle first, and rows that go into it at a time:
a table of a vocabulary in float64, and the copies that are made of it, would not fit where the model did."""


def singular_values(matrix_OI: Tensor) -> Tensor:
    """All singular values, (K,), in float64, largest first: the smallest matter to the condition number.

    A long table has those of the triangle of its QR decomposition, which is found from blocks of rows.
    """
    if max(matrix_OI.shape) <= LONG:
        return torch.linalg.svdvals(matrix_OI.double())
    tall_MN = matrix_OI if matrix_OI.shape[0] >= matrix_OI.shape[1] else matrix_OI.T
    triangle_NN = tall_MN.new_zeros((0, tall_MN.shape[1]), dtype=torch.float64)
    for block_RN in tall_MN.split(ROWS):
        triangle_NN = torch.linalg.qr(torch.cat([triangle_NN, block_RN.double()]), mode="r").R
    return torch.linalg.svdvals(triangle_NN)


def _outside(held: Weights) -> list[Matrix]:
    """The matrices that stand in no block, each under its own name."""
    inside = {matrix.tensor for matrix in held.matrices}
    found = []
    for name, shape in held.shapes.items():
        if name not in inside and len(shape) >= 2 and min(sides := _sides(shape)) > 1:
            role = name.removesuffix(".weight").rpartition(".")[2]
            found.append(Matrix(name, "", role, sides))
    return found


def _over_roles(grid_RL: np.ndarray) -> np.ndarray:
    """The mean of each block's roles that have a number; not a number where none has."""
    known_RL = np.isfinite(grid_RL)
    sums, counts = np.where(known_RL, grid_RL, 0.0).sum(0), known_RL.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs; of a kernel the inputs at all its places side by side."""
    return shape[0], math.prod(shape[1:])


def _dataset(held: Weights, rows: list[Measured], spectrum_RK: np.ndarray) -> xr.Dataset:
    matrices = [matrix for matrix, _, _ in rows]
    found = sorted(
        {m.role for m in matrices if m.block}, key=lambda r: (ROLES.index(r) if r in ROLES else len(ROLES), r)
    )
    blocks = list(dict.fromkeys(m.block for m in matrices if m.block))
    kept = MEASURES | VALUES
    table = {name: np.array([values[name] for _, values, _ in rows]) for name in kept}

    def mean(name: str) -> np.ndarray:
        """Mean over the experts of a block: one number for each role and block, NaN where the block has
        none."""
        cells: dict[tuple[int, int], list[float]] = {}
        for matrix, value in zip(matrices, table[name], strict=True):
            if not matrix.block:
                continue
            cells.setdefault((found.index(matrix.role), blocks.index(matrix.block)), []).append(value)
        grid = np.full((len(found), len(blocks)), np.nan)
        for cell, values in cells.items():
            grid[cell] = np.mean(values)
        return grid

    ratio_RL = mean("effective_rank_ratio")
    squares = np.zeros(len(blocks))
    for matrix, values, _ in rows:
        if matrix.block:
            squares[blocks.index(matrix.block)] += np.nan_to_num(values["frobenius_norm"]) ** 2
    by_block = {name: _over_roles(mean(name)) for name in OF_A_BLOCK}
    return xr.Dataset(
        {
            **{
                f"block_{name}": quantity("block", by_block[name], *told) for name, told in OF_A_BLOCK.items()
            },
            **{name: quantity("matrix", table[name], *told) for name, told in kept.items()},
            "rank_at_energy": quantity(
                ("matrix", "level"),
                np.array([ranks for _, _, ranks in rows]),
                "directions",
                "The least number of directions that hold this share of the energy.",
                PUBLISHED,
            ),
            "rank_ratio": quantity(
                ("role", "block"), ratio_RL, *MEASURES["effective_rank_ratio"], correlate="rank ratio"
            ),
            "block_norm": quantity(
                "block",
                np.sqrt(squares),
                "Frobenius norm of all matrices of the block",
                "The size of the block's weights: it says nothing of how much the block matters.",
                PUBLISHED,
                correlate="weight norm",
            ),
            **group_quantities(found, ratio_RL),
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
            "group": list(GROUPS),
            "level": list(ENERGIES),
        },
        attrs={"matrices": len(matrices), "notes": "; ".join(held.notes)},
    )
