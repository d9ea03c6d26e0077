"""Folded figures of quantization."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import Panel, bars, heatmap, lines, panel, ranked_bars


def quantize_panels(data: xr.Dataset) -> list[Panel]:
    """Error of the weights, what goes with sensitivity, bits of every recipe, and the losses of a text."""
    if "weight_error" not in data:
        return []
    blocks = data.block.values
    error = {f"{bits} bits": data.weight_error.sel(bits=bits).values for bits in data.bits.values}
    off = lines(blocks, error, "block", "error / matrix")
    off.update_yaxes(type="log")
    bits = heatmap(data.recipe_bits.values, blocks, data.recipe.values, "bits", zmin=2, zmax=8)
    bits.update_traces(text=data.recipe_bits.values, texttemplate="%{text}")
    bits.update_layout(xaxis_title="block", margin_l=190, height=140 + 26 * data.sizes["recipe"])
    found = [
        panel(data, "weight_error", "Error of the weights (logarithmic)", off),
        Panel("Bits of every recipe", bits, "Recipes of equal bytes differ in where they put them."),
    ]
    if np.isfinite(data.sensitivity_rho.values).any():
        with_what = ranked_bars(data.compared.values, data.sensitivity_rho.values, "rank correlation")
        found.append(panel(data, "sensitivity_rho", "What goes with a block's sensitivity", _unit(with_what)))
    if np.isfinite(data.role_sensitivity_rho.values).any():
        roles = ranked_bars(data.role.values, data.role_sensitivity_rho.values, "rank correlation")
        caption = "Sensitivity of each kind of matrix with its own rank"
        found.append(panel(data, "role_sensitivity_rho", caption, _unit(roles)))
    return found + (_of_text(data) if "corpus_increase" in data else [])


def _unit(figure: go.Figure) -> go.Figure:
    figure.update_xaxes(range=[-1, 1])
    return figure


def _of_text(data: xr.Dataset) -> list[Panel]:
    shown = np.log10(np.maximum(data.corpus_increase.values, 1e-4)).T
    widths = [f"{width} bits" for width in data.bits.values]
    alone = heatmap(shown, data.block.values, widths, "log10 of nats above clean")
    alone.update_layout(xaxis_title="block", height=280)
    alone.update_yaxes(autorange="reversed")
    order = np.argsort(data.corpus_recipe_loss.values)
    names, losses = data.recipe.values[order], data.corpus_recipe_loss.values[order]
    recipes = ranked_bars(names, losses, "nats per token of the text")
    recipes.update_layout(margin_l=190)
    return [
        panel(data, "corpus_increase", "One block rounded, on the text file (logarithmic)", alone),
        panel(data, "corpus_recipe_loss", "Recipes on the text file", recipes),
    ]


def quantizers_panels(data: xr.Dataset) -> list[Panel]:
    """What quantizing itself takes."""
    found = []
    for name, caption, unit, scale in (
        ("seconds_to_quantize", "Time to quantize all blocks", "s", 1.0),
        ("peak_memory", "Memory beyond the model while it is quantized", "MB", 1e-6),
    ):
        if name in data and np.isfinite(data[name].values).any():
            known = np.isfinite(data[name].values)
            labels, values = data.quantizer.values[known], data[name].values[known] * scale
            found.append(panel(data, name, caption, bars(labels, values, "method", unit, unit)))
    return found
