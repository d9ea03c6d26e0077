"""Figures of quantization: what each block loses with few bits, and which recipe loses least."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.report.drawing import FIRST, MUTED, Drawing, axis_labels, base, draws, heatmap, lines


def quantize_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Sensitivity of blocks and of matrices, recipes at equal bytes, and loss over bytes."""
    blocks, widths = dataset.block.values, dataset.bits.values
    shown = np.log10(np.maximum(dataset.increase.values, 1e-4)).T
    alone = heatmap(
        shown, blocks, [f"{w} bits" for w in widths], "log10 of nats above clean", customdata=dataset.increase.values.T,
        hovertemplate="block %{x} at %{y}<br>%{customdata:+.4f} nats per token<extra></extra>",
    )  # fmt: skip
    alone.update_layout(xaxis_title="block", height=280)
    alone.update_yaxes(autorange="reversed")
    matrices = heatmap(
        dataset.matrix_increase.values, blocks, dataset.role.values, "nats per token above clean", True,
        hovertemplate="%{y} of block %{x} at 3 bits<br>%{z:+.4f} nats per token<extra></extra>",
    )  # fmt: skip
    matrices.update_layout(xaxis_title="block", height=140 + 30 * dataset.sizes["role"])
    matrices.update_yaxes(autorange="reversed")
    sizes = dataset.whole_bytes.values / 1e6
    curve = lines(sizes, {"all blocks alike": dataset.whole_loss.values}, "megabytes of the blocks", "nats per token")
    curve.add_scatter(
        x=dataset.recipe_bytes.values / 1e6, y=dataset.recipe_loss.values, mode="markers", name="recipes",
        marker=dict(size=8, color=MUTED),
        text=axis_labels(dataset.recipe.values), hovertemplate="%{text}<br>%{x:.2f} MB, %{y:.3f} nats<extra></extra>",
    )  # fmt: skip
    curve.update_yaxes(type="log")
    return [
        ("Loss when one block alone is rounded (logarithmic)", alone),
        ("Loss when one matrix alone is rounded to 3 bits", matrices),
        ("Recipes with a mean of 4 bits", recipe_bars(dataset)),
        ("Loss over bytes (logarithmic)", curve),
    ]


def recipe_bars(dataset: xr.Dataset) -> go.Figure:
    """One bar for each recipe, with its bits on hover."""
    order = np.argsort(dataset.recipe_loss.values)
    names = [str(dataset.recipe.values[i]) for i in order]
    figure = base(max(240, 110 + 30 * len(names)))
    bits = [" ".join(map(str, dataset.recipe_bits.values[i])) for i in order]
    figure.add_bar(
        y=names, x=dataset.recipe_loss.values[order], orientation="h",
        text=[f"{dataset.recipe_loss.values[i]:.3f}" for i in order],
        textposition="outside", hovertext=bits, hovertemplate="%{y}: %{x:.4f} nats per token<br>%{hovertext} bits<extra></extra>",
        marker_color=[FIRST if n == dataset.attrs["best_recipe"] else MUTED for n in names],
    )  # fmt: skip
    clean = dataset.attrs["clean_loss"]
    figure.add_vline(x=clean, line=dict(dash="dot", color=MUTED))
    figure.update_xaxes(title="nats per token (dotted: not rounded)")
    figure.update_yaxes(autorange="reversed", type="category", tickmode="linear")
    figure.update_layout(margin_l=150)
    return figure


def quantize_finding(dataset: xr.Dataset) -> str:
    """The most sensitive block, and the best and the worst recipe at equal bytes."""
    sensitivity, attrs = dataset.sensitivity.values, dataset.attrs
    lowest = int(np.argmin(dataset.bits.values))
    two = dataset.increase.values[:, lowest]
    losses, names = dataset.recipe_loss.values, dataset.recipe.values
    best, worst = int(np.nanargmin(losses)), int(np.nanargmax(losses))
    return (
        f"At {int(dataset.bits.values[lowest])} bits, block {dataset.block.values[int(two.argmax())]} alone costs "
        f"{two.max():+.2f} nats per token, the median block {np.median(two):+.3f}; at 3 bits the most sensitive is block "
        f"{dataset.block.values[int(sensitivity.argmax())]} ({sensitivity.max():+.3f}). With a mean of 4 bits everywhere "
        f"({dataset.recipe_bytes.values[best] / attrs['clean_bytes']:.1%} of the blocks' bytes as loaded), {names[best]} loses "
        f"least ({losses[best]:.3f} nats per token, unrounded {attrs['clean_loss']:.3f}) and {names[worst]} most "
        f"({losses[worst]:.3f}). {attrs['saved']}"
    ).strip()


draws(
    "quantize",
    Drawing(
        "Quantization",
        "Which blocks can do with few bits, and how should a budget of bits be spent?",
        "Weights are rounded to the nearest of a few levels, one scale for each group of inputs; dark cells are blocks that "
        "cannot bear it. All recipes of the third figure cost the same bytes: what is won over uniform is won by knowing where "
        "the bits are needed.",
        quantize_figures,
        quantize_finding,
        ("loss", "increase", "perplexity_increase"),
    ),
)
