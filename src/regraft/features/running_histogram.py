"""A histogram of every feature's values in equal steps from 0, whose range grows with the stream.

Shapes: F features, N tokens of a piece, H bins.
"""

from __future__ import annotations

import numpy as np

BINS = 64
"""Bins; where a value lies beyond the last, each pair becomes one, so that the larger half is always used."""
FINEST = 2.0**-40
"""Width of a bin before any value is seen; widths are powers of two, so that no value changes its bin."""


class RunningHistogram:
    """Counts of the values above zero of every feature, exact whatever the order of the stream.

    >>> counted = RunningHistogram(features=1)
    >>> counted.add(np.array([[0.5], [0.0], [1.5], [64.0]]))
    >>> counted.width_F.tolist(), counted.of(0).tolist()[:2], len(counted.of(0))
    ([2.0], [2, 0], 33)
    """

    def __init__(self, features: int):
        self.counts_FH = np.zeros((features, BINS), np.int64)
        self.width_F = np.full(features, FINEST)
        self.largest_F = np.zeros(features)

    def add(self, values_NF: np.ndarray) -> None:
        """Take in the values of some tokens; those that are not above zero are not counted."""
        if not len(values_NF):
            return
        self.largest_F = np.maximum(self.largest_F, values_NF.max(0))
        while (short_F := self.largest_F >= self.width_F * BINS).any():
            pairs = self.counts_FH[short_F].reshape(-1, BINS // 2, 2).sum(-1)
            self.counts_FH[short_F] = np.pad(pairs, ((0, 0), (0, BINS // 2)))
            self.width_F[short_F] *= 2
        token, feature = np.nonzero(values_NF > 0)
        slot = np.floor(values_NF[token, feature] / self.width_F[feature]).astype(np.int64)
        np.add.at(self.counts_FH, (feature, slot), 1)

    def of(self, feature: int) -> np.ndarray:
        """The counts of one feature up to the bin that its largest value lies in."""
        return self.counts_FH[feature, : int(self.largest_F[feature] // self.width_F[feature]) + 1]
