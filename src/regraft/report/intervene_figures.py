"""Figures of the experiments in `intervene/`."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import dendrogram

from regraft.report.drawing import (
    DIVERGING,
    FIRST,
    MARGIN,
    MUTED,
    SEQUENTIAL,
    Drawing,
    axis_labels,
    bars,
    base,
    draws,
    heatmap,
)


def knockout_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Bars for single knockouts, matrices for pairs, a line for greedy pruning."""
    if "synergy" in dataset:
        loss = heatmap(dataset.increase.values, dataset.other.values, dataset.block.values, "nats per token")
        synergy = heatmap(dataset.synergy.values, dataset.other.values, dataset.block.values, "nats per token", True)
        for figure in (loss, synergy):
            figure.update_layout(xaxis_title="block", yaxis_title="block")
        return [("Loss added when both are skipped", loss), ("Synergy: more (blue) or less than the sum of both", synergy)]
    if "removed" in dataset:
        return [("Loss while blocks are removed one after the other", greedy_line(dataset))]
    figure = bars(dataset.block.values, dataset.ratio.values, "skipped block", "loss / clean loss", "x clean", log=True)
    figure.add_hline(y=1.0, line_color=MUTED, line_width=1, line_dash="dot")
    return [("Loss with one block skipped, relative to the whole model (logarithmic)", figure)]


