"""Figures of the experiments that send a run along other routes: repetition, noise on the way, shuffle recovery."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.report.drawing import FIRST, MUTED, Drawing, bars, base, draws, heatmap, lines


def repeat_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Loss over block and repetitions, and the updates' lengths."""
    increase = np.log10(np.maximum(dataset.increase.values, 1e-4))
    loss = heatmap(
        increase, dataset.times.values, dataset.block.values, "log10 of nats per token above clean",
        customdata=dataset.loss.values, hovertemplate="block %{y}, %{x} times<br>loss %{customdata:.3f}<extra></extra>",
    )  # fmt: skip
    loss.update_layout(xaxis_title="times that the block is run", yaxis_title="block")
    shown = _spread(dataset.sizes["block"])
    updates = {f"block {dataset.block.values[i]}": dataset.update_length.values[i] for i in shown}
    length = lines(dataset.times.values, updates, "repetition", "update / stream")
    length.update_yaxes(type="log")
    return [("Loss when one block is run several times (logarithmic)", loss), ("Length of each repetition's update", length)]


def _spread(count: int, most: int = 6) -> list[int]:
    """At most six places between the first and the last."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, most))})


def repeat_finding(dataset: xr.Dataset) -> str:
    """How many blocks behave in which way, and which one can be repeated most cheaply."""
    kinds, counts = np.unique(dataset.behaviour.values.astype(str), return_counts=True)
    said = ", ".join(f"{count} {kind}" for kind, count in zip(kinds, counts, strict=True))
    second = dataset.second.values
    low, high = int(np.nanargmin(second)), int(np.nanargmax(second))
    return (
        f"Of {dataset.sizes['block']} blocks: {said}. Run twice, block {dataset.block.values[low]} changes the loss by "
        f"{second[low]:+.3f} nats per token, block {dataset.block.values[high]} by {second[high]:+.3f}."
    )


def noise_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Loss over depth for every level, and the denoising ratio."""
    blocks, levels = dataset.block.values, dataset.level.values
    shown = _spread(len(levels))
    loss = lines(
        blocks, {f"{levels[i]:g}": dataset.loss.values[:, i] for i in shown}, "block that the noise enters", "nats per token"
    )
    loss.update_yaxes(type="log")
    ratio = lines(blocks, {f"{levels[i]:g}": dataset.ratio.values[:, i] for i in shown}, "block", "behind / in front")
    ratio.update_yaxes(type="log")
    return [
        ("Loss with noise of each level added in front of a block (logarithmic)", loss),
        ("Denoising ratio: below 1 the block damps the noise", ratio),
    ]


def noise_finding(dataset: xr.Dataset) -> str:
    """Where noise hurts most and least, and which blocks damp it."""
    largest = int(np.argmax(dataset.level.values))
    loss, blocks, passed = dataset.loss.values[:, largest], dataset.block.values, dataset.passed_on.values
    high, low = int(np.nanargmax(loss)), int(np.nanargmin(loss))
    damping = [str(b) for b, r in zip(blocks, passed, strict=True) if r < 1]
    return (
        f"Noise as strong as {dataset.level.values[largest]:g} of the stream hurts most in front of block {blocks[high]} "
        f"(loss {loss[high]:.2f}, clean {dataset.attrs['clean_loss']:.2f}), least in front of block {blocks[low]} "
        f"({loss[low]:.2f}). "
        + (f"Blocks that damp it: {', '.join(damping)}." if damping else "No block damps it: each passes on more than it gets.")
    )


def shuffle_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Tau of every method, and where each put every block."""
    methods = [str(m) for m in dataset.method.values]
    tau = base(max(240, 110 + 28 * len(methods)))
    hover = "%{y}<br>tau %{x:.3f}<extra></extra>"
    measured = zip(*(dataset[name].values for name in ("tau", "loss", "seconds")), strict=True)
    tau.add_bar(
        y=methods, x=dataset.tau.values, orientation="h", hovertemplate=hover, textposition="outside", cliponaxis=False,
        marker_color=[FIRST if share == 1 else MUTED for share in dataset.in_place.values],
        text=[f"{t:.3f}, loss {v:.2f}, {s:.1f} s" for t, v, s in measured],
    )  # fmt: skip
    tau.update_xaxes(title="Kendall's tau with the true order", range=[min(0.0, float(dataset.tau.min())), 1.5])
    tau.update_yaxes(autorange="reversed", type="category", tickmode="linear")
    tau.update_layout(margin_l=150)
    true = sorted(dataset.shuffled.values.tolist(), key=lambda b: int(str(b).rpartition(".")[2]))
    places = np.array([[true.index(b) for b in row] for row in dataset.recovered.values])
    found = heatmap(
        places, dataset["place"].values, methods, "true place", zmin=0,
        hovertemplate="%{y}<br>place %{x}: block of place %{z}<extra></extra>",
    )  # fmt: skip
    found.update_layout(xaxis_title="place in the recovered order", height=max(240, 150 + 26 * len(methods)), margin_l=150)
    found.update_yaxes(autorange="reversed", tickmode="linear")
    return [
        ("How well each method finds the order", tau),
        ("The true place of the block that each method puts at a place", found),
    ]


def shuffle_finding(dataset: xr.Dataset) -> str:
    """Which methods recover the order, and what the losses are."""
    exact = [str(m) for m, share in zip(dataset.method.values, dataset.in_place.values, strict=True) if share == 1]
    attrs = dataset.attrs
    said = f"{', '.join(exact)} recovered" if exact else "No method recovered"
    best = int(np.nanargmin(dataset.loss.values))
    return (
        f"{said} the order of the {dataset.sizes['place']} blocks exactly. Shuffled, the loss is {attrs['shuffled_loss']:.2f} "
        f"nats per token, in the true order {attrs['clean_loss']:.2f}; {dataset.method.values[best]} ends at "
        f"{float(dataset.loss.values[best]):.2f} after {int(dataset.orders.values[best])} orders measured."
    )


def surgery_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Loss before and after."""
    figure = bars(dataset.state.values, dataset.loss.values, "state", "nats per token", "nats per token")
    return [(f"Loss, {dataset.attrs['change']}", figure)]


