"""Correlation of two rows of numbers that stand for the same things.

Shapes: n things that both have.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

FEWEST = 4
"""Things that a correlation needs."""


def pearson(one_n: np.ndarray, other_n: np.ndarray) -> float:
    """Pearson's correlation over what both have; NaN for fewer than four, or where one side does not vary."""
    both = np.isfinite(one_n) & np.isfinite(other_n)
    x, y = one_n[both], other_n[both]
    if len(x) < FEWEST or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def rank_correlation(one_n: np.ndarray, other_n: np.ndarray) -> float:
    """Spearman's correlation; NaN where one side does not vary."""
    x, y = (r - r.mean() for r in (rankdata(one_n), rankdata(other_n)))
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")
