"""The marks of a still picture: cells, lines, points and bars, as SVG text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.reporting.still_axes import AROUND, Axis
from regraft.reporting.theme import LEVELS, MUTED

HEAT = "heatmap"
STRONG = 0.7
"""Share of a scale from which on letters are written in the paper's colour."""
DASHES = {"dot": "2 3", "dash": "6 4", "dashdot": "6 3 2 3", "longdash": "10 4", "longdashdot": "10 3 2 3"}


@dataclass(frozen=True)
class Frame:
    """A field of a picture: its axes, and its sides in pixels."""

    x: Axis
    y: Axis
    left: float
    right: float
    top: float
    bottom: float

    def at_x(self, number: Any) -> Any:
        """Pixels from the left of a number on the horizontal axis."""
        return self.left + self.x.share(number) * (self.right - self.left)

    def at_y(self, number: Any) -> Any:
        """Pixels from the top of a number on the vertical axis."""
        return self.bottom - self.y.share(number) * (self.bottom - self.top)


def reaches(trace: Any, x: Axis, y: Axis) -> None:
    """Make both axes long enough for a trace."""
    if trace.type == HEAT:
        rows, columns = _sides(trace)
        for axis, values in ((x, columns), (y, rows)):
            numbers = axis.numbers(values)
            axis.reach([*(numbers - _half(numbers)), *(numbers + _half(numbers))])
        return
    for axis, values, length in ((x, trace.x, _lies(trace)), (y, trace.y, not _lies(trace))):
        numbers = axis.numbers(values if values is not None else ())
        if trace.type != "bar":
            axis.reach(numbers, AROUND)
        elif length:
            axis.reach([*([] if axis.kind == "log" else [0.0]), *numbers], 0.02)
        else:
            axis.reach([*(numbers - 0.5), *(numbers + 0.5)])


def _half(numbers: np.ndarray) -> float:
    """Half the distance between two columns, or two rows, of a heat map."""
    return float(numbers[1] - numbers[0]) / 2 if len(numbers) > 1 else 0.5


def _lies(trace: Any) -> bool:
    return trace.type == "bar" and trace.orientation == "h"


def drawn(frame: Frame, traces: Sequence[Any], barmode: str) -> Iterator[str]:
    """All traces of a field, the first at the back."""
    count, place = sum(trace.type == "bar" for trace in traces), 0
    for number, trace in enumerate(traces):
        if trace.type == HEAT:
            yield from _cells(frame, trace)
        elif trace.type == "bar":
            yield from _bars(frame, trace, *((place, count) if barmode == "group" else (0, 1)))
            place += 1
        else:
            yield from _line(frame, trace, traces[number - 1] if number else None)


