"""Figures of the experiments that send a run along other routes: repetition, noise on the way, shuffle
recovery."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures.route_panels import shuffle_panels
from regraft.reporting.theme import (
    FIRST,
    FLOORED,
    MUTED,
    Drawing,
    axis_labels,
    bars,
    base,
    heatmap,
    lines,
    plain_text,
)
from regraft.reporting.wording import (
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


def repeat_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Loss over block and repetitions, and the updates' lengths."""
    increase = np.log10(np.maximum(dataset.increase.values, 1e-4))
    loss = heatmap(
        increase, dataset.times.values, dataset.block.values, "log10 of nats per token above clean",
        customdata=dataset.increase.values,
        hovertemplate="block %{y}, %{x} times<br>%{customdata:+.4f} nats above clean<extra></extra>",
    )  # fmt: skip
    loss.update_layout(xaxis_title="times that the block is run", yaxis_title="block")
    shown = _spread(dataset.sizes["block"])
    updates = {f"block {dataset.block.values[i]}": dataset.update_length.values[i] for i in shown}
    length = lines(dataset.times.values, updates, "repetition", "update / stream")
    length.update_yaxes(type="log")
    return [
        (
            f"Loss added when one block is run several times ({FLOORED})",
            loss,
        ),
        ("Length of each repetition's update", length),
    ]


RARE = 2
"""Blocks of one behaviour that are named."""


def _spread(count: int, most: int = 6) -> list[int]:
    """At most six places between the first and the last."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, most))})


def repeat_finding(dataset: xr.Dataset) -> str:
    """How many blocks behave in which way, and which one can be repeated most cheaply."""
    behaviour = dataset.behaviour.values.astype(str)
    kinds, counts = np.unique(behaviour, return_counts=True)
    sentence = ", ".join(
        f"{count} {kind}"
        + (
            f" ({named_blocks(dataset.block.values[behaviour == kind])})"
            if count <= RARE < len(behaviour)
            else ""
        )
        for kind, count in zip(kinds, counts, strict=True)
    )
    second, names = dataset.second.values, dataset.block.values
    low, high = lowest(second), highest(second)
    begun = f"Of {counted(dataset.sizes['block'], 'block')}: {sentence}."
    broken = not_finite(second, names).replace("With", "Run twice, with")
    if not low:
        return f"{begun}{broken}"
    sentence = f"Run twice, {named_blocks(names[low])} {'changes' if len(low) == 1 else 'change'} the loss by"
    sentence = f"{sentence} {signed(second[low[0]])} nats per token"
    if differ(second):
        sentence += f", {named_blocks(names[high])} by {signed(second[high[0]])}"
    return f"{begun} {sentence}.{broken}"


def noise_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Loss over depth for every level, and the denoising ratio."""
    blocks, levels = dataset.block.values, dataset.level.values
    shown = _spread(len(levels))
    loss = lines(
        blocks,
        {f"{levels[i]:g}": dataset.loss.values[:, i] for i in shown},
        "block that the noise enters",
        "nats per token",
    )
    loss.update_yaxes(type="log")
    clean = dataset.attrs["clean_loss"]
    loss.add_hline(y=clean, line=dict(dash="dot", color=MUTED, width=1))
    ratio = lines(
        blocks, {f"{levels[i]:g}": dataset.ratio.values[:, i] for i in shown}, "block", "behind / in front"
    )
    ratio.update_yaxes(type="log")
    for figure in (loss, ratio):
        figure.update_layout(legend_title_text="noise / stream")
    return [
        ("Loss with noise of each level added in front of a block (logarithmic; dotted: clean)", loss),
        ("Denoising ratio: below 1 the block damps the noise", ratio),
    ]


def noise_finding(dataset: xr.Dataset) -> str:
    """Where noise hurts most and least, and which blocks damp it."""
    largest = int(np.argmax(dataset.level.values))
    loss, names, passed = dataset.loss.values[:, largest], dataset.block.values, dataset.passed_on.values
    high, low = highest(loss), lowest(loss)
    level, clean = dataset.level.values[largest], dataset.attrs["clean_loss"]
    if not high:
        return f"Noise as strong as {level:g} of the stream leaves no finite loss in front of any block."
    if differ(loss):
        sentence = (
            f"Noise as strong as {level:g} of the stream hurts most in front of"
            f" {named_blocks(names[high])} (loss {loss[high[0]]:.2f}, clean {clean:.2f}), least in front of"
            f" {named_blocks(names[low])} ({loss[low[0]]:.2f})."
        )
    else:
        sentence = (
            f"Noise as strong as {level:g} of the stream in front of {named_blocks(names[high])} leaves a"
            " loss of "
        )
        sentence += f"{loss[high[0]]:.2f}, clean {clean:.2f}."
    damping = [str(b) for b, r in zip(names, passed, strict=True) if r < 1]
    if damping:
        return f"{sentence} Blocks that damp it: {', '.join(damping)}."
    loud = np.isfinite(passed).all() and (passed > 1).all()
    return f"{sentence} No block damps it{': each passes on more than it gets' if loud else ''}."


