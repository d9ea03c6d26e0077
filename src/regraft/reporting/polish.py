"""The last touches on a figure before a page takes it: what hangs on its data, not on who drew it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from regraft.reporting.still_axes import Axis, log_ticks
from regraft.reporting.still_marks import reaches
from regraft.reporting.theme import traces_of

ENDS, SHORTEST, BELOW = 0.02, 0.1, 0.1
"""Share of an axis' length that is left free at its ends, decades that it is taken to have at least for that,
and share below the shortest bar of a logarithmic one."""
NAMED = 24
"""Places of an axis that are all named; of more, some at even distances and the last."""


def polished(figure: go.Figure) -> go.Figure:
    """A figure whose logarithmic axes name 1, 10, 100 where plotly would name 2, 5 and 10 µ, and end where
    the data ends; whose blocks and depths are named up to the last."""
    _name_places(figure)
    for letter in ("x", "y"):
        for name in {getattr(trace, f"{letter}axis") or letter for trace in traces_of(figure)}:
            layout = figure.layout[f"{letter}axis{name[1:]}"]
            if layout.type == "log":
                _plain_ticks(figure, letter, name, layout)
    return figure


def _name_places(figure: go.Figure) -> None:
    """Give horizontal axes of blocks and depths their names."""
    for name in {trace.xaxis or "x" for trace in traces_of(figure)}:
        layout = figure.layout[f"xaxis{name[1:]}"]
        own = [trace.x for trace in traces_of(figure) if (trace.xaxis or "x") == name and trace.x is not None]
        values = list(dict.fromkeys(value for row in own for value in row))
        numbers = all(isinstance(value, (int, np.integer)) for value in values)
        words = all(isinstance(value, str) for value in values)
        if layout.tickvals is not None or layout.dtick is not None or not values or not (numbers or words):
            continue
        if any(trace.orientation == "h" for trace in traces_of(figure) if trace.type == "bar"):
            continue
        layout.tickvals = named_places(sorted(values) if numbers else values)
        layout.type = "category" if words else layout.type


def named_places(values: Sequence[Any]) -> list[Any]:
    """All of a few places; of many some at even distances, and the last in place of one beside it.

    >>> named_places(range(60))
    [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 51, 54, 59]
    """
    apart = -(-len(values) // NAMED)
    chosen = list(values[::apart])
    if len(values) and chosen[-1] != values[-1]:
        chosen = [*(chosen if apart == 1 else chosen[:-1]), values[-1]]
    return chosen


def _plain_ticks(figure: go.Figure, letter: str, name: str, layout: Any) -> None:
    own = [trace for trace in traces_of(figure) if (trace[f"{letter}axis"] or letter) == name]
    axis = Axis.of(layout, [list(trace[letter]) for trace in own if trace[letter] is not None])
    for trace in own:
        other_letter = "y" if letter == "x" else "x"
        other_name = trace[f"{other_letter}axis"] or other_letter
        other = Axis.of(figure.layout[f"{other_letter}axis{other_name[1:]}"], [list(trace[other_letter])])
        pair = (axis, other) if letter == "x" else (other, axis)
        reaches(trace, *pair)
    if not math.isfinite(axis.low):
        return
    low, high = _with_lines(figure, letter, name, axis)
    free = ENDS * max(high - low, SHORTEST)
    ticks = log_ticks(low, high)
    layout.range = [low - free, high + free]
    layout.tickvals, layout.ticktext = [10.0**at for at, _ in ticks], [told for _, told in ticks]


def _with_lines(figure: go.Figure, letter: str, name: str, axis: Axis) -> tuple[float, float]:
    """Both ends, once straight lines across the figure are in view; bars, which begin nowhere on such an
    axis, get room below the shortest."""
    across = [
        axis.number(shape[f"{letter}0"])
        for shape in figure.layout.shapes
        if (shape[f"{letter}ref"] or letter) == name and shape[f"{letter}0"] == shape[f"{letter}1"]
    ]
    low, high = min([axis.low, *across]), max([axis.high, *across])
    bars = any(trace.type == "bar" for trace in traces_of(figure))
    return (low - BELOW * max(high - low, 1.0) if bars else low), high
