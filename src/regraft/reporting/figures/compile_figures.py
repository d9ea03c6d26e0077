"""Figures of compiled parts: what a call takes, when compiling has paid, and what is compiled anew."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import PALETTE, Drawing, Panel, grouped_bars, lines, panel
from regraft.reporting.wording import counted

SHOWN = 6
"""Lines of a figure at most, in the order of the units."""


def compile_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Milliseconds of a call by unit, and calls until compiling has paid."""
    units = data.unit.values
    warm = {str(way): data.warm.sel(way=way).values for way in data.way.values[: len(PALETTE)]}
    drawn = [("A call, when everything is compiled", grouped_bars(units, warm, "", "milliseconds", log=True))]
    even = data.break_even.isel(way=slice(1, None))
    paid = {
        str(way): np.where(np.isfinite(even.sel(way=way).values), even.sel(way=way).values, np.nan)
        for way in even.way.values[: len(PALETTE)]
    }
    if any(np.isfinite(values).any() for values in paid.values()):
        caption = "Calls after which compiling has paid (no bar: never, within what was measured)"
        drawn.append((caption, grouped_bars(units, paid, "", "calls", log=True)))
    return drawn


def compile_panels(data: xr.Dataset) -> list[Panel]:
    """Seconds of the first call, and graphs over lengths."""
    ways = data.way.values[1 : 1 + len(PALETTE)]
    first = {str(way): data.first_call.sel(way=way).values for way in ways}
    figure = grouped_bars(data.unit.values, first, "", "seconds", log=True)
    found = [panel(data, "first_call", "The first call: compiling and running", figure)]
    order = np.argsort(data.length.values)
    so_far = {
        f"{unit}, {way}": data.graphs_so_far.sel(unit=unit, way=way).values
        for unit in data.unit.values
        for way in data.way.values[1:]
    }
    so_far = {name: values for name, values in so_far.items() if np.isfinite(values).all()}
    if so_far:
        shown = dict(list(so_far.items())[:SHOWN])
        turns = np.arange(1, len(order) + 1)
        curve = lines(turns, shown, "texts of another length", "graphs compiled")
        found.append(panel(data, "graphs_so_far", "Graphs compiled as texts of other lengths come", curve))
    return found


def compile_finding(data: xr.Dataset) -> str:
    """The largest gain with what it costs, and whether graphs break."""
    eager = data.warm.values[:, :1]
    gains = np.where(np.isfinite(data.warm.values), eager / data.warm.values, -np.inf)
    gains[:, 0] = -np.inf
    unit, way = np.unravel_index(int(gains.argmax()), gains.shape)
    name, noise = data.unit.values[unit], float(data.noise.values[unit])
    told = (
        f"Compiled ({data.way.values[way]}), {name} takes {data.warm.values[unit, way]:.3g} ms where eager"
        f" takes {eager[unit, 0]:.3g} ms, {gains[unit, way]:.2f} times (eager beside itself differs by"
        f" {noise:.0%})"
    )
    even = float(data.break_even.values[unit, way])
    told += f"; its first call of {data.first_call.values[unit, way]:.1f} s "
    told += f"has paid after {even:,.0f} calls" if np.isfinite(even) else "never pays"
    breaks = json.loads(data.attrs["breaks_at"])
    said = (
        f"Its graphs break {counted(len(breaks), 'time')}, first at {breaks[0]['place']}"
        if breaks
        else "No graph breaks"
    )
    return f"{told}. {said}. Measured on {data.attrs['machine']}, {counted(data.attrs['threads'], 'thread')}."


COMPILE = Drawing(
    "Compiled",
    "Which parts gain by being compiled, and when has that paid?",
    "Every part is called alone on what a text gives it. Compiling is paid once for each shape; a gain counts"
    " only where it is larger than what eager differs from itself.",
    compile_figures,
    compile_finding,
    ("warm", "first_call", "break_even", "difference", "operators"),
    compile_panels,
)
