"""What one matrix's singular values say about it.

Shapes: K singular values of one matrix, largest first; m, n its sides.
"""

from __future__ import annotations

import numpy as np

TOPS = (1, 8, 32, 128)
"""Numbers of leading directions whose share of the energy is given."""
HEAD_SHARE = 4
"""The exponent is fitted to the first quarter of a spectrum: behind it, finite width bends the line."""
ENERGIES = (0.5, 0.9, 0.99)
"""Shares of the energy for which the least number of directions is counted."""
ANY = 1e-6
"""Singular values up to here stay out of the power law over the whole spectrum, as published."""
CHECKPOINTS = "investigation of a speech model's checkpoint (hivaze/dl-experiments)"
PUBLISHED = "weight-spectra study of Qwen3-4B (hivaze/dl-experiments)"

Told = tuple[str, str, str]
"""Unit, how to read it, source."""
VALUES: dict[str, Told] = {
    "weight_mean": (
        "mean of a matrix's values", "Near 0 beside the deviation: nothing constant is added.", CHECKPOINTS,
    ),
    "weight_std": (
        "standard deviation of a matrix's values", "How large one value is; of all values, not of a sample.",
        CHECKPOINTS,
    ),
}  # fmt: skip
"""What is told of a matrix's values beside its singular ones."""
MEASURES: dict[str, Told] = {
    "effective_rank": (
        "directions",
        "Matrices of one shape compare; of different shapes only the ratio does.",
        "participation ratio of the squared singular values",
    ),
    "effective_rank_ratio": (
        "of the smaller side of the matrix",
        "1: all directions equally strong; small: few do most of the work.",
        PUBLISHED,
    ),
    "entropy_rank": (
        "directions",
        "As the effective rank, less moved by the largest.",
        "Roy and Vetterli (2007)",
    ),
    "stable_rank": ("directions", "Near 1 one direction dominates.", "Rudelson and Vershynin (2007)"),
    "power_law": ("exponent of the first quarter of the spectrum", "The larger, the steeper the head.", ""),
    "power_law_fit": ("R squared of that fit", "Below 0.9 the head is no power law.", ""),
    "power_law_full": (
        "exponent of the whole spectrum",
        "The last values bend the line: compare it with the head's exponent and its R squared.",
        PUBLISHED,
    ),
    "power_law_full_r2": ("R squared of that fit", "Below 0.9 the whole is no power law.", PUBLISHED),
    **{
        f"energy_{k}": (
            f"share of the squared singular values in the first {k}",
            "Near 1 the matrix could be stored as so many columns.",
            "",
        )
        for k in TOPS
    },
    "spectral_entropy": (
        "entropy of the energy over its largest, 0 to 1",
        "1: the energy lies in all directions alike.",
        PUBLISHED,
    ),
    "stable_rank_ratio": (
        "stable rank over the smaller side",
        "Far below the effective rank: one direction dominates.",
        PUBLISHED,
    ),
    "random_rank_ratio": (
        "of the smaller side: effective rank of independent entries of this shape",
        "What the ratio would be without any structure.",
        "Marchenko and Pastur (1967): mn / (m + n + 1)",
    ),
    "rank_over_random": (
        "effective rank over that of independent entries",
        "1: as full as noise; what is missing to 1 is structure.",
        PUBLISHED,
    ),
    "frobenius_norm": ("square root of the sum of squares", "The size of the whole matrix.", PUBLISHED),
    "top1_share": (
        "largest singular value over the sum of all",
        "Near 1 one direction dominates.",
        PUBLISHED,
    ),
    "norm_over_spectral": (
        "Frobenius norm over the largest singular value",
        "Its square is the stable rank.",
        PUBLISHED,
    ),
    "condition": ("largest over smallest singular value", "Infinite where a direction is missing.", ""),
    "largest": ("largest singular value", "The most by which any input grows.", ""),
}  # fmt: skip
"""Every number of one matrix: its unit, how to read it, and whose it is."""
OF_A_BLOCK: dict[str, Told] = {
    "frobenius_norm": (
        "Frobenius norm of a matrix, mean over those of the block",
        "How large the block's matrices are: where it bends over the depth, a phase ends.", CHECKPOINTS,
    ),
    "entropy_rank": (
        "directions, mean over the block's matrices",
        "How many directions the block's matrices use: where it bends over the depth, a phase ends.",
        CHECKPOINTS,
    ),
    "top1_share": (
        "largest singular value over the sum of all, mean over the block's matrices",
        "Near 1 one direction dominates the block's matrices.", CHECKPOINTS,
    ),
}  # fmt: skip
"""What is averaged over a block's roles, as in a checkpoint's investigation; a role's experts count once."""


