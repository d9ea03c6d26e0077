"""A figure as a still picture: SVG of heat maps, lines, points and bars from the traces that plotly draws.

A page holds one of each main figure: for readers without JavaScript, and until the figure itself is drawn.
Colours of scales are classes (`q0` ... for sequential ones, `d0` ... for those around zero), ink and grid
too, so that the page gives them in every theme; coordinates are pixels of a picture as wide as a page.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from regraft.reporting.still_axes import Axis, plain_number
from regraft.reporting.still_marks import HEAT, Frame, drawn, ends_of, reaches
from regraft.reporting.theme import HEIGHT, LEVELS, MUTED, traces_of

WIDTH = 900
"""Pixels of a picture, about those of a page's figure."""
LETTER = 6.2
"""Pixels of a letter of the small print, on average."""
LINE = 14
"""Pixels from a line of text to the next one."""
WIDEST, LETTERS = 360.0, 14
"""Pixels that names beside a picture take at most, and letters of a name below it that are counted."""
PILED = ("stack", "relative")
"""How bars may stand that a still picture does not have."""
LEGEND, BAR_ROOM = 24, 92
"""Pixels of a row of names, and of a colour bar with its numbers."""


@dataclass(frozen=True)
class Field:
    """One field of a figure: its axes' names, and where it lies, in shares of the whole."""

    x: str
    y: str
    across: tuple[float, float]
    upwards: tuple[float, float]


def still(figure: go.Figure, width: int = WIDTH) -> str:
    """A figure as SVG text.

    Args:
        figure: of heat maps, scatter traces and bars.
        width: pixels of the picture.

    Raises:
        ValueError: it has a trace of another kind, bars on one another, or none.
    """
    traces = traces_of(figure)
    if not stands_still(figure):
        kinds = ", ".join(sorted({trace.type for trace in traces})) or "none"
        kinds += f", {figure.layout.barmode} on one another" if figure.layout.barmode in PILED else ""
        raise ValueError(
            f"a still picture has heat maps, lines, points and bars, and the traces are: {kinds}"
        )
    height = int(figure.layout.height or HEIGHT)
    named = [t for t in traces if t.name and t.showlegend is not False] if figure.layout.showlegend else []
    parts = [*_legend(named, width)]
    top = (LEGEND + 8 if named else 10) + _above(figure)
    left, right, below = _room(figure, traces)
    for place in _places(figure, traces):
        own = [t for t in traces if (t.xaxis or "x", t.yaxis or "y") == (place.x, place.y)]
        axes = _axes(figure, own, place)
        frame = Frame(
            *axes,
            left + place.across[0] * (width - left - right),
            left + place.across[1] * (width - left - right),
            top + (1 - place.upwards[1]) * (height - top - below),
            top + (1 - place.upwards[0]) * (height - top - below),
        )
        parts += [*_grid(frame, own), *drawn(frame, own, figure.layout.barmode or "group")]
        parts += [*_shapes(figure, frame, place), *_names(frame), *_notes(figure, frame, place)]
    heat = next((t for t in traces if t.type == HEAT and t.showscale is not False), None)
    parts += _colour_bar(heat, width - right + 12, top, height - below) if heat is not None else []
    inside = "".join(parts)
    return f'<svg class="still" viewBox="0 0 {width} {height}" role="img">{inside}</svg>'


def stands_still(figure: go.Figure) -> bool:
    """Whether there is a still picture of a figure: all its marks are known, and no bars are piled up."""
    kinds = {trace.type for trace in traces_of(figure)}
    return bool(kinds) and kinds <= {HEAT, "scatter", "bar"} and figure.layout.barmode not in PILED


def _places(figure: go.Figure, traces: list[Any]) -> list[Field]:
    pairs = dict.fromkeys((t.xaxis or "x", t.yaxis or "y") for t in traces)
    found = []
    for x, y in pairs:
        axes = figure.layout[_long(x)], figure.layout[_long(y)]
        across, upwards = (tuple(axis.domain) if axis.domain else (0.0, 1.0) for axis in axes)
        found.append(Field(x, y, across, upwards))
    return found


