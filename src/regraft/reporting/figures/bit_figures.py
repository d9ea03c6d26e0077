"""Figures of quantization: what each block loses with few bits, and which recipe loses least."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures.bit_panels import quantize_panels, quantizers_panels
from regraft.reporting.figures.route_figures import surgery_figures, surgery_finding
from regraft.reporting.theme import (
    FIRST,
    FLOORED,
    MUTED,
    PALETTE,
    Drawing,
    axis_labels,
    base,
    heatmap,
    label_sides,
    lines,
    plain_text,
)
from regraft.reporting.wording import capital, differ, highest, listed, lowest, named_blocks, signed


def quantize_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Sensitivity of blocks and of matrices, recipes at equal bytes, and loss over bytes; of one recipe, the
    loss."""
    if "state" in dataset.dims:
        return surgery_figures(dataset)
    blocks, widths = dataset.block.values, dataset.bits.values
    shown = np.log10(np.maximum(dataset.increase.values, 1e-4)).T
    alone = heatmap(
        shown, blocks, [f"{w} bits" for w in widths], "log10 of nats above clean",
        customdata=dataset.increase.values.T,
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
    curve = lines(
        sizes, {"all blocks alike": dataset.whole_loss.values}, "megabytes of the blocks", "nats per token"
    )
    curve.add_scatter(
        x=dataset.recipe_bytes.values / 1e6, y=dataset.recipe_loss.values, mode="markers", name="recipes",
        marker=dict(size=8, color=MUTED), showlegend=True,
        text=axis_labels(dataset.recipe.values),
        hovertemplate="%{text}<br>%{x:.2f} MB, %{y:.3f} nats<extra></extra>",
    )  # fmt: skip
    curve.update_yaxes(type="log")
    curve.data[0].showlegend = True
    curve.update_layout(showlegend=True, margin_t=64)
    return [
        (
            f"Loss added when one block alone is rounded ({FLOORED})",
            alone,
        ),
        ("Loss added when one matrix alone is rounded to 3 bits", matrices),
        ("Recipes with a mean of 4 bits", recipe_bars(dataset)),
        ("Loss over bytes (logarithmic)", curve),
    ]


def recipe_bars(dataset: xr.Dataset) -> go.Figure:
    """One bar for each recipe, with its bits on hover."""
    order = np.argsort(dataset.recipe_loss.values)
    names = axis_labels(dataset.recipe.values[order])
    figure = base(max(240, 110 + 30 * len(names)))
    bits = [" ".join(map(str, dataset.recipe_bits.values[i])) for i in order]
    figure.add_bar(
        y=names, x=dataset.recipe_loss.values[order], orientation="h",
        text=[f"{dataset.recipe_loss.values[i]:.3f}" for i in order],
        textposition="outside", hovertext=bits,
        hovertemplate="%{y}: %{x:.4f} nats per token<br>%{hovertext} bits<extra></extra>",
        marker_color=[FIRST if n == plain_text(dataset.attrs["best_recipe"]) else MUTED for n in names],
    )  # fmt: skip
    clean = dataset.attrs["clean_loss"]
    figure.add_vline(x=clean, line=dict(dash="dot", color=MUTED))
    figure.update_xaxes(title="nats per token (dotted: not rounded)")
    figure.update_yaxes(autorange="reversed", type="category", tickmode="linear")
    figure.update_layout(margin_l=150)
    return figure


def quantize_finding(dataset: xr.Dataset) -> str:
    """The most sensitive block, and the best and the worst recipe at equal bytes; of one recipe, what it
    costs."""
    if "state" in dataset.dims:
        return surgery_finding(dataset)
    attrs, names = dataset.attrs, dataset.block.values
    fewest = int(np.argmin(dataset.bits.values))
    parts = []
    for values, where, digits in (
        (dataset.increase.values[:, fewest], f"at {int(dataset.bits.values[fewest])} bits", 2),
        (dataset.sensitivity.values, "at 3 bits", 3),
    ):
        worst = highest(values)
        if not worst:
            parts.append(f"{where}, no block alone leaves a finite loss")
        elif not differ(values):
            parts.append(
                f"{where}, {named_blocks(names[worst])} alone costs {signed(values[worst[0]], digits)} nats"
                " per token"
            )
        else:
            middle = signed(np.median(values[np.isfinite(values)]))
            most = (
                f"{named_blocks(names[worst])} alone costs most, {signed(values[worst[0]], digits)} nats per"
                " token"
            )
            parts.append(f"{where}, {most}, the median block {middle}")
    return f"{capital('; '.join(parts))}. {_recipes(dataset)} {attrs['saved']}".strip()


def _recipes(dataset: xr.Dataset) -> str:
    """The best and the worst recipe at equal bytes."""
    losses, names = dataset.recipe_loss.values, dataset.recipe.values
    best, worst = lowest(losses), highest(losses)
    if not best:
        return "No recipe with a mean of 4 bits leaves a finite loss."
    share = float(dataset.recipe_bytes.values[best[0]] / dataset.attrs["clean_bytes"])
    sentence = (
        f"With a mean of 4 bits everywhere ({share:.1%} of the blocks' bytes as loaded),"
        f" {listed(names[best])} {'loses' if len(best) == 1 else 'lose'}"
    )
    least = f"({losses[best[0]]:.3f} nats per token, unrounded {dataset.attrs['clean_loss']:.3f})"
    if not differ(losses):
        return f"{sentence} alike {least}." if len(best) > 1 else f"{sentence} {least[1:-1]}."
    return f"{sentence} least {least} and {listed(names[worst])} most ({losses[worst[0]]:.3f})."


QUANTIZE = Drawing(
    "Quantization",
    "Which blocks can do with few bits, and how should a budget of bits be spent?",
    "Weights are rounded to the nearest of a few levels, one scale for each group of inputs; cells high on"
    " the colour bar are blocks that cannot bear it. All recipes with a mean of 4 bits cost the same bytes:"
    " what is won over uniform is won by knowing where the bits are needed.",
    quantize_figures,
    quantize_finding,
    ("loss", "increase", "perplexity_increase"),
    quantize_panels,
)


def quantizers_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Loss above the model as loaded over bytes, and tokens per second, one point or bar for each method."""
    names = axis_labels(dataset.quantizer.values)
    plane = base(340)
    plane.add_scatter(
        x=dataset.bytes.values / 1e6, y=dataset.loss.values, text=axis_labels(names), mode="markers+text",
        textposition=label_sides(dataset.bytes.values, dataset.loss.values),
        marker=dict(size=9, color=[MUTED] + [FIRST] * (len(names) - 1)),
        hovertemplate="%{text}<br>%{x:.2f} MB, %{y:.4f} nats per token<extra></extra>",
    )  # fmt: skip
    plane.update_layout(
        xaxis_title="megabytes of the blocks", yaxis_title="nats per token", margin_r=120, height=460
    )
    runs = [i for i in range(1, len(names)) if not np.isnan(dataset.writing.values[i])]
    speed = base(max(240, 110 + 50 * len(runs)))
    for color, (label, values) in zip(
        PALETTE, (("reading", dataset.reading.values), ("writing", dataset.writing.values)), strict=False
    ):
        speed.add_bar(
            y=[names[i] for i in runs], x=[values[i] / values[0] for i in runs], orientation="h", name=label,
            marker_color=color,
            customdata=[values[i] for i in runs],
            hovertemplate=f"%{{y}}, {label}: %{{customdata:,.0f}} tokens per second, "
            "%{x:.2f} times as loaded<extra></extra>",
        )  # fmt: skip
    speed.add_vline(x=1, line=dict(dash="dot", color=MUTED))
    speed.update_xaxes(title="tokens per second, in times the model as loaded (dotted)", rangemode="tozero")
    speed.update_yaxes(autorange="reversed", type="category", tickmode="linear")
    speed.update_layout(margin_l=150, barmode="group", showlegend=True)
    return [("Loss over bytes, all blocks quantized", plane), ("Speed of what runs in few bits", speed)]


def quantizers_finding(dataset: xr.Dataset) -> str:
    """Loss, bytes and speed of every method in one sentence, and what was left out."""
    rows = []
    for one in (dataset.isel(quantizer=i) for i in range(1, dataset.sizes["quantizer"])):
        share = float(one.bytes) / float(dataset.bytes[0])
        times = float(one.writing) / (float(dataset.writing[0]) or float("nan"))
        speed = f", writing at {times:.2f} times the speed as loaded" if np.isfinite(times) else ""
        if not np.isfinite(float(one.increase)):
            rows.append(f"{one.quantizer.item()} leaves no finite loss")
            continue
        rows.append(
            f"{one.quantizer.item()} {signed(float(one.increase))} nats per token at {share:.0%} of the"
            f" bytes{speed}"
        )
    without = dataset.attrs["without"]
    return f"{'; '.join(rows)}.{f' ({without}.)' if without else ''}" if rows else without


QUANTIZERS = Drawing(
    "Quantizers",
    "What do whole-model quantizers cost in loss, and what do they save in bytes and time?",
    "Down and left is better. A method can save bytes and lose time: where the processor has no kernel for"
    " few bits, the weights are unpacked at every call; torchao's int4"
    " keeps each code in a byte. Methods that run as plain floats here have no bar for"
    " speed.",
    quantizers_figures,
    quantizers_finding,
    ("loss", "increase", "agreement", "seconds_to_quantize", "peak_memory"),
    quantizers_panels,
)
