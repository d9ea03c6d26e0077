"""The figures of compressors: what is left of a file, against how fast it is packed and unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10

import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import FIRST, MUTED, Drawing, axis_labels, base

OWN = ("bpez", "ulz", "archive", "lm")
"""How the names of our own begin."""

TALL, WIDE = 0.06, 0.3
"""How near two names are over each other: share of the figure's height, and decades of a rate."""


def codec_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Ratio against the rate of packing and of unpacking, our own codecs in colour."""
    return [
        (f"What is left of {data.attrs['file']}, against the rate of {what}", _scatter(data, what))
        for what in ("packing", "unpacking")
    ]


def _scatter(data: xr.Dataset, what: str) -> go.Figure:
    figure = base(420)
    own = [str(name).startswith(OWN) for name in data.codec.values]
    rates, ratios = data[what].values.tolist(), data.ratio.values.tolist()
    figure.add_scatter(
        x=rates, y=ratios, mode="markers+text",
        text=axis_labels(data.codec.values), textposition=positions(rates, ratios),
        marker={"size": 10, "color": [FIRST if one else MUTED for one in own]},
        hovertemplate="%{text}: ratio %{y:.3f}, %{x:,.1f} MB/s<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title=f"{what}, MB/s (log)", type="log")
    figure.update_yaxes(title="bytes before over bytes after")
    return figure


def positions(rates: Sequence[float], ratios: Sequence[float]) -> list[str]:
    """Where names stand: above, or to the left and right of two that would stand over each other."""
    tall = (max(ratios) - min(ratios)) * TALL

    def beside(one: int, other: int) -> bool:
        near = abs(ratios[one] - ratios[other]) < tall
        return one != other and near and abs(log10(rates[one] / rates[other])) < WIDE

    found = []
    for one in range(len(rates)):
        others = [rates[other] for other in range(len(rates)) if beside(one, other)]
        left = any(rate >= rates[one] for rate in others)
        found.append("middle left" if left else "middle right" if others else "top center")
    return found


def codec_finding(data: xr.Dataset) -> str:
    """The smallest, and the fastest to unpack."""
    smallest, fastest = str(data.ratio.idxmax().item()), str(data.unpacking.idxmax().item())
    return (
        f"{smallest} makes {data.attrs['file']} smallest, {float(data.ratio.max()):.2f} times smaller than it"
        f" was; {fastest} unpacks fastest, at {float(data.unpacking.max()):,.0f} MB/s on this machine."
    )


CODECS = Drawing(
    "Codecs",
    "How small does each codec make this file, and how fast?",
    "Further up is smaller, further right is faster; nothing that lies below and left of another is worth"
    " taking. Rates are of this machine in this run, our own codecs with all its cores.",
    codec_figures,
    codec_finding,
    ("bytes", "bits_per_byte", "ratio", "packing", "unpacking"),
)
