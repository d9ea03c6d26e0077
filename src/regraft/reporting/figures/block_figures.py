"""Figures of what is measured once for each block: spectra, linearity, and their correlations with everything
else."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures.block_panels import (
    by_role,
    correlation_panels,
    linearity_panels,
    scree,
    spectra_panels,
)
from regraft.reporting.theme import DIVERGING, Drawing, axis_labels, heatmap, lines, plain_text
from regraft.reporting.wording import capital, counted, differ, highest, lowest


def rank_map(dataset: xr.Dataset) -> go.Figure:
    """Effective rank over the smaller side, role by block."""
    ratio = dataset.rank_ratio.values
    figure = heatmap(
        ratio, dataset.block.values, dataset.role.values, "effective rank ratio", zmin=0,
        hovertemplate="block %{x}, %{y}<br>effective rank %{z:.3f} of the smaller side<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis_title="block", yaxis_title="role", height=120 + 34 * len(ratio))
    figure.update_yaxes(autorange="reversed")
    return figure


def spectra_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """The map of effective ranks, spectra of one block, and the power laws."""
    blocks = dataset.block.values
    middle = str(blocks[len(blocks) // 2])
    law = by_role(dataset, "power_law")
    return [
        ("Effective rank of each matrix, over its smaller side", rank_map(dataset)),
        (f"Singular values in block {middle} (logarithmic)", scree(dataset, middle)),
        (
            "Energy in the first eight directions",
            lines(blocks, by_role(dataset, "energy_8"), "block", "share of the energy"),
        ),
        ("Exponent of the power law at the head of the spectrum", lines(blocks, law, "block", "exponent")),
    ]


def spectra_finding(dataset: xr.Dataset) -> str:
    """Which roles use the smallest and the largest share of their directions."""
    rows = {str(r): dataset.rank_ratio.sel(role=r).values for r in dataset.role.values}
    mean = {role: float(row[np.isfinite(row)].mean()) for role, row in rows.items() if np.isfinite(row).any()}
    matrices = capital(counted(dataset.attrs["matrices"], "matrix", "matrices"))
    if not mean:
        return f"{matrices}, none of them with an effective rank."
    each = ", ".join(f"{role} {value:.2f}" for role, value in mean.items())
    sentence = f"{matrices}. Mean effective rank over the smaller side: {each}."
    names, (low, high) = list(mean), (lowest(list(mean.values())), highest(list(mean.values())))
    if differ(list(mean.values())) and len(low) == len(high) == 1:
        small, large = names[low[0]], names[high[0]]
        sentence = f"{sentence} {small} uses the smallest share of its directions, {large} the largest."
    if "matrix_block" not in dataset.coords or (dataset.matrix_block != "").all():
        return sentence
    outer = dataset.isel(matrix=dataset.matrix_block.values == "")
    ratios = zip(outer.tensor.values, outer.effective_rank_ratio.values, strict=True)
    return f"{sentence} Outside the blocks: {', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios)}."


def linearity_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Gap, gain, and what a linear map in a block's place would cost."""
    blocks = dataset.block.values

    def of_parts(name: str) -> dict[str, np.ndarray]:
        rows = {str(p): dataset[name].sel(part=p).values for p in dataset.part.values}
        return {part: row for part, row in rows.items() if np.isfinite(row).any()}

    gap = lines(blocks, of_parts("gap"), "block", "share of the change")
    norm = lines(blocks, of_parts("spectral_norm"), "block", "largest gain")
    norm.update_yaxes(type="log")
    alike = lines(blocks, of_parts("consistency"), "block", "mean cosine")
    steps = dataset.gap_by_step.sel(part="block").values
    shown = sorted({0, len(blocks) // 2, len(blocks) - 1})
    growth = lines(
        dataset.step.values,
        {f"block {blocks[i]}": steps[i] for i in shown},
        "step / length of the stream",
        "gap",
    )
    growth.update_xaxes(type="log")
    growth.update_yaxes(type="log")
    drawn = [
        ("Perturbation gap at a step of 5%: 0 is linear", gap),
        ("Gap over the size of the step (both logarithmic)", growth),
        ("Spectral norm of the Jacobian (logarithmic)", norm),
        ("Do different tokens see the same linear map?", alike),
    ]
    if np.isfinite(dataset.recovered.values).any():
        losses = {"skipped": dataset.knockout_loss.values, "linear map": dataset.linear_loss.values}
        cost = lines(
            blocks,
            {**losses, "whole model": np.full(len(blocks), dataset.attrs["clean_loss"])},
            "block",
            "nats per token",
        )
        cost.update_yaxes(type="log")
        drawn.append(("Loss with a linear map in a block's place (logarithmic)", cost))
    return drawn


def linearity_finding(dataset: xr.Dataset) -> str:
    """The shape of the gap over the depth and what the linear maps win back, from measured numbers."""
    gap, blocks = dataset.gap.sel(part="block").values, dataset.block.values
    bends = np.isfinite(gap)
    if not bends.any():
        return "No block answers to a step of 5%: there is no gap to measure."
    low, high = lowest(gap)[0], highest(gap)[0]
    sentence = (
        f"At {counted(dataset.attrs['sampled_tokens'], 'token')}, a step of 5% leaves the linear map by"
        f" {gap[low]:.3f} of the "
    )
    sentence += f"change in block {blocks[low]}" + (
        f" and by {gap[high]:.3f} in block {blocks[high]}." if differ(gap) else "."
    )
    if bends.all() and len(gap) >= 4 and differ(gap):
        ends = min(gap[0], gap[-1]) > np.median(gap[1:-1])
        sentence += " The ends are more curved than the middle." if ends else " Over the depth it is no U."
    orders = dataset.order.sel(part="block").values
    if np.isfinite(orders).any():
        sentence += f" The order is {float(np.nanmedian(orders)):.2f}, where 2 is a quadratic."
    return f"{sentence} {_won_back(dataset)} {_as_published(dataset)}".strip()


def _as_published(dataset: xr.Dataset) -> str:
    """What the published measures say beside ours, where they were taken."""
    if "gap_all_positions" not in dataset:
        return ""
    whole, ratio, shared = (
        float(np.nanmedian(values))
        for values in (
            dataset.gap_all_positions.sel(part="block").values, dataset.gap_ratio.values,
            dataset.gap_ratio_shared.values,
        )
    )  # fmt: skip
    return (
        f"With all positions moved at once the median gap is {whole:.3f}; along the data's own directions it"
        f" is {ratio:.2f} of that along random ones, {shared:.2f} where all positions share these, too."
    )


def _won_back(dataset: xr.Dataset) -> str:
    """What linear maps win back of what skipping costs, or why that was not measured."""
    recovered, blocks = dataset.recovered.values, dataset.block.values
    if not np.isfinite(recovered).any():
        return f"{capital(dataset.attrs['notes'])}." if dataset.attrs["notes"] else ""
    best = highest(recovered)[0]
    fitted = f"A linear map fitted on {counted(dataset.attrs['calibration_tokens'], 'other token')}"
    if recovered[best] <= 0:
        return f"{fitted} is no better in any block's place than leaving the block out."
    most = f", more than in any other block; the median is {np.median(recovered[np.isfinite(recovered)]):.0%}"
    return (
        f"{fitted} wins back {recovered[best]:.0%} of what skipping block {blocks[best]} costs"
        f"{most if differ(recovered) and len(highest(recovered)) == 1 else ''}."
    )


MANY, SMALL = 32, 10
"""Quantities from which rows are drawn close, in small letters, and every fifth column is numbered."""


def correlation_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """One matrix: colour is the rank correlation, a dot marks the pairs that survive the correction."""
    rho, corrected = dataset.rho.values, dataset.p_corrected.values
    names = [f"{number}  {name}" for number, name in enumerate(dataset["quantity"].values, 1)]
    numbers = axis_labels(range(1, len(names) + 1))
    hover = np.array([[_pair(dataset, i, j) for j in range(len(names))] for i in range(len(names))])
    figure = heatmap(
        rho,
        numbers,
        names,
        "rank correlation",
        True,
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.update_traces(zmin=-1, zmax=1, zmid=None, colorscale=DIVERGING)
    rows, columns = np.nonzero(corrected < dataset.attrs["level"])
    many = len(names) > MANY
    dot = dict(size=4 if many else 7, color="#ffffff", line=dict(width=1, color="#22262c"))
    labels = axis_labels(names)
    figure.add_scatter(
        x=[numbers[j] for j in columns],
        y=[labels[i] for i in rows],
        mode="markers",
        marker=dot,
        hoverinfo="skip",
    )
    figure.update_layout(
        height=90 + (15 if many else 24) * len(names), margin=dict(l=260 if many else 240, b=48)
    )
    figure.update_xaxes(tickangle=0, tickmode="linear", dtick=5 if many else 1, tick0=4 if many else 0)
    figure.update_yaxes(autorange="reversed", tickmode="linear")
    if many:
        figure.update_yaxes(tickfont=dict(size=SMALL))
    return [("Rank correlations over blocks; a dot: below 5% after correction", figure)]


def _pair(dataset: xr.Dataset, i: int, j: int) -> str:
    d, (one, other) = dataset, (plain_text(dataset["quantity"].values[place]) for place in (i, j))
    return (
        f"{one}<br>{other}<br>rank correlation {d.rho.values[i, j]:+.2f} over"
        f" {d.blocks.values[i, j]} blocks<br>p {d.p.values[i, j]:.2g}, corrected"
        f" {d.p_corrected.values[i, j]:.2g}"
    )


def correlation_finding(dataset: xr.Dataset) -> str:
    """How many pairs survive, and the strongest between two different experiments."""
    names = [str(n) for n in dataset["quantity"].values]
    attrs, rho, p = dataset.attrs, dataset.rho.values, dataset.p_corrected.values
    apart = [
        (abs(rho[i, j]), i, j)
        for i in range(len(names))
        for j in range(i)
        if names[i].split(":")[0] != names[j].split(":")[0]
        and ":" in names[i]
        and ":" in names[j]
        and p[i, j] < attrs["level"]
    ]
    if not attrs["pairs"]:
        return "No two quantities share blocks enough to be correlated."
    sentence = (
        f"{attrs['significant']} of {counted(attrs['pairs'], 'pair')} of quantities go together beyond chance"
        f" (p below {attrs['level']:.0%} after correction)"
    )
    if not apart:
        return (
            f"{sentence}{', none of them between two different experiments' if attrs['significant'] else ''}."
        )
    _, i, j = max(apart)
    return (
        f"{sentence}. Between two experiments the strongest is {names[i]} with {names[j]}: {rho[i, j]:+.2f}."
    )


SPECTRA = Drawing(
    "Weight spectra",
    "How many of its directions does each weight matrix really use?",
    "An effective rank ratio of 1 means that all directions are equally strong, a small one that a few do"
    " most of the work. A straight line among the singular values would be an exponential fall; the sharper"
    " the first bend, the more energy lies in few directions.",
    spectra_figures,
    spectra_finding,
    (
        "effective_rank",
        "effective_rank_ratio",
        "entropy_rank",
        "stable_rank",
        "power_law",
        "power_law_fit",
        "condition",
    ),
    spectra_panels,
)
LINEARITY = Drawing(
    "Layer linearity",
    "How far is each block from a linear map, and what would a linear map in its place cost?",
    "The gap is the share of a block's response that its derivative does not explain. A gap that grows"
    " tenfold with a tenfold step is a quadratic bend. A spectral norm far above the others belongs to a"
    " block that stretches some direction of the stream; a low cosine means that every token sees another"
    " linear map.",
    linearity_figures,
    linearity_finding,
    (
        "gap",
        "order",
        "order_fit",
        "spectral_norm",
        "amplification",
        "consistency",
        "radial",
        "difference_error",
        "gap_all_positions",
        "gap_order",
    ),
    linearity_panels,
)
CORRELATIONS = Drawing(
    "What goes with what",
    "Which measurements of a block say the same thing?",
    "Blue pairs rise together over the blocks, orange ones against each other; a dot marks those that survive"
    " the correction for the number of pairs. Neighbouring blocks are not independent samples: look first at"
    " the row of the position in the model, since two quantities that both follow depth will correlate"
    " whether or not one has to do with the other.",
    correlation_figures,
    correlation_finding,
    ("rho", "p", "p_corrected", "blocks"),
    correlation_panels,
)
