"""Figures of the experiments on single components: neuron ablation, push."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures.component_panels import ablate_panels, push_panels
from regraft.reporting.theme import (
    FIRST,
    SECOND,
    Drawing,
    axis_labels,
    bars,
    base,
    heatmap,
    plain_text,
    quoted,
)
from regraft.reporting.wording import counted, differ, highest, signed

RANKED = 12
"""Bars that can be read beside each other."""


def neuron_square(values_F: np.ndarray) -> np.ndarray:
    """One block's neurons on a near-square grid, row by row; NaN behind the last."""
    columns = max(1, ceil(sqrt(len(values_F))))
    square = np.full((ceil(len(values_F) / columns), columns), np.nan)
    square.ravel()[: len(values_F)] = values_F
    return square


UNCHANGED = 5e-4
"""Below it a probability of three decimals does not change."""


def ablate_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The heat map of the block with the largest change, crosses where the answer changed, and all blocks in
    one."""
    change, attrs = dataset.change.values, dataset.attrs
    several = attrs.get("prompts", 1) > 1
    change_of, over = ("mean change", f" over {attrs['prompts']:,} prompts") if several else ("change", "")
    largest = np.where(np.isfinite(change), np.abs(change), 0).max(axis=1)
    row = int(largest.argmax())
    one = change[row][np.isfinite(change[row])]
    square = neuron_square(one)
    columns = square.shape[1]
    numbers = np.arange(square.size).reshape(square.shape)
    figure = heatmap(
        np.abs(square), list(range(columns)), list(range(0, square.size, columns)),
        f"size of the {change_of}",
        customdata=np.dstack([numbers, square]),
        hovertemplate="neuron %{customdata[0]}<br>"
        f"{change_of} of the probability %{{customdata[1]:+.4f}}<extra></extra>",
        zmin=0,
    )  # fmt: skip
    crossed = np.flatnonzero(dataset.top1_changed.values[row][: len(one)] > 0)
    mark = dict(symbol="x-thin", size=9, line=dict(width=2, color=SECOND))
    figure.add_scatter(
        x=axis_labels(crossed % columns),
        y=axis_labels(crossed // columns * columns),
        mode="markers",
        marker=mark,
        hoverinfo="skip",
    )
    figure.update_layout(
        height=560, xaxis_title="neuron, added to the row's first", yaxis_title="first neuron of the row"
    )
    figure.update_yaxes(autorange="reversed")
    answer = "the answers" if over and attrs["target_id"] < 0 else quoted(attrs["target"])
    caption = (
        f"{change_of} of the probability of {answer}{over} (×: another"
        f" answer{' in any of them' if over else ''})"
    )
    drawn = [(f"Block {dataset.block.values[row]}: {caption}", figure)]
    if dataset.sizes["block"] > 1:
        chart = bars(dataset.block.values, largest, "block", change_of, "of probability")
        drawn.append((f"Largest {change_of} by any one neuron of a block{over}", chart))
    return drawn


def ablate_finding(dataset: xr.Dataset) -> str:
    """The neuron that matters most and how many are large."""
    change, attrs = dataset.change.values, dataset.attrs
    places = highest(np.abs(change).ravel())
    several = attrs.get("prompts", 1) > 1
    begun = f"{_goes_on(attrs, several)} probability of {attrs['clean_probability']:.3f}."
    somewhere = f" in {'at least one' if attrs['flips'] else 'any'} prompt" if several else ""
    if not places:
        return f"{begun} No neuron could be measured."
    if abs(change.ravel()[places[0]]) < UNCHANGED:
        begun = f"{begun} No neuron alone changes it by 0.001"
        makes = (
            f"{counted(attrs['flips'], 'neuron')} {_verb(attrs['flips'], 'make')} another token the most"
            f" likely{somewhere}"
        )
        return f"{begun}, but {makes}." if several and attrs["flips"] else f"{begun}."
    large, flips = (f"{attrs[name]:,}" if attrs[name] else "none" for name in ("large", "flips"))
    row, neuron = np.unravel_index(places[0], change.shape)
    most = f"; N{neuron}@L{dataset.block.values[row]} changes it most, by {signed(change[row, neuron])}"
    return (
        f"{begun} Of {counted(int(np.isfinite(change).sum()), 'neuron')},"
        f" {large} {_verb(attrs['large'], 'change')} it by more than {attrs['threshold']:g} and"
        f" {flips} {_verb(attrs['flips'], 'make')} another token the most"
        f" likely{somewhere}{most if len(places) == 1 and differ(np.abs(change)) else ''}."
    )


def _goes_on(attrs: Mapping[Any, Any], several: bool) -> str:
    """The prompt and its answer; of several prompts how many, and their answer where they have the same."""
    if not several:
        return f"“{attrs['prompt']}” goes on with {quoted(attrs['target'])} at a"
    answer = (
        f" with {quoted(attrs['target'])}"
        if attrs["target_id"] >= 0
        else ", each with its own most likely token,"
    )
    return f"{counted(attrs['prompts'], 'prompt')} go on{answer} at a mean"


def _verb(number: int, verb: str) -> str:
    return verb if number > 1 else f"{verb}s"


def push_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """MLP layers as bars, heads as a map of the difference of the first two targets; means where there are
    several pairs."""
    drawn = []
    number = dataset.attrs.get("pairs", 1)
    what, over = (
        ("Push", "")
        if number == 1
        else ("Mean push", f", over {number:,} pairs of a question and a baseline")
    )
    targets = [str(t) for t in dataset.target.values]
    mlp = dataset.isel(component=dataset.kind.values == "mlp")
    if mlp.sizes["component"]:
        figure = base(barmode="group")
        for number, colour in zip(range(len(targets)), (FIRST, SECOND), strict=False):
            hover = f"%{{x}}<br>{plain_text(quoted(targets[number]))} %{{y:+.3f}} nats<extra></extra>"
            values = list(mlp.push.values[:, number])
            figure.add_bar(
                x=axis_labels(mlp.component.values),
                y=values,
                name=plain_text(quoted(targets[number])),
                marker_color=colour,
                hovertemplate=hover,
            )
        figure.update_layout(
            showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
        )
        figure.update_yaxes(title=f"{what.lower()}, nats")
        drawn.append((f"{what} of every MLP layer{over}", figure))
    heads = dataset.isel(component=dataset.kind.values == "head")
    if heads.sizes["component"]:
        drawn.append((f"{what} of every head towards {_towards(targets)}{over}", _head_map(heads)))
    return drawn


def _towards(targets: list[str]) -> str:
    return (
        f"{quoted(targets[0])} rather than {quoted(targets[1])}" if len(targets) > 1 else quoted(targets[0])
    )


def _signed(dataset: xr.Dataset) -> np.ndarray:
    """Push towards the first target, less that towards the second where there is one: one number for each
    component."""
    push = dataset.push.values
    return push[:, 0] - push[:, 1] if push.shape[1] > 1 else push[:, 0]


def _head_map(heads: xr.Dataset) -> go.Figure:
    blocks = list(dict.fromkeys(heads.component_block.values.tolist()))
    grid = np.full((len(blocks), int(heads["head"].max()) + 1), np.nan)
    for block, head, value in zip(
        heads.component_block.values, heads["head"].values, _signed(heads), strict=True
    ):
        grid[blocks.index(block), head] = value
    figure = heatmap(
        grid,
        list(range(grid.shape[1])),
        blocks,
        "nats",
        True,
        hovertemplate="L%{y}H%{x}<br>%{z:+.3f} nats<extra></extra>",
    )
    figure.update_layout(xaxis_title="head", yaxis_title="block")
    return figure


def ranked(dataset: xr.Dataset, kind: str, count: int) -> list[tuple[str, float]]:
    """The components of a kind that push most towards the first target rather than the second, strongest
    first."""
    one = dataset.isel(component=(dataset.kind.values == kind) & np.isfinite(_signed(dataset)))
    order = np.argsort(-np.abs(_signed(one)), kind="stable")[:count]
    return [(str(one.component.values[i]), float(_signed(one)[i])) for i in order]


def push_finding(dataset: xr.Dataset) -> str:
    """The strongest MLP layers and heads in a ranked list."""
    targets = [str(t) for t in dataset.target.values]
    lists = []
    for kind, noun in (("mlp", "MLP layers"), ("head", "heads")):
        first = ", ".join(
            f"{name} {signed(value, 2)}"
            for name, value in ranked(dataset, kind, 5)
            if f"{abs(value):.2f}" != "0.00"
        )
        lists += [f"{noun} {first}"] if first else []
    known = zip(targets, dataset.on_question.values, strict=True)
    on = ", ".join(f"{quoted(t)} {v:.2f}" for t, v in known if np.isfinite(v))
    number = dataset.attrs.get("pairs", 1)
    mean = "" if number == 1 else f", mean over {number:,} pairs"
    pushed = (
        f"in nats{mean}: {'; '.join(lists)}" if lists else f"no part pushes by a hundredth of a nat{mean}"
    )
    known_by = (
        "Log-probabilities on the question itself"
        if number == 1
        else "Mean log-probabilities on the questions themselves"
    )
    if "push_beyond" in dataset:
        beyond = dataset.push_beyond.sel(target=targets[0]).values
        first = highest(np.abs(beyond))
        if len(first) == 1:
            known_by = (
                f"Beyond “{dataset.attrs['minus']}”, {dataset.component.values[first[0]]} moves"
                f" {quoted(targets[0])} most ({signed(beyond[first[0]], 2)}). {known_by}"
            )
    return (
        f"{_texts(dataset, 'question')} into {_texts(dataset, 'baseline')}, towards {_towards(targets)},"
        f" {pushed}.{f' {known_by}: {on}.' if on else ''}"
    )


def _texts(dataset: xr.Dataset, name: str) -> str:
    """The question or the baseline of all pairs; how many there are where they have not the same."""
    if dataset.attrs.get("pairs", 1) == 1:
        return f"“{dataset.attrs[name]}”"
    texts = dict.fromkeys(map(str, dataset[name].values))
    return f"“{next(iter(texts))}”" if len(texts) == 1 else counted(len(texts), name)


ABLATE = Drawing(
    "Neuron ablation",
    "Which single neurons does an answer hang on?",
    "Every cell is one neuron set to zero: the higher on the colour bar, the more the answer's probability"
    " changes, in the mean where there are several prompts; a cross marks the cells where another token"
    " became the most likely one, in any prompt. Usually nearly all cells are close to zero: an answer hangs"
    " on few neurons, or on none alone.",
    ablate_figures,
    ablate_finding,
    ("change", "top1_changed"),
    ablate_panels,
)
PUSH = Drawing(
    "Push",
    "Which parts carry the answer to a question into a text that has nothing to do with it?",
    "Each bar or cell takes one part's activation at the end of the question and puts it in at the end of a"
    " neutral text; of several pairs of a question and a text the mean is shown. What pushes both answers"
    " alike only says that an answer is due; what pushes one rather than the other knows which.",
    push_figures,
    push_finding,
    ("push", "minus_push", "push_beyond"),
    push_panels,
)
