"""Figures of the experiments in `intervene/`."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import dendrogram

from regraft.reporting.figures.intervene_panels import knockout_panels, swap_panels
from regraft.reporting.theme import (
    FIRST,
    FLOORED,
    MARGIN,
    MUTED,
    SEQUENTIAL,
    Drawing,
    Label,
    axis_labels,
    bar_title,
    bars,
    base,
    heatmap,
    lines,
    plain_text,
)
from regraft.reporting.wording import (
    LEAST_LOSS,
    capital,
    counted,
    differ,
    highest,
    listed,
    lowest,
    named_blocks,
    not_finite,
    signed,
)

NOTHING = 1e-4
"""Nats per token that no figure shows."""


def knockout_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Bars for single knockouts, matrices for pairs, a line for greedy pruning."""
    if "synergy" in dataset:
        loss = heatmap(dataset.increase.values, dataset.other.values, dataset.block.values, "nats per token")
        synergy = heatmap(
            dataset.synergy.values, dataset.other.values, dataset.block.values, "nats per token", True
        )
        for figure in (loss, synergy):
            figure.update_layout(xaxis_title="block", yaxis_title="block")
        return [
            ("Loss added when both are skipped", loss),
            ("Synergy: more (blue) or less than the sum of both", synergy),
        ]
    if "removed" in dataset:
        return [("Loss while blocks are removed one after the other", greedy_line(dataset))]
    if not relative(dataset):
        figure = bars(
            dataset.block.values, dataset.loss.values, "skipped block", "nats per token", "nats per token"
        )
        name = "Loss with one block skipped; the whole model has none that could be a measure"
        return [(name, figure), *_by_region(dataset)]
    figure = bars(
        dataset.block.values, dataset.ratio.values, "skipped block", "loss / clean loss", "x clean", log=True
    )
    figure.add_hline(y=1.0, line_color=MUTED, line_width=1, line_dash="dot")
    name = "Loss with one block skipped, relative to the whole model (logarithmic)"
    return [(name, figure), *_by_region(dataset)]