def shuffle_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Tau of every method, and where each put every block."""
    methods = axis_labels(dataset.method.values)
    tau = base(max(240, 110 + 28 * len(methods)))
    hover = "%{y}<br>tau %{x:.3f}<extra></extra>"
    measured = zip(*(dataset[name].values for name in ("tau", "loss", "seconds")), strict=True)
    tau.add_bar(
        y=methods, x=dataset.tau.values, orientation="h", hovertemplate=hover, textposition="outside",
        cliponaxis=False,
        marker_color=[FIRST if share == 1 else MUTED for share in dataset.in_place.values],
        text=[f"{t:.3f}, loss {v:.2f}, {s:.1f} s" for t, v, s in measured],
    )  # fmt: skip
    known = dataset.tau.values[np.isfinite(dataset.tau.values)]
    tau.update_xaxes(title="Kendall's tau with the true order", range=[float(known.min(initial=0.0)), 1.0])
    tau.update_yaxes(autorange="reversed", type="category", tickmode="linear")
    tau.update_layout(margin=dict(l=150, r=180))
    true = sorted(dataset.shuffled.values.tolist(), key=lambda b: int(str(b).rpartition(".")[2]))
    places = np.array([[true.index(b) for b in row] for row in dataset.recovered.values])
    found = heatmap(
        places, dataset["place"].values, methods, "true place", zmin=0,
        hovertemplate="%{y}<br>place %{x}: block of place %{z}<extra></extra>",
    )  # fmt: skip
    found.update_layout(
        xaxis_title="place in the recovered order", height=max(240, 150 + 26 * len(methods)), margin_l=150
    )
    found.update_yaxes(autorange="reversed", tickmode="linear")
    return [
        ("How well each method finds the order", tau),
        ("The true place of the block that each method puts at a place", found),
    ]


def shuffle_finding(dataset: xr.Dataset) -> str:
    """Which methods recover the order, and what the losses are."""
    attrs, blocks = dataset.attrs, dataset.sizes["place"]
    if blocks < 2:
        return "A single block has no order to recover."
    exact = [
        str(m) for m, share in zip(dataset.method.values, dataset.in_place.values, strict=True) if share == 1
    ]
    sentence = f"{listed(exact, 12)} recovered" if exact else "No method recovered"
    sentence = (
        f"{sentence} the order of the {blocks} blocks exactly. Shuffled, the loss is"
        f" {attrs['shuffled_loss']:.2f} nats per token, "
    )
    sentence += f"in the true order {attrs['clean_loss']:.2f}"
    best = lowest(dataset.loss.values)
    if not best:
        return f"{sentence}."
    return (
        f"{sentence}; {dataset.method.values[best[0]]} ends at"
        f" {float(dataset.loss.values[best[0]]):.2f} after "
        f"{counted(int(dataset.orders.values[best[0]]), 'order')} measured."
    )


def surgery_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Loss before and after; of a model that writes no text, how far its last stream is from the whole
    model's."""
    if "distance" in dataset:
        name = "share of the whole model's last stream"
        figure = bars(dataset.state.values, dataset.distance.values, "state", name, name)
        return [(f"Distance of the last stream, {dataset.attrs['change']}", figure)]
    figure = bars(dataset.state.values, dataset.loss.values, "state", "nats per token", "nats per token")
    return [(f"Loss, {dataset.attrs['change']}", figure)]


def surgery_finding(dataset: xr.Dataset) -> str:
    """What the change costs and saves."""
    if "distance" in dataset:
        share = float(dataset.parameters.values[1] / dataset.parameters.values[0])
        away = float(dataset.distance.values[1])
        told = (
            f"the last stream is {away:.1%} of its length away from the whole model's"
            if away
            else "nothing changes"
        )
        return (
            f"{capital(dataset.attrs['change'])}: {told}, {share:.1%} of the parameters."
            f" {dataset.attrs['saved']}".strip()
        )
    before, after = dataset.loss.values
    share = float(dataset.parameters.values[1] / dataset.parameters.values[0])
    change, saved, kept = (
        capital(dataset.attrs["change"]),
        dataset.attrs["saved"],
        float(dataset.agreement.values[1]),
    )
    if before == after and share == 1 and kept == 1:
        return f"{change}: nothing changes, the loss stays {before:.3f} nats per token. {saved}".strip()
    loss = (
        f"loss {before:.3f} becomes {after:.3f} nats per token"
        if np.isfinite(after)
        else "the loss is not a finite number"
    )
    same = f", the whole model's top-1 token in {kept:.0%} of cases" if np.isfinite(kept) else ""
    return f"{change}: {loss}, {share:.1%} of the parameters{same}. {saved}".strip()


