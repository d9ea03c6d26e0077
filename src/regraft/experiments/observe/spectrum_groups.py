"""Ranks of matrices compared by what the matrices are for, and early blocks with late ones.

Shapes: R roles, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, ttest_ind

from regraft.core.quantities import quantity
from regraft.experiments.observe.spectrum_measures import PUBLISHED

GROUPS = {
    "queries and keys": ("q", "k"),
    "values and output": ("v", "o"),
    "attention": ("q", "k", "v", "o"),
    "MLP": ("gate", "up", "down"),
}
"""Roles that do one thing together."""
VARIES = 1e-9
"""Share of the largest value under which a spread is rounding, which no test of means bears."""
FEWEST_BLOCKS = 2
"""Blocks on either side that a test of early against late needs."""


def group_quantities(roles: Sequence[str], ratio_RL: np.ndarray) -> dict[str, Any]:
    """Mean rank ratio of each group of roles in each block, their difference, and early against late
    blocks."""
    named = {role: row for role, row in zip(roles, ratio_RL, strict=True)}
    members = [[named[role] for role in some if role in named] for some in GROUPS.values()]
    group = np.stack([_mean(rows, ratio_RL) for rows in members])
    early, p, corrected = early_against_late(ratio_RL)
    return {
        "group_rank_ratio": quantity(
            ("group", "block"), group, "effective rank ratio, mean over the group's matrices",
            "Queries and keys below values and output: what a head compares needs fewer dimensions than what"
            " it moves.", PUBLISHED,
        ),
        "vo_minus_qk": quantity(
            "block", group[1] - group[0], "difference of the effective rank ratios",
            "Above 0 values and output use more of their directions than queries and keys.", PUBLISHED,
            correlate="values and output less queries and keys",
        ),
        "mean_rank_ratio": quantity(
            "block", _mean(list(ratio_RL), ratio_RL), "effective rank ratio, mean over roles",
            "A block far below its neighbours uses few directions in all its matrices.", PUBLISHED,
            correlate="mean rank ratio",
        ),
        "early_late_diff": quantity(
            "role", early, "late blocks' mean effective rank ratio less the early ones'",
            "Above 0 the role uses more of its directions in late blocks.", PUBLISHED,
        ),
        "early_late_p": quantity(
            "role", p, "two-sided p of Welch's t",
            "As published, without a correction for the number of roles.", PUBLISHED,
        ),
        "early_late_p_corrected": quantity(
            "role", corrected, "p of the false discovery rate over roles",
            "Below 0.05 the difference is more than the blocks' scatter; blocks are no independent sample.",
            "Benjamini and Hochberg (1995)",
        ),
    }  # fmt: skip


def _mean(rows: list[np.ndarray], like_RL: np.ndarray) -> np.ndarray:
    """Mean of some rows over those that have a value; NaN where none has."""
    if not rows:
        return np.full(like_RL.shape[1], np.nan)
    table = np.stack(rows)
    known = np.isfinite(table)
    return np.where(known.any(0), np.where(known, table, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def early_against_late(ratio_RL: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference, p and corrected p of each role: the first (L - 1) // 2 blocks (0 to 16 of 36, as published)
    against the others; NaN where a side has fewer than two values, or nothing varies."""
    half = (ratio_RL.shape[1] - 1) // 2
    difference, p = np.full(len(ratio_RL), np.nan), np.full(len(ratio_RL), np.nan)
    for row, values in enumerate(ratio_RL):
        early, late = (side[np.isfinite(side)] for side in (values[:half], values[half:]))
        if min(len(early), len(late)) < FEWEST_BLOCKS:
            continue
        difference[row] = late.mean() - early.mean()
        if max(early.std(), late.std()) > VARIES * abs(values[np.isfinite(values)]).max():
            found: Any = ttest_ind(late, early, equal_var=False)
            p[row] = found.pvalue
    corrected, known = np.full_like(p, np.nan), np.isfinite(p)
    if known.any():
        corrected[known] = false_discovery_control(p[known], method="bh")
    return difference, p, corrected
