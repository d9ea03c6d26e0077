"""The look that all figures share, and what a page says about one result.

Colours are chosen in the page, so that one figure serves a light and a dark theme: a trace whose `meta` names
a scale is given that scale's colours by the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.core.quantities import READING
from regraft.reporting.markup import Marked

FIRST, SECOND, THIRD, FOURTH, MUTED = "#3b7dd8", "#e08a2b", "#4f9d69", "#a05fb4", "#8a919c"
PALETTE = (FIRST, SECOND, MUTED, THIRD, FOURTH, "#c2571a", "#7fb3d5")
LOOKS = (*[("solid", "circle")] * 4, ("dash", "square"), ("dot", "diamond"), ("dashdot", "x"))
"""Dash and mark of each line: beyond four, colour alone does not tell them apart."""
SEQUENTIAL = [[0.0, "#f3f6fb"], [0.35, "#a9c8ef"], [0.7, "#4c8ddb"], [1.0, "#173f78"]]
DIVERGING = [[0.0, "#c2571a"], [0.25, "#efb183"], [0.5, "#f4f4f2"], [0.75, "#8fb7e6"], [1.0, "#1f5fae"]]
THEMES = {
    "light": {
        "ink": "#1c2128", "grid": "#e3e6eb", "hover": "#ffffff", "sequential": SEQUENTIAL,
        "diverging": DIVERGING,
    },
    "dark": {
        "ink": "#e6e9ee", "grid": "#2b313b", "hover": "#262c35",
        "sequential": [[0.0, "#1d2430"], [0.35, "#274c80"], [0.7, "#4c8ddb"], [1.0, "#cfe2fb"]],
        "diverging": [
            [0.0, "#f0975a"], [0.25, "#8a4a22"], [0.5, "#23272e"], [0.75, "#2b5c9c"], [1.0, "#8fc0ff"],
        ],
    },
}  # fmt: skip
"""What the page gives figures in each theme: ink, grid, the box at the pointer, and the two scales."""
LEVELS = 17
"""Colours of a scale in a still picture: odd, so that one is the middle of a scale around zero."""
MARGIN = dict(l=64, r=16, t=24, b=64)
"""Pixels around a figure: room for addresses on the left and words below."""
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
}
"""How a figure behaves on every page: nothing offers to send a reader's data anywhere."""


WHERE = {"light": "{}", "dark": "@media screen and (prefers-color-scheme: dark) {{{}}}"}
"""Where a page has which theme, as its style says it: on paper the light one."""


def scale_styles(where: Mapping[str, str] = WHERE) -> str:
    """Both scales in both themes as a page's style: `q0` to `q16` from least to most, `d0` to `d16` around
    zero."""
    rules = []
    for theme, around in where.items():
        colours = "".join(
            f".{letter}{level}{{fill:{colour_of(THEMES[theme][scale], level / (LEVELS - 1))}}}"
            for letter, scale in (("q", "sequential"), ("d", "diverging"))
            for level in range(LEVELS)
        )
        rules.append(around.format(colours))
    return "\n".join(rules)


