"""Figures as a page of either theme shows them, and the figures of the prompt page."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import plotly.graph_objects as go

from regraft.reporting.theme import CONFIG, THEMES, heatmap, plain_text
from regraft.studio.maps import PartMap
from regraft.studio.readings import Lens

LETTERS = 9
"""Letters of a token that fit into a cell."""
CELL, TOP = 26, 90
"""Pixels of a row of a map, and of what stands around it."""


def themed(figure: go.Figure | str, dark: bool) -> dict[str, Any]:
    """A figure as a browser is given it: ink, grid and scales of a theme, on the page's own ground.

    Args:
        figure: a figure, or one as JSON.
        dark: which theme.
    """
    given = json.loads(figure if isinstance(figure, str) else str(figure.to_json()))
    look = THEMES["dark" if dark else "light"]
    for trace in given["data"]:
        if trace.get("meta") in ("sequential", "diverging"):
            trace["colorscale"] = look[trace["meta"]]
    layout = given["layout"]
    ink = {"color": look["ink"], "size": 12, "family": "system-ui, sans-serif"}
    layout |= {"font": ink, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    layout["hoverlabel"] = {"bgcolor": look["hover"], "font": {"color": look["ink"]}, "align": "left"}
    for name in [name for name in layout if name.startswith(("xaxis", "yaxis"))]:
        grid = look["grid"]
        layout[name] |= {"gridcolor": grid, "zerolinecolor": grid, "linecolor": grid, "automargin": True}
    return {"data": given["data"], "layout": layout, "config": {**CONFIG, "displayModeBar": False}}


def lens_figure(lens: Lens, tokens: list[str]) -> go.Figure:
    """Depths over tokens: which token would come next, and how likely it is held to be."""
    columns = [f"{at} {token}" for at, token in enumerate(tokens)]
    cells = [[_cell(word) for word in row] for row in lens.words]
    whole = [[plain_text(repr(word)) for word in row] for row in lens.words]
    rows = _told_apart(lens.rows)
    figure = heatmap(
        lens.share_ST, columns, rows, "probability", text=cells, texttemplate="%{text}", customdata=whole,
        hovertemplate="%{y}, at token %{x}<br>next: %{customdata}, %{z:.3f}<extra></extra>", zmin=0, zmax=1,
    )  # fmt: skip
    return _map(figure, len(rows))


def part_figure(parts: PartMap) -> go.Figure:
    """Parts by block: a click touches one."""
    columns = [str(column) for column in range(parts.values.shape[1])]
    figure = heatmap(
        parts.values, columns, parts.rows, parts.unit, diverging=bool(np.nanmin(parts.values) < 0),
        text=parts.words, texttemplate="%{text}", customdata=parts.sites,
        hovertemplate=f"%{{customdata}}: %{{z:.4~g}} {parts.unit}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(showticklabels=False)
    return _map(figure, len(parts.rows))


def _map(figure: go.Figure, rows: int) -> go.Figure:
    figure.update_layout(height=TOP + CELL * rows, margin=dict(l=72, r=8, t=8, b=48), dragmode=False)
    figure.update_traces(colorbar=dict(thickness=8, outlinewidth=0))
    return figure


def _cell(word: str) -> str:
    bare = word.strip() or repr(word)
    return plain_text(bare if len(bare) <= LETTERS else bare[: LETTERS - 1] + "…")


def _told_apart(rows: list[str]) -> list[str]:
    """Names of depths, a block that comes again with how often it came."""
    seen: dict[str, int] = {}
    told = []
    for row in rows:
        seen[row] = seen.get(row, 0) + 1
        told.append(row if seen[row] == 1 else f"{row} (time {seen[row]})")
    return told
