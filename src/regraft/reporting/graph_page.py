"""An attribution graph as one offline page: features by block and token, the strongest edges between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from regraft.features.attribution import AttributionGraph, GraphNode
from regraft.reporting.plotly_script import write_figure
from regraft.reporting.theme import FIRST, MUTED, base

DRAWN = 300
"""Edges that are drawn: the largest."""


def write_graph_page(file: Path, graph: AttributionGraph) -> None:
    """Write the page."""
    write_figure(graph_figure(graph), file, f"Attribution: {len(graph.nodes)} nodes")


def graph_figure(graph: AttributionGraph) -> go.Figure:
    """Tokens at the bottom, logits at the top, features between, as large as their influence."""
    influence = graph.influence()
    x, y = _places(graph)
    figure = base(720)
    weights = np.abs(graph.weights_nn)
    order = np.argsort(-weights.ravel())[:DRAWN]
    largest = float(weights.max()) or 1.0
    for flat in order:
        target, source = divmod(int(flat), len(graph.nodes))
        weight = float(graph.weights_nn[target, source])
        if weight:
            figure.add_scatter(
                x=[x[source], x[target]], y=[y[source], y[target]], mode="lines", hoverinfo="skip",
                line={"color": FIRST if weight > 0 else MUTED, "width": 0.4 + 3 * abs(weight) / largest},
                opacity=0.35, showlegend=False,
            )  # fmt: skip
    told = [_told(node, float(share)) for node, share in zip(graph.nodes, influence, strict=True)]
    size = 6 + 16 * np.sqrt(influence / max(float(influence.max()), 1e-9))
    figure.add_scatter(
        x=x, y=y, mode="markers", marker={"color": FIRST, "size": size, "line": {"width": 1, "color": MUTED}},
        text=told, hovertemplate="%{text}<extra></extra>", showlegend=False,
    )  # fmt: skip
    last = max(node.block for node in graph.nodes)
    words = [node.text for node in graph.nodes if node.kind == "token"]
    figure.update_xaxes(tickvals=list(range(len(words))), ticktext=words, title="token", zeroline=False)
    figure.update_yaxes(
        tickvals=[-1, *range(last), last],
        ticktext=["token", *map(str, range(last)), "logit"],
        title="block",
        zeroline=False,
    )
    return figure


def _places(graph: AttributionGraph) -> tuple[np.ndarray, np.ndarray]:
    """Columns by token, rows by block; several features of one cell stand side by side."""
    cells: dict[tuple[int, int], int] = {}
    x, y = [], []
    for node in graph.nodes:
        at = (node.position, node.block)
        number = cells.setdefault(at, 0)
        cells[at] += 1
        x.append(node.position + 0.8 * (number % 12) / 12)
        y.append(node.block + 0.12 * (number // 12))
    return np.array(x), np.array(y)


def _told(node: GraphNode, influence: float) -> str:
    if node.kind == "feature":
        return f"{node.name} at {node.text!r}: {node.value:.3g}, influence {influence:.3g}"
    more = "" if node.kind == "token" else f", probability {node.value:.1%}"
    return f"{node.kind} {node.text!r}{more}, influence {influence:.3g}"