def transplant_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The matrix of losses, or loss before and after where given pairs were put in."""
    if "donor_block" not in dataset.dims:
        return surgery_figures(dataset)
    shown = np.log10(np.maximum(dataset.increase.values, 1e-4))
    figure = heatmap(
        shown, dataset.block.values, dataset.donor_block.values, "log10 of nats per token above clean",
        customdata=dataset.loss.values,
        hovertemplate="donor's %{y} in place of %{x}<br>loss %{customdata:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis_title="place", yaxis_title=f"block of {plain_text(dataset.attrs['donor'])}")
    return [("Loss with one block of the donor in each place (logarithmic)", figure)]


def transplant_finding(dataset: xr.Dataset) -> str:
    """Which of the donor's blocks fits best, and whether blocks fit their own places."""
    if "donor_block" not in dataset.dims:
        return surgery_finding(dataset)
    increase = dataset.increase.values.copy()
    if dataset.attrs["donor_sha256"] == dataset.attrs["weights_sha256"]:
        np.fill_diagonal(increase, np.nan)
        if np.isnan(increase).all():
            return ""
    best = lowest(increase.ravel())
    if not best:
        return "No block of the donor gives a finite loss in any place."
    i, j = np.unravel_index(best[0], increase.shape)
    which = "costs least, in place of" if differ(increase) else "in place of"
    sentence = (
        f"Block {dataset.donor_block.values[i]} of {dataset.attrs['donor']} {which} block"
        f" {dataset.block.values[j]}: {signed(increase[i, j])} nats per token."
    )
    if increase.shape[0] != increase.shape[1] or len(increase) < 2 or np.isnan(increase[0, 0]):
        return sentence
    away = ~np.eye(len(increase), dtype=bool)
    own, other = (values[np.isfinite(values)] for values in (np.diag(increase), increase[away]))
    if not len(own) or not len(other):
        return sentence
    return (
        f"{sentence} In its own place a block of the donor costs {signed(np.median(own))} at the median,"
        f" elsewhere {signed(np.median(other))}."
    )


def _surgery(title: str, question: str) -> Drawing:
    return Drawing(
        title,
        question,
        "The two bars are the loss on the whole model's own completions, before and after; the run folder"
        " holds divergence, agreement, parameters and bytes as well. A saved model opens in plain"
        " transformers.",
        surgery_figures,
        surgery_finding,
        ("loss", "kl", "agreement", "parameters", "bytes"),
    )


PRUNE = _surgery("Pruning", "What is lost when blocks are left out for good?")
REORDER = _surgery("Reordering", "What does the model become with its blocks in another order?")
TRANSPLANT = Drawing(
    "Cross-model transplant",
    "Does a block work in another place, or in another model?",
    "Each cell puts one block of the donor (row) in the place of one block of this model (column). A diagonal"
    " at the low end of the colour bar means that the two models' blocks still do the same work, as in two"
    " trainings from one start; without a donor the model gives its own blocks, and the diagonal is the clean"
    " run.",
    transplant_figures,
    transplant_finding,
    ("loss", "increase", "kl", "agreement", "parameters", "bytes"),
)
REPEAT = Drawing(
    "Repetition",
    "What happens when a block is run again on its own output?",
    "A row at the low end of the colour bar is a block that may be run often without harm. A block whose"
    " updates shrink is on its way to a fixed point, one whose updates keep their length goes on writing the"
    " same thing into the stream.",
    repeat_figures,
    repeat_finding,
    ("loss", "increase", "update_length"),
)
NOISE = Drawing(
    "Noise",
    "At which depth does noise hurt, and which blocks damp it?",
    "Each line is one strength of noise, relative to the stream. Where a line falls with depth, later blocks"
    " need less exact input. A ratio of 1 means that the noise passes a block as it is; the residual path"
    " alone gives that.",
    noise_figures,
    noise_finding,
    ("loss", "increase", "ratio"),
)
SHUFFLE = Drawing(
    "Shuffle recovery",
    "Can the order of the blocks be found again once it is lost?",
    "Blue bars found the true order. Methods without text look at weights or at what blocks do to random"
    " input; the others exchange blocks as long as the loss on the model's own text falls. A smooth ramp in"
    " the map of true places is a chain in the right order; a jump is a block that went astray.",
    shuffle_figures,
    shuffle_finding,
    ("tau", "in_place", "displacement", "loss", "orders", "seconds"),
    shuffle_panels,
)