def ends_of(trace: Any) -> tuple[float, float]:
    """Values at both ends of a heat map's colours."""
    z = np.array([[math.nan if v is None else v for v in row] for row in trace.z], dtype=float)
    known = z[np.isfinite(z)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    low = low if trace.zmin is None else float(trace.zmin)
    high = high if trace.zmax is None else float(trace.zmax)
    if trace.zmid is not None:
        reach = max(high - trace.zmid, trace.zmid - low)
        low, high = trace.zmid - reach, trace.zmid + reach
    return low, high if high > low else low + 1.0


def _sides(trace: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """What rows and columns of a heat map are called."""
    z = trace.z
    rows = trace.y if trace.y is not None else range(len(z))
    columns = trace.x if trace.x is not None else range(len(z[0]) if len(z) else 0)
    return list(rows), list(columns)


def _cells(frame: Frame, trace: Any) -> Iterator[str]:
    """Cells of a heat map, those of one colour in one path."""
    low, high = ends_of(trace)
    letter = "d" if trace.meta == "diverging" else "q"
    rows, columns = (axis.numbers(side) for axis, side in zip((frame.y, frame.x), _sides(trace), strict=True))
    paths: dict[int, list[str]] = {}
    words = []
    for i, row in enumerate(trace.z):
        for j, value in enumerate(row):
            if value is None or not math.isfinite(value):
                continue
            share = min(1.0, max(0.0, (float(value) - low) / (high - low)))
            left, right = sorted(frame.at_x(columns[j] + side * _half(columns)) for side in (-1, 1))
            top, bottom = sorted(frame.at_y(rows[i] + side * _half(rows)) for side in (-1, 1))
            gap = 1.0 if right - left > 4 and bottom - top > 4 else 0.0
            box = f"M{left:.1f} {top:.1f}h{right - left - gap:.1f}v{bottom - top - gap:.1f}H{left:.1f}z"
            paths.setdefault(round(share * (LEVELS - 1)), []).append(box)
            if trace.texttemplate and trace.text is not None:
                words.append(_word(trace.text[i][j], (left + right) / 2, (top + bottom) / 2, share, letter))
    for level, boxes in sorted(paths.items()):
        yield f'<path class="{letter}{level}" d="{"".join(boxes)}"/>'
    yield from words


def _word(text: Any, x: float, y: float, share: float, letter: str) -> str:
    strong = abs(share - 0.5) * 2 > STRONG if letter == "d" else share > STRONG
    shown = html.escape(html.unescape(str(text)))
    kind = "in on" if strong else "in"
    return f'<text class="{kind}" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{shown}</text>'


def _bars(frame: Frame, trace: Any, place: int, count: int) -> Iterator[str]:
    lies = _lies(trace)
    along, over = (frame.x, frame.y) if lies else (frame.y, frame.x)
    places, lengths = (trace.y, trace.x) if lies else (trace.x, trace.y)
    colours = trace.marker.color
    base = 0.0 if along.kind != "log" else along.low
    for n, (where, length) in enumerate(zip(over.numbers(places), along.numbers(lengths), strict=True)):
        if not (math.isfinite(where) and math.isfinite(length)):
            continue
        begin = where - 0.4 + 0.8 * place / count
        sides = sorted((begin, begin + 0.8 / count))
        ends = sorted((max(base, along.low), length))
        across, up = (ends, sides) if lies else (sides, ends)
        xs, ys = sorted(map(frame.at_x, across)), sorted(map(frame.at_y, up))
        colour = colours if isinstance(colours, str) or colours is None else colours[n]
        yield (
            f'<rect fill="{colour or MUTED}" x="{xs[0]:.1f}" y="{ys[0]:.1f}" width="{xs[1] - xs[0]:.1f}"'
            f' height="{ys[1] - ys[0]:.1f}"/>'
        )
        if trace.text is not None and not isinstance(trace.text, str) and lies:
            shown = html.escape(html.unescape(str(trace.text[n])))
            yield f'<text x="{xs[1] + 5:.1f}" y="{(ys[0] + ys[1]) / 2 + 4:.1f}">{shown}</text>'


def _line(frame: Frame, trace: Any, before: Any) -> Iterator[str]:
    """A scatter trace: what it fills, its line, its points, their words."""
    mode = trace.mode or "lines"
    xs, ys = frame.at_x(frame.x.numbers(trace.x)), frame.at_y(frame.y.numbers(trace.y))
    points = [(x, y) if math.isfinite(x) and math.isfinite(y) else None for x, y in zip(xs, ys, strict=True)]
    if trace.fill == "tonexty" and before is not None and before.type == "scatter":
        back_x, back_y = frame.at_x(frame.x.numbers(before.x)), frame.at_y(frame.y.numbers(before.y))
        edge = [*points, *reversed(list(zip(back_x, back_y, strict=True)))]
        round_it = " ".join(f"{p[0]:.1f},{p[1]:.1f}" for p in edge if p and all(map(math.isfinite, p)))
        yield f'<polygon fill="{trace.fillcolor or MUTED}" points="{round_it}"/>'
    colour = (
        trace.line.color or (trace.marker.color if isinstance(trace.marker.color, str) else None) or MUTED
    )
    if "lines" in mode and trace.line.width != 0:
        dash = f' stroke-dasharray="{DASHES[trace.line.dash]}"' if trace.line.dash in DASHES else ""
        thick = trace.line.width or 2
        yield f'<path fill="none" stroke="{colour}" stroke-width="{thick}"{dash} d="{_path(points)}"/>'
    if "markers" in mode:
        yield from _points(trace, points, colour)
    if "text" in mode and trace.text is not None:
        texts = trace.text if not isinstance(trace.text, str) else [trace.text] * len(points)
        sides = trace.textposition or "top center"
        for n, (text, point) in enumerate(zip(texts, points, strict=True)):
            if point and text:
                shown = html.escape(html.unescape(str(text)))
                across, down, anchor = _beside(sides if isinstance(sides, str) else sides[n])
                x, y = point[0] + across, point[1] + down
                yield f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{shown}</text>'


def _beside(side: str) -> tuple[float, float, str]:
    """Where a point's name stands: pixels across and down, and where it is held."""
    upright, level = side.split()
    across, anchor = {"left": (-8.0, "end"), "center": (0.0, "middle"), "right": (8.0, "start")}[level]
    return across, {"top": -8.0, "middle": 4.0, "bottom": 18.0}[upright], anchor


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """A line that breaks where a point is missing."""
    words, down = [], False
    for point in points:
        if point:
            words.append(f"{'L' if down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        down = point is not None
    return "".join(words)


def _points(trace: Any, points: Sequence[tuple[float, float] | None], colour: str) -> Iterator[str]:
    size = trace.marker.size if isinstance(trace.marker.size, (int, float)) else 6
    colours = trace.marker.color
    for n, point in enumerate(points):
        if point:
            own = colours if isinstance(colours, str) else None if colours is None else colours[n]
            fill = own if isinstance(own, str) else colour
            x, y, half = *point, size / 2
            if str(trace.marker.symbol).startswith("x"):
                stroke = trace.marker.line.color or fill
                down, up = (
                    f"M{x - half:.1f} {y + side * half:.1f}l{size:g} {-side * size:g}" for side in (-1, 1)
                )
                yield f'<path stroke="{stroke}" stroke-width="2" d="{down}{up}"/>'
            else:
                yield f'<circle fill="{fill}" cx="{x:.1f}" cy="{y:.1f}" r="{half:g}"/>'