def greedy_line(dataset: xr.Dataset) -> go.Figure:
    """Loss ratio against the number of removed blocks, each point named by its block."""
    figure = base()
    figure.add_scatter(
        x=[0, *dataset.step.values.tolist()], y=[1.0, *dataset.ratio.values.tolist()], mode="lines+markers+text",
        text=["whole model", *[f"- {name}" for name in dataset.removed.values]], textposition="top center",
        line_color=FIRST, hovertemplate="%{text}<br>%{y:.3f} x clean<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="blocks removed", dtick=1)
    figure.update_yaxes(title="loss / clean loss")
    return figure


def knockout_finding(dataset: xr.Dataset) -> str:
    """What skipping says about this model, in one sentence from measured numbers."""
    if "ratio" not in dataset or "block" not in dataset.ratio.dims:
        return ""
    ratio = dataset.ratio
    worst, least = int(ratio.values.argmax()), int(ratio.values.argmin())
    rest = np.delete(ratio.values, worst)
    return (
        f"Block {ratio.block.values[worst]} is the critical one: without it the loss is {float(ratio[worst]):.1f} times the "
        f"clean {dataset.attrs['clean_loss']:.3f} nats per token; without any other it is {rest.min():.2f} to "
        f"{rest.max():.2f} times. Block {ratio.block.values[least]} is missed least."
    )


def swap_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The cost matrix under its dendrogram, and the mean cost by distance."""
    distance = bars(
        dataset.distance.values, dataset.distance_cost.values, "distance between the two blocks", "nats per token", "nats"
    )
    distance.update_traces(marker_color=MUTED)
    return [
        ("Loss added when two blocks change places, ordered by similarity", swap_map(dataset)),
        ("By distance", distance),
    ]


def swap_map(dataset: xr.Dataset) -> go.Figure:
    """A dendrogram over the matrix, both in the order of its leaves."""
    order = dataset.leaf_order.values
    names = axis_labels(dataset.block.values[order])
    cost = dataset.cost.values[np.ix_(order, order)]
    tree = dendrogram(dataset.linkage.values, no_plot=True)
    figure = make_subplots(rows=2, cols=1, row_heights=[0.22, 0.78], vertical_spacing=0.02, shared_xaxes=False)
    for xs, ys in zip(tree["icoord"], tree["dcoord"], strict=True):
        places = [(x - 5) / 10 for x in xs]
        figure.add_scatter(x=places, y=ys, mode="lines", line=dict(color=MUTED, width=1.5), hoverinfo="skip", row=1, col=1)
    figure.add_heatmap(
        z=cost, x=list(range(len(names))), y=list(range(len(names))), meta="sequential", colorscale=SEQUENTIAL, xgap=1, ygap=1,
        customdata=[[f"{a} and {b}" for b in names] for a in names],
        hovertemplate="%{customdata}<br>%{z:.4g} nats per token<extra></extra>",
        colorbar=dict(thickness=10, outlinewidth=0, len=0.78, y=0.39, title=dict(text="nats per token", side="right")),
        row=2, col=1,
    )  # fmt: skip
    figure.update_layout(height=560, margin=MARGIN, template="none", showlegend=False)
    ticks: dict[str, Any] = dict(tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.5])
    figure.update_xaxes(visible=False, range=[-0.5, len(names) - 0.5], row=1, col=1)
    figure.update_yaxes(visible=False, row=1, col=1)
    figure.update_xaxes(title="block", **ticks, row=2, col=1)
    figure.update_yaxes(title="block", **ticks, row=2, col=1)
    return figure


def swap_finding(dataset: xr.Dataset) -> str:
    """What swapping says about this model, in one sentence from measured numbers."""
    cost = dataset.cost.values + np.diag(np.full(dataset.sizes["block"], np.nan))
    i, j = np.unravel_index(np.nanargmin(cost), cost.shape)
    names = dataset.block.values
    return (
        f"The cheapest exchange is {names[i]} with {names[j]} (+{cost[i, j]:.3f} nats per token); "
        f"block {names[int(dataset.mean_cost.values.argmax())]} is the dearest to move (+{float(dataset.mean_cost.max()):.2f} on "
        f"average). Interchangeable within {dataset.attrs['tolerance']:.0%} of the clean loss: "
        f"{dataset.attrs['interchangeable_pairs']} of {dataset.attrs['pairs']} pairs."
    )


def patch_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The map of effects."""
    column = dataset.effect.dims[1]
    labels = axis_labels(dataset[column].values)
    if "token" in dataset.coords:
        labels = [f"{str(t).strip() or '·'}<br>{p}" for t, p in zip(dataset.token.values, labels, strict=True)]
    figure = heatmap(
        dataset.effect.values, labels, dataset.block.values, "normalised effect", True,
        hovertemplate="block %{y}, %{x}<br>effect %{z:.3f}<extra></extra>",
    )  # fmt: skip
    largest = max(1.0, float(np.nanmax(np.abs(dataset.effect.values))))
    figure.update_traces(zmin=-largest, zmax=largest, zmid=None, colorscale=DIVERGING)
    figure.update_xaxes(title=f"{column} of the patched activation", tickangle=0)
    figure.update_yaxes(title="block")
    over = f", mean over {dataset.attrs['pairs']} pairs" if dataset.attrs["pairs"] > 1 else ""
    wide = f", {dataset.attrs['window']} blocks at once" if dataset.attrs["window"] > 1 else ""
    drawn = [(f"Effect of patching {dataset.attrs['site']}, {dataset.attrs['direction']} direction{over}{wide}", figure)]
    if np.isfinite(dataset.attribution.values).any():
        drawn.append(("Each cell measured, against its first-order estimate from one backward pass", attribution_figure(dataset)))
    return drawn


def attribution_figure(dataset: xr.Dataset) -> go.Figure:
    """Measured effect over attribution, one point for each cell, and the line on which both are the same."""
    effect, estimate = dataset.effect.values, dataset.attribution.values
    column = str(dataset.effect.dims[1])
    hover = np.array([[f"block {b}, {column} {c}" for c in dataset[column].values] for b in dataset.block.values])
    figure = base(340)
    ends = [float(np.nanmin([effect, estimate])), float(np.nanmax([effect, estimate]))]
    figure.add_scatter(x=ends, y=ends, mode="lines", line=dict(color=MUTED, dash="dot"), hoverinfo="skip")
    figure.add_scatter(
        x=estimate.ravel(), y=effect.ravel(), mode="markers", marker=dict(color=FIRST, size=6), text=hover.ravel(),
        hovertemplate="%{text}<br>measured %{y:.3f}<br>estimated %{x:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="attribution: difference times gradient")
    figure.update_yaxes(title="measured effect")
    return figure


def patch_finding(dataset: xr.Dataset) -> str:
    """Where the answer's information sits, and between which blocks it moves, from measured numbers."""
    effect = dataset.effect.values
    attrs = dataset.attrs
    span = (
        f"Logit of the answer minus the wrong one: {attrs['target_value']:+.1f} in the run that is patched, "
        f"{attrs['source_value']:+.1f} in the run that the activations come from. "
    )
    if np.isfinite(attrs["attribution_correlation"]):
        span += f"Attribution, from one backward pass, correlates with it by {attrs['attribution_correlation']:.2f}. "
    if "neuron" in dataset.dims:
        best = int(np.nanargmax(effect[0]))
        return span + f"N{best}@L{dataset.block.values[0]} carries most, {effect[0, best]:.3f} of the difference."
    if "head" in dataset.dims:
        block, head = np.unravel_index(np.nanargmax(effect), effect.shape)
        return (
            span
            + f"Head {head} of block {dataset.block.values[block]} carries most, {effect[block, head]:.2f} of the difference."
        )
    if "token" not in dataset.coords or effect.shape[0] < 2:
        return span
    words = [repr(str(t)) for t in dataset.token.values]
    carrying = effect.argmax(1)
    first, last = carrying[0], carrying[-1]
    moved = next((b for b in range(len(carrying)) if effect[b, first] < 0.5), len(carrying))
    if first == last or moved == len(carrying):
        return span + f"The effect stays with {words[first]}."
    arrived = next((b for b in range(len(carrying)) if effect[b, last] > 0.5), len(carrying))
    names = dataset.block.values
    return span + (
        f"At {words[first]} the patch works (effect above one half) up to block {names[moved - 1]} and no more from block "
        f"{names[moved]} on; at {words[last]} it works from block {names[arrived]} on: the information moves between blocks "
        f"{names[moved - 1]} and {names[moved]}."
    )


def replacement_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Loss for each change in one block, and in all."""
    shown = np.log10(np.maximum(dataset.increase.values, 1e-4))
    figure = heatmap(
        shown, dataset.block.values, dataset.change.values, "log10 of nats per token above clean",
        customdata=dataset.increase.values,
        hovertemplate="%{y} in block %{x}<br>%{customdata:+.4f} nats per token<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis_title="block", height=150 + 30 * dataset.sizes["change"], margin_l=110)
    figure.update_yaxes(autorange="reversed")
    whole = bars(dataset.change.values, dataset.everywhere.values, "change", "nats per token above clean", "nats per token")
    return [("Loss with one block changed (logarithmic)", figure), ("Loss with every block changed", whole)]


def replacement_finding(dataset: xr.Dataset) -> str:
    """The cheapest and the dearest change that is not the model's own."""
    felt = {str(c): float(v) for c, v in zip(dataset.change.values, dataset.everywhere.values, strict=True) if np.isfinite(v)}
    own = [name for name, value in felt.items() if abs(value) < 1e-4]
    others = {name: value for name, value in felt.items() if name not in own}
    if not others:
        return "Nothing but the model's own functions was put in."
    low, high = min(others, key=others.__getitem__), max(others, key=others.__getitem__)
    said = f" ({', '.join(own)} changes nothing: it is the model's own)" if own else ""
    return (
        f"In every block at once, {low} costs least ({others[low]:+.3f} nats per token) and {high} most "
        f"({others[high]:+.2f}){said}."
    )


draws(
    "replacement",
    Drawing(
        "Activation and norm replacement",
        "Does it matter which nonlinearity or norm a block uses?",
        "A pale row is a function that a block does not distinguish from its own; identity takes the nonlinearity away "
        "altogether. A block where even that is pale does nearly linear work in its MLP.",
        replacement_figures,
        replacement_finding,
        ("increase", "everywhere"),
    ),
)
draws(
    "knockout",
    Drawing(
        "Knockout",
        "Which blocks can the model not do without?",
        "Each bar is the loss on the model's own completions when one block is skipped, as a multiple of the whole model's "
        "loss; the dotted line is no loss at all. The scale is logarithmic, so a bar twice as high is far more than twice as "
        "bad.",
        knockout_figures,
        knockout_finding,
        ("loss", "increase", "ratio", "synergy", "removed"),
    ),
)
draws(
    "swap",
    Drawing(
        "Swap cost",
        "Which blocks could change places?",
        "Each cell is the loss added when the two blocks are exchanged: pale pairs do nearly the same work, dark ones do not. "
        "The tree above joins blocks that are cheap to exchange with one another first.",
        swap_figures,
        swap_finding,
        ("cost",),
    ),
)
draws(
    "patch",
    Drawing(
        "Activation patching",
        "Where in the model is the answer's information, and when does it move?",
        "Each cell puts one activation of the other run into this one: 1 (full blue) means that this single activation makes "
        "the answer as likely as in the run that it came from, 0 that it changes nothing. Follow the strong cells upwards to see "
        "at which token the information sits and between which blocks it moves on.",
        patch_figures,
        patch_finding,
        ("logit_difference", "effect", "attribution", "effect_error"),
    ),
)