def _by_region(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """What skipping a block adds to the loss of each region of the text."""
    if "region" not in dataset.dims:
        return []
    added = {
        str(name): dataset.region_increase.sel(region=name).values
        for name in dataset.region.values
        if np.isfinite(dataset.region_increase.sel(region=name).values).any()
    }
    figure = lines(dataset.block.values, added, "skipped block", "nats per token above clean")
    return [("Loss added in each region of the text", figure)]


def relative(dataset: xr.Dataset) -> bool:
    """Whether the clean loss is large enough to say losses in multiples of it."""
    return bool(dataset.attrs["clean_loss"] >= LEAST_LOSS)


def greedy_line(dataset: xr.Dataset) -> go.Figure:
    """Loss ratio against the number of removed blocks, each point named by its block; the loss where the
    clean one is none."""
    figure = base()
    times = relative(dataset)
    start, rest = (1.0, dataset.ratio.values) if times else (dataset.attrs["clean_loss"], dataset.loss.values)
    figure.add_scatter(
        x=[0, *dataset.step.values.tolist()], y=[start, *rest.tolist()], mode="lines+markers+text",
        text=["whole model", *[plain_text(f"- {name}") for name in dataset.removed.values]],
        textposition="top center",
        line_color=FIRST,
        hovertemplate=f"%{{text}}<br>%{{y:.3f}} {'x clean' if times else 'nats per token'}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="blocks removed", dtick=1)
    figure.update_yaxes(title="loss / clean loss" if times else "nats per token")
    return figure


def knockout_finding(dataset: xr.Dataset) -> str:
    """What skipping says about this model, from measured numbers."""
    if "removed" in dataset:
        return _greedy_finding(dataset)
    if "synergy" in dataset:
        return _pairs_finding(dataset)
    if "ratio" not in dataset or "block" not in dataset.ratio.dims:
        return ""
    names, clean = dataset.block.values, float(dataset.attrs["clean_loss"])
    values = dataset.ratio.values if relative(dataset) else dataset.loss.values
    worst, least = highest(values), lowest(values)
    broken = not_finite(values, names).replace(" With ", " Without ")
    if not worst:
        return broken.strip()

    number, unit = (_times, " times") if relative(dataset) else (lambda value: f"{value:.3f}", "")
    whole = f"{unit} the clean {clean:.3f} nats per token" if unit else f" nats per token, clean {clean:.3f}"
    most = f"{number(values[worst[0]])}{whole}"
    rest = np.delete(values, worst)
    rest = rest[np.isfinite(rest)]
    if not len(rest):
        alone = (
            f"block {names[0]}, the only one,"
            if len(names) == 1
            else f"{named_blocks(names[worst])}, each alone,"
        )
        return f"Without {alone} the loss is {most}.{broken}"
    if values[worst[0]] <= (1.0 if unit else clean):
        return f"No block is missed: without any one of them the loss is at most {most}.{broken}"
    ends = dict.fromkeys([number(rest.min()), number(rest.max())])
    first = f"Block {names[worst[0]]} is the critical one: without it" if len(worst) == 1 else (
        f"{capital(named_blocks(names[worst]))} are missed most: without any one of them"
    )  # fmt: skip
    last = f" Block {names[least[0]]} is missed least." if len(least) == 1 and len(rest) > 1 else ""
    return f"{first} the loss is {most}; without any other it is {' to '.join(ends)}{unit}.{last}{broken}"


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 2 else f"{value:.1f}"


def _greedy_finding(dataset: xr.Dataset) -> str:
    """How many blocks can go within the limit."""
    limit, clean, steps = dataset.attrs["limit"], dataset.attrs["clean_loss"], dataset.sizes["step"]
    bound = f"{limit:g} times the clean {clean:.3f} nats per token"
    if not relative(dataset):
        return (
            f"The clean loss is {clean:.3f} nats per token: no multiple of it is a limit to remove blocks"
            " within."
        )
    if not steps:
        return f"No block can go: without any one of them the loss passes {bound}."
    gone = listed(dataset.removed.values, 12)
    return (
        f"{counted(steps, 'block')} of {dataset.sizes['block']} can go within {bound}: {gone}, in this order;"
        f" the loss is then {_times(float(dataset.ratio.values[-1]))} times the clean one."
    )


def _pairs_finding(dataset: xr.Dataset) -> str:
    """The pair whose blocks depend most on each other."""
    synergy, names = np.tril(dataset.synergy.values, -1), dataset.block.values
    if not differ(synergy) or len(highest(np.abs(synergy).ravel())) > 1:
        return ""
    i, j = np.unravel_index(highest(np.abs(synergy).ravel())[0], synergy.shape)
    together = f"skipped together they cost {abs(synergy[i, j]):.3f} nats per token"
    if synergy[i, j] > 0:
        return (
            f"Blocks {names[j]} and {names[i]} stand in most for each other: {together} more than the sum of"
            " what each costs alone."
        )
    return (
        f"Blocks {names[j]} and {names[i]} have most in common: {together} less than the sum of what each"
        " costs alone."
    )


def swap_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The cost matrix under its dendrogram, and the mean cost by distance."""
    distance = bars(
        dataset.distance.values,
        dataset.distance_cost.values,
        "distance between the two blocks",
        "nats per token",
        "nats",
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
    tree = (
        dendrogram(dataset.linkage.values, no_plot=True)
        if len(dataset.linkage)
        else {"icoord": [], "dcoord": []}
    )
    figure = make_subplots(
        rows=2, cols=1, row_heights=[0.22, 0.78], vertical_spacing=0.02, shared_xaxes=False
    )
    for xs, ys in zip(tree["icoord"], tree["dcoord"], strict=True):
        places = [(x - 5) / 10 for x in xs]
        figure.add_scatter(
            x=places, y=ys, mode="lines", line=dict(color=MUTED, width=1.5), hoverinfo="skip", row=1, col=1
        )
    figure.add_heatmap(
        z=cost, x=list(range(len(names))), y=list(range(len(names))), meta="sequential",
        colorscale=SEQUENTIAL, xgap=1, ygap=1,
        customdata=[[Label(f"{a} and {b}") for b in names] for a in names],
        hovertemplate="%{customdata}<br>%{z:.4~g} nats per token<extra></extra>",
        colorbar=dict(
            thickness=10, outlinewidth=0, len=0.78, y=0.39, title=bar_title("nats per token")
        ),
        row=2, col=1,
    )  # fmt: skip
    figure.update_layout(height=560, margin=MARGIN, template="none", showlegend=False)
    ticks: dict[str, Any] = dict(
        tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.5]
    )
    figure.update_xaxes(visible=False, range=[-0.5, len(names) - 0.5], row=1, col=1)
    figure.update_yaxes(visible=False, row=1, col=1)
    figure.update_xaxes(title="block", **ticks, row=2, col=1)
    figure.update_yaxes(title="block", **ticks, row=2, col=1)
    return figure


def swap_finding(dataset: xr.Dataset) -> str:
    """What swapping says about this model, from measured numbers."""
    names, attrs = dataset.block.values, dataset.attrs
    cost = np.where(np.tril(np.ones(dataset.cost.shape), -1) > 0, dataset.cost.values, np.nan)
    pairs = [
        (int(i), int(j)) for j, i in (np.unravel_index(place, cost.shape) for place in lowest(cost.ravel()))
    ]
    if not pairs:
        return "There are no two blocks whose exchange gives a finite loss."
    least = signed(cost[pairs[0][1], pairs[0][0]])
    named = [f"{names[i]} with {names[j]}" for i, j in pairs]
    if not differ(cost):
        each = "Exchanging" if len(pairs) == 1 else "Each exchange costs the same:"
        sentence = f"{each} {listed(named)} {'costs ' if len(pairs) == 1 else ''}{least} nats per token."
    else:
        sentence = (
            f"The cheapest exchange is {named[0]}"
            if len(pairs) == 1
            else f"The cheapest exchanges are {listed(named)}"
        )
        sentence += f" ({least} nats per token)"
        mean = dataset.mean_cost.values
        dear = highest(mean)
        if len(dear) == 1 and mean[dear[0]] > 0 and np.isfinite(mean).sum() > 1:
            sentence += (
                f"; block {names[dear[0]]} is the dearest to move ({signed(mean[dear[0]], 2)} on average)"
            )
        sentence += "."
    if attrs.get("clean_loss", 1.0) < LEAST_LOSS:
        return sentence
    return (
        f"{sentence} Interchangeable within {attrs['tolerance']:.0%} of the clean loss:"
        f" {attrs['interchangeable_pairs']} of {counted(attrs['pairs'], 'pair')}."
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
    whole = bars(
        dataset.change.values,
        dataset.everywhere.values,
        "change",
        "nats per token above clean",
        "nats per token",
    )
    return [
        (
            f"Loss added with one block changed ({FLOORED})",
            figure,
        ),
        ("Loss added with every block changed", whole),
    ]


def replacement_finding(dataset: xr.Dataset) -> str:
    """The cheapest and the dearest change that is not the model's own."""
    put = {str(c): float(v) for c, v in zip(dataset.change.values, dataset.everywhere.values, strict=True)}
    felt = {name: value for name, value in put.items() if np.isfinite(value)}
    own = [name for name, value in felt.items() if abs(value) < NOTHING]
    names = [name for name in felt if name not in own]
    values = [felt[name] for name in names]
    sentence = f" ({listed(own)} {'changes' if len(own) == 1 else 'change'} nothing there)" if own else ""
    if not put:
        return ""
    if not felt:
        return "No change in every block at once gives a finite loss."
    if not names:
        return (
            f"{capital(listed(own))} in every block at once"
            f" {'changes' if len(own) == 1 else 'change'} nothing."
        )
    low, high = lowest(values), highest(values)
    if not differ(values):
        each = "" if len(names) == 1 else " each"
        return (
            f"In every block at once, {listed(names)} {'costs' if len(names) == 1 else 'cost'}{each} "
            + f"{signed(values[0])} nats per token{sentence}."
        )
    return (
        "In every block at once,"
        f" {listed([names[i] for i in low])} {'costs' if len(low) == 1 else 'cost'} least"
        f" ({signed(values[low[0]])} nats per token) and {listed([names[i] for i in high])} most"
        f" ({signed(values[high[0]], 2)}){sentence}."
    )


REPLACEMENT = Drawing(
    "Activation and norm replacement",
    "Does it matter which nonlinearity or norm a block uses?",
    "A row at the low end of the colour bar is a function that a block does not distinguish from its own;"
    " identity takes the nonlinearity away altogether. A block where even that stays low does nearly linear"
    " work in its MLP.",
    replacement_figures,
    replacement_finding,
    ("increase", "everywhere"),
)
KNOCKOUT = Drawing(
    "Knockout",
    "Which blocks can the model not do without?",
    "Each bar is the loss on the model's own completions when one block is skipped, as a multiple of the"
    " whole model's loss; the dotted line is no added loss. The scale is logarithmic: equal steps are"
    " equal factors.",
    knockout_figures,
    knockout_finding,
    ("loss", "increase", "ratio", "synergy", "removed"),
    knockout_panels,
)
SWAP = Drawing(
    "Swap cost",
    "Which blocks could change places?",
    "Each cell is the loss added when the two blocks are exchanged: pairs at the low end of the colour bar do"
    " nearly the same work, those at the high end do not. The tree above joins blocks that are cheap to"
    " exchange with one another first.",
    swap_figures,
    swap_finding,
    ("cost",),
    swap_panels,
)