def colour_of(scale: Sequence[Sequence[Any]], share: float) -> str:
    """The colour of a scale at a share of its length, mixed from its neighbours.

    >>> colour_of([[0.0, "#000000"], [1.0, "#ff8000"]], 0.5)
    '#804000'
    """
    below, above = next((a, b) for a, b in pairwise(scale) if share <= b[0])
    along = (share - below[0]) / (above[0] - below[0])
    mixed = (
        round(int(below[1][i : i + 2], 16) * (1 - along) + int(above[1][i : i + 2], 16) * along)
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{one:02x}" for one in mixed)


class Panel(NamedTuple):
    """A figure that a page keeps folded: its caption, itself, and how to read it."""

    caption: str
    figure: go.Figure
    reading: str


class Listing(NamedTuple):
    """A short table of texts that a page shows above a figure: its caption, header and rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Marked]]


def panel(dataset: xr.Dataset, name: str, caption: str, figure: go.Figure) -> Panel:
    """A folded figure of one variable, which itself says how it is read."""
    return Panel(caption, figure, dataset[name].attrs[READING])


def no_panels(dataset: xr.Dataset) -> Sequence[Panel]:
    """What a drawing without folded figures folds."""
    return ()


def no_listings(dataset: xr.Dataset) -> Sequence[Listing]:
    """What a drawing without texts lists."""
    return ()


@dataclass(frozen=True)
class Drawing:
    """Everything that a page says about one experiment's result: the first of `figures` is its main one, the
    others and `folded` are those that a reader opens, `listings` are texts that belong to it."""

    title: str
    question: str
    how_to_read: str
    figures: Callable[[xr.Dataset], list[tuple[str, go.Figure]]]
    finding: Callable[[xr.Dataset], str]
    table: tuple[str, ...] = ()
    folded: Callable[[xr.Dataset], Sequence[Panel]] = no_panels
    listings: Callable[[xr.Dataset], Sequence[Listing]] = no_listings

    def all_figures(self, dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
        """The main figures, then the folded ones."""
        return [*self.figures(dataset), *((p.caption, p.figure) for p in self.folded(dataset))]


AWAY = "&nbsp;<br>"
"""Keeps a colour bar's title from its numbers, which it would touch."""
FLOORED = "logarithmic; gains and less than 0.0001 at the low end"
"""What a caption says of a map of added losses on a logarithmic scale."""
HEIGHT = 380
"""Pixels of a figure that says nothing else."""


def base(height: int = HEIGHT, **layout: Any) -> go.Figure:
    """An empty figure in the house style."""
    figure = go.Figure()
    figure.update_layout(
        height=height, margin=MARGIN, template="none", showlegend=False, bargap=0.25, **layout
    )
    return figure


class Label(str):
    """Text that a figure can take as it is: marks in it are meant."""


def plain_text(text: Any) -> Label:
    """Text as a figure shows it, whatever it holds: a figure would read tags, entities and placeholders in it
    as its own."""
    if isinstance(text, Label):
        return text
    plain = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "&#37;{")
    return Label(plain.replace("\n", "⏎"))


def quoted(text: Any) -> str:
    """A piece of text in quotes, so that a space at its end can be seen."""
    return repr(str(text))


def traces_of(figure: go.Figure) -> list[Any]:
    """The traces of a figure."""
    return list(figure.data)


def axis_labels(values: Any) -> list[str]:
    """Category labels for an axis, one for each value."""
    return [plain_text(value) for value in values]


def token_labels(texts: Any) -> list[Label]:
    """One label for each token: its text, and its place under it."""
    return [Label(f"{plain_text(str(text).strip() or '·')}<br>{place}") for place, text in enumerate(texts)]


def bars(x: Any, y: Any, x_title: str, y_title: str, unit: str, log: bool = False) -> go.Figure:
    """One bar for each x, with the unit on hover."""
    figure = base()
    hover = f"{x_title} %{{x}}<br>%{{y:.4~g}} {unit}<extra></extra>"
    figure.add_bar(x=axis_labels(x), y=list(y), marker_color=FIRST, hovertemplate=hover)
    figure.update_xaxes(title=x_title, type="category")
    figure.update_yaxes(title=y_title, type="log" if log else "linear")
    return figure


def grouped_bars(
    x: Any, series: Mapping[str, Any], x_title: str, y_title: str, log: bool = False
) -> go.Figure:
    """For each x one bar of every named series, side by side, with a legend."""
    figure = base(360, barmode="group")
    assert len(series) <= len(PALETTE), "more bars than the palette can tell apart"
    for (name, y), colour in zip(series.items(), PALETTE, strict=False):
        hover = f"{plain_text(name)}<br>%{{x}}: %{{y:.4~g}} {y_title}<extra></extra>"
        figure.add_bar(
            x=axis_labels(x), y=list(y), name=plain_text(name), marker_color=colour, hovertemplate=hover
        )
    figure.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
    )
    figure.update_xaxes(title=x_title, type="category")
    figure.update_yaxes(title=y_title, type="log" if log else "linear")
    return figure


