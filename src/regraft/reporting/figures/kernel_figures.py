"""Figures of attention's kernels, folded below the survey of attention."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from regraft.reporting.theme import PALETTE, Listing, Panel, lines, panel


def kernel_panels(data: xr.Dataset) -> list[Panel]:
    """Milliseconds over keys, phase by phase; nothing where no kernel was timed."""
    if "kernel" not in data.dims:
        return []
    found = []
    for phase in data.phase.values:
        one = data.kernel_ms.sel(phase=phase)
        series = {
            str(kernel): one.sel(kernel=kernel).values
            for kernel in data.kernel.values
            if np.isfinite(one.sel(kernel=kernel).values).any()
        }
        figure = lines(
            data["key_count"].values, dict(list(series.items())[: len(PALETTE)]), "keys", "milliseconds"
        )
        figure.update_xaxes(type="log")
        figure.update_yaxes(type="log")
        told = f"{data.attrs['machine']}, {data.attrs['threads']} threads"
        found.append(panel(data, "kernel_ms", f"Kernels of attention, {phase}, on {told}", figure))
    return found


def kernel_listings(data: xr.Dataset) -> list[Listing]:
    """Kernels that cannot run here, or not at every phase, and why."""
    if "kernel" not in data.dims:
        return []
    rows = []
    for kernel, why in json.loads(data.attrs["unusable"]).items():
        for reason in dict.fromkeys(why.values()):
            phases = [phase for phase, one in why.items() if one == reason]
            rows.append([kernel, ", ".join(phases), reason])
    return [Listing("Kernels that are not usable here", ("kernel", "phases", "reason"), rows)] if rows else []
