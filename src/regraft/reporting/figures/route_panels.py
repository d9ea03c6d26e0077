"""Folded figures of shuffle recovery."""

from __future__ import annotations

import xarray as xr

from regraft.reporting.theme import PALETTE, Panel, heatmap, lines, panel


def shuffle_panels(data: xr.Dataset) -> list[Panel]:
    """Tau for every order drawn, and against the length of the text."""
    found = []
    if "tau_by_seed" in data:
        figure = heatmap(
            data.tau_by_seed.values, data.draw.values, data.method.values, "Kendall's tau", zmin=0, zmax=1
        )
        figure.update_layout(xaxis_title="seed of the order", margin_l=150)
        figure.update_layout(height=150 + 26 * data.sizes["method"])
        found.append(panel(data, "tau_by_seed", "Recovery of every order drawn", figure))
    if "tau_by_text" in data:
        shown = [str(name) for name in data.method.values][-len(PALETTE) :]
        series = {name: data.tau_by_text.sel(method=name).values for name in shown}
        figure = lines(data.text_tokens.values, series, "tokens of text that are scored", "Kendall's tau")
        found.append(panel(data, "tau_by_text", "Recovery against the length of the text", figure))
    return found