def lines(x: Any, series: dict[str, Any], x_title: str, y_title: str) -> go.Figure:
    """One line for each named series over the same x, with a legend where there are several."""
    figure = base(340)
    assert len(series) <= len(PALETTE), "more lines than the palette can tell apart"
    for (name, y), colour, (dash, symbol) in zip(series.items(), PALETTE, LOOKS, strict=False):
        hover = f"{plain_text(name)}<br>{x_title} %{{x}}: %{{y:.4~g}}<extra></extra>"
        figure.add_scatter(
            x=list(x),
            y=list(y),
            name=plain_text(name),
            mode="lines+markers",
            line=dict(color=colour, dash=dash),
            marker_symbol=symbol,
            hovertemplate=hover,
        )
    figure.update_layout(
        showlegend=len(series) > 1, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0)
    )
    if len(series) > 1:
        figure.update_layout(margin_t=64)
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    return figure


def scatter(x: Any, y: Any, names: Any, x_title: str, y_title: str) -> go.Figure:
    """One named point for each pair of values."""
    figure = base(360)
    figure.add_scatter(
        x=list(x), y=list(y), mode="markers+text", text=axis_labels(names), textposition=label_sides(x, y),
        marker=dict(size=8, color=FIRST),
        hovertemplate=f"%{{text}}<br>{x_title} %{{x:.4~g}}<br>{y_title} %{{y:.4~g}}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    return figure


PLACES = ("top center", "bottom center", "middle right", "middle left", "top right", "bottom left")
"""Where a point's name may stand."""
TINY, NEAR = 1e-30, 0.08
"""Share of both axes within which two names would lie on one another."""


def label_sides(x: Any, y: Any) -> list[str]:
    """Places of points' names: those of points that lie near each other stand on different sides."""
    sides = [np.asarray(side, dtype=float) for side in (x, y)]
    known = [side[np.isfinite(side)] for side in sides]
    wide = [max(float(np.ptp(side)), TINY) if len(side) else 1.0 for side in known]
    taken: list[int] = []
    for i in range(len(sides[0])):
        near = {
            taken[j]
            for j in range(i)
            if all(abs(side[i] - side[j]) < NEAR * w for side, w in zip(sides, wide, strict=True))
        }
        taken.append(next((place for place in range(len(PLACES)) if place not in near), i % len(PLACES)))
    return [PLACES[place] for place in taken]


def ranked_bars(names: Any, values: Any, x_title: str) -> go.Figure:
    """A ranked list: one bar for each name, the first on top."""
    figure = base(110 + 26 * len(names))
    hover = f"%{{y}}<br>{x_title} %{{x:.4~g}}<extra></extra>"
    labels = axis_labels(names)
    figure.add_bar(y=labels, x=list(values), orientation="h", marker_color=FIRST, hovertemplate=hover)
    figure.update_layout(margin_l=170)
    figure.update_yaxes(type="category", autorange="reversed", tickmode="linear")
    figure.update_xaxes(title=x_title)
    return figure


def banded(x: Any, series: dict[str, tuple[Any, Any, Any]], x_title: str, y_title: str) -> go.Figure:
    """Lines with a band around each: (middle, low, high) by name."""
    figure = lines(x, {name: middle for name, (middle, _, _) in series.items()}, x_title, y_title)
    for (_, low, high), colour in zip(series.values(), PALETTE, strict=False):
        around = dict(mode="lines", line_width=0, showlegend=False, hoverinfo="skip")
        figure.add_scatter(x=list(x), y=list(low), **around)
        figure.add_scatter(x=list(x), y=list(high), fill="tonexty", fillcolor=_faint(colour), **around)
    return figure


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def bar_title(unit: str) -> dict[str, str]:
    """What stands beside a colour bar, an empty line away from its numbers."""
    return {"text": f"{AWAY}{unit}", "side": "right"}


def heatmap(z: Any, x: Any, y: Any, unit: str, diverging: bool = False, **extra: Any) -> go.Figure:
    """A matrix with its colour bar; `diverging` centres the colours on zero."""
    figure = base(440)
    centre: dict[str, Any] = {"zmid": 0} if diverging else {}
    extra.setdefault("hovertemplate", f"%{{y}}, %{{x}}<br>%{{z:.4~g}} {plain_text(unit)}<extra></extra>")
    scale = "diverging" if diverging else "sequential"
    figure.add_heatmap(
        z=z, x=axis_labels(x), y=axis_labels(y), meta=scale,
        colorscale=DIVERGING if diverging else SEQUENTIAL, xgap=1, ygap=1,
        colorbar=dict(thickness=10, outlinewidth=0, title=bar_title(unit)), **centre, **extra,
    )  # fmt: skip
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure
