"""Folded figures of knockouts and swaps, and all figures of the causal bottleneck."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import (
    MUTED,
    PALETTE,
    Drawing,
    Panel,
    axis_labels,
    banded,
    bars,
    base,
    heatmap,
    lines,
    panel,
    plain_text,
    ranked_bars,
)
from regraft.reporting.wording import capital, listed

NATS = "nats per token"


def knockout_panels(data: xr.Dataset) -> list[Panel]:
    """Ranked pairs and how often a block is among them; how far the model can be cut."""
    found = []
    for name, title in (
        ("superadditive", "Most super-additive pairs"),
        ("subadditive", "Most sub-additive pairs"),
    ):
        if name in data and len(data[name]):
            figure = ranked_bars(data[f"{name}_pair"].values, data[name].values, NATS)
            found.append(panel(data, name, title, figure))
    if "hub_count" in data:
        counts = bars(data.block.values, data.hub_count.values, "block", "times", "times")
        found.append(panel(data, "hub_count", "How often a block is in the five most super-additive", counts))
    if "removable" in data and data.removable.notnull().any():
        labels = [f"{threshold:g} x" for threshold in data.threshold.values]
        figure = bars(labels, data.removable.values, "loss / clean loss, at most", "blocks", "blocks")
        found.append(panel(data, "removable", "Blocks that can go", figure))
    return found


def swap_panels(data: xr.Dataset) -> list[Panel]:
    """The map in logarithms and in percent, spread by distance, zones, and both ends of the list."""
    found = []
    for name, title, unit in (
        ("cost_log10", "Cost in logarithms", "log10 of nats per token"),
        (
            "cost_percent",
            "Cost in percent of the clean loss (colours from -5 to 20, as published)",
            "percent",
        ),
    ):
        values = data[name].values.copy()
        np.fill_diagonal(values, np.nan)
        extra: dict[str, Any] = {"zmin": -5, "zmax": 20} if name == "cost_percent" else {}
        figure = heatmap(values, data.other.values, data.block.values, unit, **extra)
        figure.update_layout(xaxis_title="block", yaxis_title="block")
        found.append(panel(data, name, title, figure))
    mean, spread = data.distance_cost.values, data.distance_cost_std.values
    by_distance = banded(
        data.distance.values, {"mean": (mean, mean - spread, mean + spread)}, "distance", "nats per token"
    )
    found.append(panel(data, "distance_cost_std", "Mean and spread by distance", by_distance))
    zones = heatmap(data.swap_cluster.values.T, data.block.values, data.clusters.values, "cluster", zmin=1)
    zones.update_traces(text=data.swap_cluster.values.T, texttemplate="%{text}")
    zones.update_layout(xaxis_title="block", yaxis_title="number of clusters", height=240)
    found.append(panel(data, "swap_cluster", "Zones: flat clusters of Ward's tree", zones))
    for name in ("cheapest", "dearest"):
        figure = ranked_bars(data[f"{name}_pair"].values, data[f"{name}_cost"].values, NATS)
        found.append(panel(data, f"{name}_cost", f"The {name} exchanges", figure))
    return found


def bottleneck_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Effect of restoring and of skipping each block, for each kind of prompt, and one against the other."""
    blocks = data.block.values
    kinds = [str(kind) for kind in data.kind.values][: len(PALETTE)]
    helped = {kind: data.restored_effect.sel(kind=kind).values for kind in kinds}
    hurt = {kind: data.knockout_delta.sel(kind=kind).values for kind in kinds}
    effect = lines(blocks, helped, "block whose clean update is put back", "share of the difference")
    effect.add_hline(y=1.0, line_color=MUTED, line_width=1, line_dash="dot")
    delta = lines(blocks, hurt, "skipped block", "nats added to -log p of the answer")
    both = base(380)
    for kind, colour in zip(kinds, PALETTE, strict=False):
        both.add_scatter(
            x=list(hurt[kind]),
            y=list(helped[kind]),
            mode="markers",
            name=plain_text(kind),
            text=axis_labels(f"block {b}, {kind}" for b in blocks),
            marker={"size": 8, "color": colour},
            hovertemplate="%{text}<br>skipping adds %{x:.3g} nats<br>restores %{y:.3f}<extra></extra>",
        )
    both.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin_t=64
    )
    both.update_xaxes(title="nats that skipping adds")
    both.update_yaxes(title="restored effect")
    return [
        ("One block's clean update in the corrupted run: how much of the answer comes back", effect),
        ("The clean run without one block", delta),
        ("Does what restores also hurt?", both),
    ]


def bottleneck_panels(data: xr.Dataset) -> list[Panel]:
    """Every pair by itself."""
    stated = zip(data.pair_kind.values, data.clean.values, data.corrupt.values, strict=True)
    names = [f"{kind}: {clean} | {corrupt}" for kind, clean, corrupt in stated]
    figure = heatmap(data.pair_effect.values, data.block.values, names, "restored effect", zmin=0, zmax=1)
    figure.update_layout(xaxis_title="block", margin_l=430, height=150 + 24 * len(names))
    return [panel(data, "pair_effect", "Every pair of prompts", figure)]


def bottleneck_finding(data: xr.Dataset) -> str:
    """For each kind whether the two blocks are one; where one block is both for all kinds, what stands behind
    it; and what was left out."""
    kinds = [str(kind) for kind in data.kind.values]
    helped, hurt = (set(map(str, data[name].values)) for name in ("bottleneck_block", "critical_block"))
    if len(kinds) > 1 and len(helped) == 1 and helped == hurt and data.sizes["block"] > 1:
        first = helped.pop()
        rest = data.restored_effect.sel(block=[b for b in data.block.values if b != first])
        behind = listed([_strongest(rest.sel(kind=kind), kind) for kind in kinds])
        told = (
            f"On every kind of prompt block {first} both restores most and is missed most."
            f" Behind it most comes back through {behind}."
        )
    else:
        told = capital(f"{listed([_one_kind(data.sel(kind=kind)) for kind in kinds])}.")
    left_out = [reason for reason in str(data.attrs.get("left_out", "")).split("; ") if reason]
    if not left_out:
        return told
    more = f" and {len(left_out) - 2} more" if len(left_out) > 2 else ""
    return f"{told} Left out: {'; '.join(left_out[:2])}{more}."


def _strongest(effect: xr.DataArray, kind: str) -> str:
    most = int(effect.values.argmax())
    return f"block {effect.block.values[most]} on {kind} ones ({effect.values[most]:.0%})"


def _one_kind(one: xr.Dataset) -> str:
    restored, critical = str(one.bottleneck_block.values), str(one.critical_block.values)
    share, pairs = f"{float(one.restored_effect.max()):.0%}", int(one.pairs_of_kind)
    of = f"on {one.kind.values} prompts ({pairs} pair{'s' if pairs > 1 else ''})"
    if restored == critical:
        return f"{of} block {restored} both restores most ({share}) and is missed most"
    return f"{of} block {restored} restores most ({share}) and block {critical} is missed most"


BOTTLENECK = Drawing(
    "Causal bottleneck",
    "Is the block whose restoration helps most the one whose loss hurts most?",
    "The first figure puts what one block adds in the clean run into the run of a prompt that differs in one"
    " thing: 1 means that this alone brings the clean answer back. The second skips the block in the clean"
    " run. A block that is high in both is a bottleneck of the answer; one that is high only in the second is"
    " needed by every answer alike, one that is high only in the first could be done without.",
    bottleneck_figures,
    bottleneck_finding,
    ("restored_effect", "knockout_delta"),
    bottleneck_panels,
)
