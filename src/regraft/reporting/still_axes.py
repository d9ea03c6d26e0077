"""One axis of a figure as numbers: where a value stands, and which values are named.

Read from what plotly is given, so that a still picture and the drawn figure show the same: categories in the
order in which they come, logarithms, given ranges and ticks, axes from top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_TICKS = 6
"""Named values of an axis of numbers, about."""
AROUND = 0.04
"""Share of the range that is left free beyond points."""
SMALLEST, LARGEST = 0.000999999, 1e6
"""Numbers that are written out; others as powers of ten. (A thousandth may come as a little less.)"""
STEPS = (1.0, 2.0, 5.0, 10.0)
"""Distances between ticks, times a power of ten."""


@dataclass
class Axis:
    """One axis: its kind, its ends (exponents where it is logarithmic, places where it has categories)."""

    layout: Any
    kind: str = "linear"
    names: list[str] = field(default_factory=list)
    low: float = math.inf
    high: float = -math.inf
    fixed: bool = False

    @classmethod
    def of(cls, layout: Any, values: Sequence[Any]) -> Axis:
        """The axis that plotly would make of a layout's settings and the traces' values along it."""
        kind = layout.type or ("category" if any(isinstance(v, str) for v in _flat(values)) else "linear")
        axis = cls(layout, "linear" if kind == "-" else kind)
        if axis.kind == "category":
            axis.names = list(dict.fromkeys(str(v) for v in _flat(values)))
            axis.low, axis.high = -0.5, len(axis.names) - 0.5
            axis.fixed = True
        if layout.range is not None and axis.kind != "category":
            ends = [float(value) for value in layout.range]
            axis.low, axis.high, axis.fixed = min(ends), max(ends), True
        return axis

    @property
    def backwards(self) -> bool:
        """Whether it runs from top to bottom, or from right to left."""
        given = self.layout.range
        return self.layout.autorange == "reversed" or (given is not None and given[0] > given[1])

    def number(self, value: Any) -> float:
        """A value on the axis' own scale; not a number where it has no place there."""
        if self.kind == "category":
            return float(self.names.index(str(value))) if str(value) in self.names else math.nan
        number = math.nan if value is None else float(value)
        if self.kind != "log":
            return number
        return math.log10(number) if number > 0 else math.nan

    def numbers(self, values: Iterable[Any]) -> np.ndarray:
        """Several of them."""
        return np.array([self.number(value) for value in values], dtype=float)

    def reach(self, values: Iterable[float], around: float = 0.0) -> None:
        """Make room for numbers on the axis' own scale, and a share of the range beyond them."""
        known = [value for value in values if math.isfinite(value)]
        if self.fixed or not known:
            return
        free = around * (max(known) - min(known))
        self.low, self.high = min(self.low, min(known) - free), max(self.high, max(known) + free)

    def close(self) -> None:
        """Settle ends that nothing has set, or that are one."""
        if not math.isfinite(self.low):
            self.low, self.high = 0.0, 1.0
        if self.low == self.high:
            self.low, self.high = self.low - 0.5, self.high + 0.5

    def share(self, number: Any) -> Any:
        """How far along the axis a number stands, from 0 to 1."""
        along = (np.asarray(number, dtype=float) - self.low) / (self.high - self.low)
        return 1 - along if self.backwards else along

    def ticks(self, room: int) -> list[tuple[float, str]]:
        """Numbers that are named, and their names; of categories no more than there is room for."""
        if self.layout.tickvals is not None:
            values = self.layout.tickvals
            names = self.layout.ticktext or [v if isinstance(v, str) else plain_number(v) for v in values]
            given = [(self.number(value), str(name)) for value, name in zip(values, names, strict=False)]
            return _thinned([one for one in given if self.low <= one[0] <= self.high], room)
        if self.kind == "category":
            return _thinned([(float(place), name) for place, name in enumerate(self.names)], room)
        if self.kind == "log":
            return log_ticks(self.low, self.high)
        percent = (self.layout.tickformat or "").endswith("%")
        return [
            (value, f"{value:.0%}" if percent else plain_number(value))
            for value in even_ticks(self.low, self.high)
        ]


def _flat(values: Any) -> list[Any]:
    return [one for row in values for one in row]


def _thinned(ticks: list[tuple[float, str]], room: int) -> list[tuple[float, str]]:
    return ticks[:: max(1, -(-len(ticks) // max(1, room)))]


def even_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends.

    >>> even_ticks(0.0, 0.9)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    if not high > low:
        return [low]
    rough = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in STEPS if power * one >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) + 0.0 for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten between two exponents; where there are few, twice and five times these as well.

    >>> log_ticks(0.0, 2.0)
    [(0.0, '1'), (1.0, '10'), (2.0, '100')]
    """
    decades = range(math.floor(low), math.ceil(high) + 1)
    apart = max(1, -(-len(decades) // (2 * MOST_TICKS)))
    inside = [float(e) for e in decades if low - 1e-9 <= e <= high + 1e-9]
    if len(inside) > 2:
        return [(e, plain_number(10.0**e)) for e in inside[::apart]]
    fine = [math.log10(m * 10.0**e) for e in decades for m in (1, 2, 5)]
    fine = [e for e in fine if low - 1e-9 <= e <= high + 1e-9]
    if len(fine) > 1:
        return [(e, plain_number(10.0**e)) for e in fine]
    return [(math.log10(v), plain_number(v)) for v in even_ticks(10.0**low, 10.0**high) if v > 0]


def plain_number(value: float) -> str:
    """A number of an axis: 0.001, 1, 10, 10,000, and powers of ten beyond.

    >>> plain_number(10000.0), plain_number(0.25), plain_number(1e-6)
    ('10,000', '0.25', '1e-6')
    """
    value = float(value)
    size = abs(value)
    if size and not SMALLEST <= size < LARGEST:
        told, exponent = f"{value:.2e}".split("e")
        return f"{told.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.6f}".rstrip("0").rstrip(".")