def surgery_finding(dataset: xr.Dataset) -> str:
    """What the change costs and saves."""
    before, after = dataset.loss.values
    share = float(dataset.parameters.values[1] / dataset.parameters.values[0])
    return (
        f"{dataset.attrs['change'].capitalize()}: loss {before:.3f} becomes {after:.3f} nats per token, {share:.1%} of the "
        f"parameters, the whole model's top-1 token in {float(dataset.agreement.values[1]):.0%} of cases. "
        f"{dataset.attrs['saved']}"
    ).strip()


def transplant_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The matrix of losses, or loss before and after where given pairs were put in."""
    if "donor_block" not in dataset.dims:
        return surgery_figures(dataset)
    shown = np.log10(np.maximum(dataset.increase.values, 1e-4))
    figure = heatmap(
        shown, dataset.block.values, dataset.donor_block.values, "log10 of nats per token above clean",
        customdata=dataset.loss.values, hovertemplate="donor's %{y} in place of %{x}<br>loss %{customdata:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis_title="place", yaxis_title=f"block of {dataset.attrs['donor']}")
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
    i, j = np.unravel_index(np.nanargmin(increase), increase.shape)
    said = (
        f"Block {dataset.donor_block.values[i]} of {dataset.attrs['donor']} costs least, in place of block "
        f"{dataset.block.values[j]}: {increase[i, j]:+.3f} nats per token. "
    )
    if increase.shape[0] != increase.shape[1] or np.isnan(increase[0, 0]):
        return said.strip()
    away = ~np.eye(len(increase), dtype=bool)
    return said + (
        f"In its own place a block of the donor costs {np.median(np.diag(increase)):+.3f} at the median, elsewhere "
        f"{np.median(increase[away]):+.3f}."
    )


for _name, _title, _question in (
    ("prune", "Pruning", "What is lost when blocks are left out for good?"),
    ("reorder", "Reordering", "What does the model become with its blocks in another order?"),
):
    draws(
        _name,
        Drawing(
            _title,
            _question,
            "The two bars are the loss on the whole model's own completions, before and after; the run folder holds divergence, "
            "agreement, parameters and bytes as well. A saved model opens in plain transformers.",
            surgery_figures,
            surgery_finding,
            ("loss", "kl", "agreement", "parameters", "bytes"),
        ),
    )
draws(
    "transplant",
    Drawing(
        "Cross-model transplant",
        "Does a block work in another place, or in another model?",
        "Each cell puts one block of the donor (row) in the place of one block of this model (column). A pale diagonal means "
        "that the two models' blocks still do the same work, as in two trainings from one start; without a donor the model gives "
        "its own blocks, and the diagonal is the clean run.",
        transplant_figures,
        transplant_finding,
        ("loss", "increase", "kl", "agreement", "parameters", "bytes"),
    ),
)
draws(
    "repeat",
    Drawing(
        "Repetition",
        "What happens when a block is run again on its own output?",
        "A pale row is a block that may be run often without harm. A block whose updates shrink is on its way to a fixed "
        "point, one whose updates keep their length goes on writing the same thing into the stream.",
        repeat_figures,
        repeat_finding,
        ("loss", "increase", "update_length"),
    ),
)
draws(
    "noise",
    Drawing(
        "Noise",
        "At which depth does noise hurt, and which blocks damp it?",
        "Each line is one strength of noise, relative to the stream. Where a line falls with depth, later blocks need less exact "
        "input. A ratio of 1 means that the noise passes a block as it is; the residual path alone gives that.",
        noise_figures,
        noise_finding,
        ("loss", "increase", "ratio"),
    ),
)
draws(
    "shuffle",
    Drawing(
        "Shuffle recovery",
        "Can the order of the blocks be found again once it is lost?",
        "Blue bars found the true order. Methods without text look at weights or at what blocks do to random input; the others "
        "exchange blocks as long as the loss on the model's own text falls. A smooth ramp in the second figure is a chain in "
        "the right order; a jump is a block that went astray.",
        shuffle_figures,
        shuffle_finding,
        ("tau", "in_place", "displacement", "loss", "orders", "seconds"),
    ),
)