def _long(name: str) -> str:
    return f"{name[0]}axis{name[1:]}"


def _axes(figure: go.Figure, traces: list[Any], place: Field) -> tuple[Axis, Axis]:
    """Both axes of a field, as far as its marks reach."""
    found = []
    for letter, name in (("x", place.x), ("y", place.y)):
        values = [list(t[letter]) for t in traces if t[letter] is not None]
        found.append(Axis.of(figure.layout[_long(name)], values))
    for trace in traces:
        reaches(trace, found[0], found[1])
    for axis in found:
        axis.close()
    return found[0], found[1]


def _room(figure: go.Figure, traces: list[Any]) -> tuple[float, float, float]:
    """Pixels left of, right of and below all fields."""
    longest = 0
    for trace in traces:
        axis = figure.layout[_long(trace.yaxis or "y")]
        names = axis.ticktext or trace.y if trace.y is not None else []
        words = [str(v) for v in names if isinstance(v, str)] if axis.visible is not False else []
        longest = max([longest, *(len(plain_words(w)) for w in words)])
    heat = any(t.type == HEAT and t.showscale is not False for t in traces)
    below = 44 + (LINE if _two_lines(figure, traces) else 0)
    return (
        min(WIDEST, max(58.0, 26 + LETTER * longest)),
        BAR_ROOM if heat else max(18.0, figure.layout.margin.r or 0.0),
        float(below),
    )


def _two_lines(figure: go.Figure, traces: list[Any]) -> bool:
    names = [*(figure.layout.xaxis.ticktext or ())] or [v for t in traces if t.x is not None for v in t.x]
    return any("<br>" in str(name) for name in names)


def _above(figure: go.Figure) -> float:
    return (
        12.0
        if any(note.yref == "paper" and (note.y or 0) >= 1 for note in figure.layout.annotations)
        else 0.0
    )


def _grid(frame: Frame, traces: list[Any]) -> Iterator[str]:
    """Lines at the ticks of axes of numbers; a heat map needs none."""
    if any(trace.type == HEAT for trace in traces):
        return
    for axis, level in ((frame.x, False), (frame.y, True)):
        if axis.kind == "category" or axis.layout.visible is False:
            continue
        for number, _ in axis.ticks(12):
            ends = (
                (frame.left, frame.at_y(number), frame.right, frame.at_y(number))
                if level
                else (frame.at_x(number), frame.top, frame.at_x(number), frame.bottom)
            )
            yield '<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends)


def _names(frame: Frame) -> Iterator[str]:
    """Names of ticks, and what the axes are."""
    x, y = frame.x.layout, frame.y.layout
    lines = 1
    if x.visible is not False:
        rows = [row for _, name in frame.x.ticks(10**6) for row in plain_words(name).split("\n")]
        longest = max(map(len, rows), default=1)
        room = int((frame.right - frame.left) / max(18.0, LETTER * min(longest, LETTERS) + 4))
        for number, name in frame.x.ticks(room):
            rows = plain_words(name).split("\n")
            lines = max(lines, len(rows))
            for row, text in enumerate(rows):
                yield text_at(frame.at_x(number), frame.bottom + LINE + row * LINE, text, "middle")
        if x.title.text:
            middle = (frame.left + frame.right) / 2
            yield text_at(middle, frame.bottom + 20 + lines * LINE, plain_words(x.title.text), "middle")
    if y.visible is not False:
        room = int((frame.bottom - frame.top) / LINE)
        for number, name in frame.y.ticks(room):
            yield text_at(frame.left - 6, frame.at_y(number) + 4, plain_words(name), "end")
        if y.title.text:
            middle = (frame.top + frame.bottom) / 2
            turned = f' transform="rotate(-90 12 {middle:.1f})"'
            yield text_at(12, middle, plain_words(y.title.text), "middle", turned)