def measures(sigma_K: np.ndarray, shape: tuple[int, int] | None = None) -> dict[str, float]:
    """The measures of the spectrum of a matrix of this shape (square where none is given); NaN where one of
    zeros has none."""
    if not sigma_K[0] > 0:
        return dict.fromkeys(MEASURES, float("nan"))
    energy = sigma_K**2 / (sigma_K**2).sum()
    share = sigma_K / sigma_K.sum()
    rank = 1 / (energy**2).sum()
    slope, fit = power_law(sigma_K)
    whole, whole_fit = straight_line(sigma_K[sigma_K > ANY])
    small, large = sorted(shape or (len(sigma_K), len(sigma_K)))
    random = large / (small + large + 1)
    return {
        "effective_rank": rank,
        "effective_rank_ratio": rank / len(sigma_K),
        "entropy_rank": float(np.exp(_entropy(share))),
        "stable_rank": 1 / energy[0],
        "power_law": slope,
        "power_law_fit": fit,
        "power_law_full": whole,
        "power_law_full_r2": whole_fit,
        **{f"energy_{k}": float(energy[:k].sum()) for k in TOPS},
        "spectral_entropy": _entropy(energy) / np.log(small) if small > 1 else float("nan"),
        "stable_rank_ratio": 1 / energy[0] / small,
        "random_rank_ratio": random,
        "rank_over_random": rank / len(sigma_K) / random,
        "frobenius_norm": float(np.sqrt((sigma_K**2).sum())),
        "top1_share": float(share[0]),
        "norm_over_spectral": float(np.sqrt(1 / energy[0])),
        "condition": float(sigma_K[0] / sigma_K[-1]) if sigma_K[-1] > 0 else float("inf"),
        "largest": float(sigma_K[0]),
    }


def rank_at_energy(sigma_K: np.ndarray) -> list[float]:
    """The least number of directions that hold a half, 90% and 99% of the energy; NaN where there is none."""
    if not sigma_K[0] > 0:
        return [float("nan")] * len(ENERGIES)
    held = np.cumsum(sigma_K**2) / (sigma_K**2).sum()
    return [float(min(int(np.searchsorted(held, level)) + 1, len(sigma_K))) for level in ENERGIES]


def _entropy(share_K: np.ndarray) -> float:
    some = share_K[share_K > 0]
    return float(-(some * np.log(some)).sum())


def power_law(sigma_K: np.ndarray) -> tuple[float, float]:
    """Exponent and R squared over the first quarter of the spectrum (at least four values)."""
    head = sigma_K[: max(4, len(sigma_K) // HEAD_SHARE)]
    return straight_line(head[head > 0])


def straight_line(values: np.ndarray) -> tuple[float, float]:
    """Exponent a of s_i ~ i^-a over the positive values given, largest first, and R squared of the fit; NaN
    for fewer than three."""
    if len(values) < 3:
        return float("nan"), float("nan")
    x, y = np.log(np.arange(1, len(values) + 1)), np.log(values)
    slope, level = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    flat = spread <= 1e-20 * len(y)
    return float(-slope), 1.0 if flat else float(1 - ((y - slope * x - level) ** 2).sum() / spread)
