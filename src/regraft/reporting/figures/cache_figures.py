"""Figures of strategies for keys and values: lost over kept, by distance, by block and head."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import FIRST, MUTED, SECOND, THIRD, Drawing, Panel, base, heatmap, lines, panel
from regraft.reporting.wording import counted

FAMILIES = {
    "fewer bits": ("bf16", "fp8", "fp8_e5m2", "int8", "int4", "int3", "int2"),
    "fewer tokens": ("window", "h2o", "snapkv", "pyramid", "scissorhands", "offload"),
    "fewer tokens, a control": ("random", "oldest"),
    "fewer heads, directions or blocks": ("heads", "rank", "latent", "share"),
}
"""Kinds of strategies, each with a colour and a mark of its own."""
LOOKS = ((FIRST, "circle"), (SECOND, "square"), (MUTED, "x"), (THIRD, "diamond"))
FLOOR = 1e-6
"""Nats per token under which a strategy changes nothing that a figure shows."""
FREE = 1e-3
"""Nats per token up to which a strategy is said to cost nothing."""
SHOWN = 6
"""Lines of strategies that can be told apart."""


def cache_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """What is lost over bytes, with the front of what nothing beats."""
    figure = _scattered(
        data, data.bytes.values, np.maximum(data.kl.values, FLOOR), "%{y:.3g} nats", height=430
    )  # fmt: skip
    front = front_of(data)
    figure.add_scatter(
        x=data.bytes.values[front], y=np.maximum(data.kl.values[front], FLOOR), mode="lines",
        name="nothing is better", line=dict(color=MUTED, dash="dot"), hoverinfo="skip",
    )  # fmt: skip
    figure.update_yaxes(title="nats per token from the whole cache", type="log")
    drawn = [("What a cache loses, over what it keeps", figure)]
    if "peer_kl" in data and np.isfinite(data.peer_kl.values).any():
        there = data.isel(peer=np.isfinite(data.peer_kl.values))
        figure.add_scatter(
            x=there.peer_bytes.values, y=np.maximum(there.peer_kl.values, FLOOR), mode="markers",
            name="transformers' own", marker=dict(size=10, color=MUTED, symbol="star-open"),
            text=[str(s) for s in there.peer.values],
            hovertemplate="%{text}<br>%{x:,.0f} bytes per token<br>%{y:.3g} nats<extra></extra>",
        )  # fmt: skip
    if recalls(data):
        drawn.append(("Facts told again, over what is kept", _recall(data)))
    if np.isfinite(data.sensitivity_head.values).any():
        heads = heatmap(
            data.sensitivity_head.values, data.key_head.values, data.block.values, "nats",
            hovertemplate="block %{y}, key head %{x}<br>%{z:.3g} nats<extra></extra>",
        )  # fmt: skip
        heads.update_layout(xaxis_title="key head", yaxis_title="block")
        drawn.append((f"One head's cache as {data.attrs['sensitivity']}, the others whole", heads))
    return drawn


def _scattered(data: xr.Dataset, held: np.ndarray, found: np.ndarray, said: str, height: int) -> go.Figure:
    """A point for each strategy at its bytes, each kind with its colour and mark."""
    figure = base(height)
    for (name, kinds), (colour, mark) in zip(FAMILIES.items(), LOOKS, strict=True):
        some = np.isin(data.kind.values, kinds)
        if some.any():
            figure.add_scatter(
                x=held[some], y=found[some], mode="markers", name=name,
                marker=dict(size=9, color=colour, symbol=mark),
                text=[str(s) for s in data.strategy.values[some]],
                hovertemplate=f"%{{text}}<br>%{{x:,.0f}} bytes per token<br>{said}<extra></extra>",
            )  # fmt: skip
    figure.update_layout(showlegend=True, legend=dict(orientation="h", y=1.12, x=0))
    figure.update_xaxes(title="bytes for each token of the prefix", type="log")
    return figure


def recalls(data: xr.Dataset) -> bool:
    """Whether facts were asked for that the whole cache tells."""
    return "needle_accuracy" in data and bool(np.isfinite(data.needle_accuracy.values).any())


def _recall(data: xr.Dataset) -> go.Figure:
    """Recall over bytes, a point for each strategy."""
    held = data.needle_bytes.mean("needle_length").values
    figure = _scattered(data, held, data.needle_accuracy.values, "%{y:.0%} told again", height=400)
    figure.update_yaxes(title="share of facts told again", range=[-0.03, 1.03], tickformat=".0%")
    return figure


def front_of(data: xr.Dataset) -> list[int]:
    """Strategies that no other beats in bytes and in what is lost, by bytes."""
    found: list[int] = []
    least = float("inf")
    for number in np.lexsort((data.kl.values, data.bytes.values)):
        if data.kl.values[number] < least:
            least = float(data.kl.values[number])
            found.append(int(number))
    return found


def cache_panels(data: xr.Dataset) -> list[Panel]:
    """Added loss over distance of the cheapest of each kind, and single blocks."""
    order = np.argsort(data.bytes.values)
    some: dict[str, np.ndarray] = {}
    for number in order:
        kind = str(data.kind.values[number])
        if kind not in {name.partition(":")[0] for name in some} and len(some) < SHOWN:
            some[str(data.strategy.values[number])] = data.loss_added_by_distance.values[number]
    curve = lines(data.distance.values, some, "tokens behind the prefix", "nats per token")
    each = lines(data.block.values, {"one block": data.sensitivity_block.values}, "block", "nats per token")
    places = []
    if recalls(data):
        asked_at = np.flatnonzero(np.isfinite(data.needle_map.values).all((0, 2)))
        table = data.needle_map.isel(needle_length=int(asked_at[-1]))
        names = [str(s) for s in data.strategy.values]
        where = heatmap(
            table.values, data.needle_depth.values, names, "share",
            hovertemplate="%{y}<br>fact at %{x} of the prefix<br>%{z:.0%} told again<extra></extra>",
        )  # fmt: skip
        where.update_layout(xaxis_title="where the fact stood: 0 first, 1 last", height=120 + 16 * len(names))
        where.update_yaxes(autorange="reversed", automargin=True)
        longest = int(table.needle_length)
        places = [panel(data, "needle_map", f"Facts told again, in a prefix of {longest} tokens", where)]
    return [
        *places,
        panel(data, "loss_added_by_distance", "Loss added over distance, the smallest of each kind", curve),
        panel(data, "sensitivity_block", f"One block's cache as {data.attrs['sensitivity']}", each),
    ]


def cache_finding(data: xr.Dataset) -> str:
    """The smallest cache that costs nothing, and the smallest of all."""
    free = data.isel(strategy=(data.kl.values <= FREE) & (data.ratio.values > 1))
    said = f"Of {counted(data.sizes['strategy'], 'strategy', 'strategies')}"
    if free.sizes["strategy"]:
        best = int(np.argmax(free.ratio.values))
        said += (
            f", {free.strategy.values[best]} keeps a prefix in {free.ratio.values[best]:.1f} times fewer"
            f" bytes and changes the next token by {free.kl.values[best]:.1g} nats"
        )
    least = int(np.argmin(data.bytes.values))
    said += (
        f"; the smallest, {data.strategy.values[least]}, keeps {data.bytes.values[least]:,.0f} bytes"
        f" for each token and costs {data.kl.values[least]:.2g} nats."
    )
    if recalls(data):
        some = data.needle_whole.values.any(1)  # prefixes of which the whole cache tells any
        whole, told = float(data.needle_whole.values[some].mean()), float(data.needle_accuracy[least])
        said += f" Of facts in the prefix the whole cache tells {whole:.0%} again, the smallest {told:.0%}."
    return said


CACHE = Drawing(
    "Keys and values",
    "What of a prefix must be kept?",
    "Each point is a strategy: to the left it keeps less, below it changes the next token's distribution"
    " less. Dropping tokens loses what they said; fewer bits blur all of them.",
    cache_figures,
    cache_finding,
    ("bytes", "ratio", "kl", "top1_agreement", "loss_added", "repeat_accuracy", "needle_accuracy"),
    cache_panels,
)