def _shapes(figure: go.Figure, frame: Frame, place: Field) -> Iterator[str]:
    """Straight lines across a field."""
    for shape in figure.layout.shapes:
        x_ref, y_ref = shape.xref or "x", shape.yref or "y"
        if shape.type != "line" or x_ref.split()[0] != place.x or y_ref.split()[0] != place.y:
            continue
        across = [
            frame.left + v * (frame.right - frame.left)
            if x_ref.endswith("domain")
            else frame.at_x(frame.x.number(v))
            for v in (shape.x0, shape.x1)
        ]
        upwards = [
            frame.bottom + v * (frame.top - frame.bottom)
            if y_ref.endswith("domain")
            else frame.at_y(frame.y.number(v))
            for v in (shape.y0, shape.y1)
        ]
        if all(math.isfinite(v) for v in (*across, *upwards)):
            dashed = "" if (shape.line.dash or "solid") == "solid" else ' stroke-dasharray="2 3"'
            yield (
                f'<line stroke="{shape.line.color or MUTED}"{dashed} x1="{across[0]:.1f}"'
                f' y1="{upwards[0]:.1f}" x2="{across[1]:.1f}" y2="{upwards[1]:.1f}"/>'
            )


def _notes(figure: go.Figure, frame: Frame, place: Field) -> Iterator[str]:
    """Words that stand at a point of a field, or above it."""
    for note in figure.layout.annotations:
        x_ref, y_ref = note.xref or "x", note.yref or "y"
        if {x_ref.split()[0], y_ref.split()[0]} - {place.x, place.y, "paper"} or not note.text:
            continue
        if x_ref == y_ref == "paper" and (place.x, place.y) != ("x", "y"):
            continue
        across = (
            note.x if x_ref == "paper" or x_ref.endswith("domain") else frame.x.share(frame.x.number(note.x))
        )
        up = note.y if y_ref == "paper" or y_ref.endswith("domain") else frame.y.share(frame.y.number(note.y))
        if not (math.isfinite(across) and math.isfinite(up)):
            continue
        x = frame.left + across * (frame.right - frame.left)
        y = frame.bottom - up * (frame.bottom - frame.top)
        anchor = {"left": "start", "right": "end"}.get(note.xanchor or "", "middle")
        yield text_at(x, y - 4, plain_words(note.text).replace("\n", " "), anchor)


def _legend(traces: list[Any], width: int) -> Iterator[str]:
    """A row of names, each behind a mark in its trace's colour."""
    x = 60.0
    for trace in dict((t.name, t) for t in traces).values():
        colour = trace.marker.color if isinstance(trace.marker.color, str) else None
        colour = colour or (trace.line.color if trace.type == "scatter" else None) or MUTED
        name = plain_words(trace.name)
        if x + LETTER * len(name) > width:
            return
        yield f'<rect x="{x:.0f}" y="8" width="12" height="10" fill="{colour}"/>'
        yield text_at(x + 17, 17, name, "start")
        x += 34 + LETTER * len(name)


def _colour_bar(trace: Any, x: float, top: float, bottom: float) -> list[str]:
    """The scale of a heat map, its ends and its middle."""
    low, high = ends_of(trace)
    letter = "d" if trace.meta == "diverging" else "q"
    step = (bottom - top) / LEVELS
    found = [
        f'<rect class="{letter}{LEVELS - 1 - n}" x="{x:.0f}" y="{top + n * step:.2f}" width="10"'
        f' height="{step + 0.4:.2f}"/>'
        for n in range(LEVELS)
    ]
    for share in (0.0, 0.5, 1.0):
        value = plain_number(float(f"{low + share * (high - low):.3g}"))
        found.append(
            text_at(x + 15, bottom - share * (bottom - top) + (9 if share == 1 else 0), value, "start")
        )
    title = trace.colorbar.title.text
    if title:
        middle = (top + bottom) / 2
        turned = f' transform="rotate(90 {x + 66:.0f} {middle:.1f})"'
        found.append(text_at(x + 66, middle, plain_words(title).strip(), "middle", turned))
    return found


def plain_words(text: Any) -> str:
    """What plotly would show of a text: its marks left out, its entities read, a break as a new line."""
    broken = re.sub(r"<br\s*/?>", "\n", str(text))
    return html.unescape(re.sub(r"<[^>]*>", "", broken))


def text_at(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    """Words at a point."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(text)}</text>'
