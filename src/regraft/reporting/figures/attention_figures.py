"""Figures of the survey of attention: what heads look at, their patterns, state and recall."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures.kernel_figures import kernel_listings, kernel_panels
from regraft.reporting.theme import (
    MUTED,
    Drawing,
    Panel,
    axis_labels,
    bars,
    heatmap,
    lines,
    panel,
    token_labels,
)
from regraft.reporting.wording import counted

MAPS = {
    "induction": "What followed the same token earlier, in random tokens read twice",
    "duplicate": "The same token earlier, in random tokens read twice",
    "previous": "The token before, on text",
    "first": "The first token, on text",
    "entropy": "How many keys a head reads: entropy on text",
    "distance": "How far back a head reads, on text",
}
"""Maps of heads, the first that is there large."""
RECALLED = {
    "repeat": "tokens of a random text that is read again",
    "pair": "pairs that were told",
    "far": "tokens between the pairs and the question",
}
DOES = {
    "induction": "copy what came next last time",
    "previous": "read the token before",
    "first": "rest on the first token",
}
"""What a head is said to do."""
MIB = 1 << 20
"""Bytes."""
STRONG = 0.5
"""Share of attention from which a head is said to do something."""


def attention_figures(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Maps of heads, the patterns of chosen ones, and the state over length."""
    drawn = [(caption, _head_map(data, name)) for name, caption in MAPS.items() if name in data]
    drawn = [(caption, figure) for caption, figure in drawn if figure is not None]
    return [*drawn[:1], *_patterns(data), *drawn[1:], ("State of one text over its length", _state(data))]


def _head_map(data: xr.Dataset, name: str) -> go.Figure | None:
    values, unit = data[name].values, data[name].attrs["units"]
    if not np.isfinite(values).any():
        return None
    short = unit.split(",")[0].split(" on ")[0]
    figure = heatmap(
        values, data["head"].values, data.block.values, short,
        hovertemplate=f"block %{{y}}, head %{{x}}<br>%{{z:.3f}} {short}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis_title="head", yaxis_title="block")
    return figure


def _patterns(data: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """One map for each chosen head: queries down, keys across, the text on both sides."""
    if "pattern" not in data:
        return []
    words = token_labels(data.word.values)
    down = axis_labels(f"{place} {str(word).strip() or '·'}" for place, word in enumerate(data.word.values))
    drawn = []
    for number, chosen in enumerate(data.chosen.values):
        weights = data.pattern.values[number]
        figure = heatmap(
            np.where(np.tri(*weights.shape, dtype=bool) | (weights > 0), weights, np.nan),
            words, down, "share",
            hovertemplate="%{y} reads %{x}<br>%{z:.3f}<extra></extra>",
        )  # fmt: skip
        figure.update_layout(xaxis_title="key", yaxis_title="query")
        figure.update_yaxes(autorange="reversed")
        block, _, head = str(chosen).rpartition(".")
        drawn.append((f"Pattern of head {head} of block {block} on the first text", figure))
    return drawn


def _state(data: xr.Dataset) -> go.Figure:
    """Bytes over length, with the weights as a line, both axes logarithmic."""
    series = {
        "state": data.state.sum("block").values / MIB,
        "if every head kept its own": data.state_if_full.sum("block").values / MIB,
        "the weights": np.full(data.sizes["length"], data.attrs["weights_bytes"] / MIB),
    }
    series = {name: values for name, values in series.items() if (values > 0).any()}
    figure = lines(data.length.values, series, "tokens", "MiB")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def attention_panels(data: xr.Dataset) -> list[Panel]:
    """Work over length, state by block, and recall."""
    work = {
        "a whole text": data.prefill_work.sum("block").values / data.length.values,
        "one token more": data.decode_work.sum("block").values,
    }
    figure = lines(data.length.values, work, "tokens", "multiply-adds for each token")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    found = [panel(data, "prefill_work", "Work of mixing tokens, for each token", figure)]
    kinds = [f"{block}: {kind}" for block, kind in zip(data.block.values, data.kind.values, strict=True)]
    longest = int(data.length.values[-1])
    each = bars(kinds, data.state.values[:, -1] / MIB, "block", "MiB", "MiB")
    found.append(panel(data, "state", f"State of every block at {longest:,} tokens, and its kind", each))
    for name, across in RECALLED.items():
        if f"recall_{name}" in data and data.sizes[f"{name}_size"]:
            found.append(_recall(data, name, across))
    if "refresh_loss" in data:
        each = {str(name): data.refresh_loss.values[i] for i, name in enumerate(data.left.values)}
        curve = lines(data.behind.values, each, "tokens behind the place", "nats per token")
        found.append(panel(data, "refresh_loss", "Loss where a text goes on with less of its past", curve))
    if "beside_state" in data:
        found.append(_beside(data))
    return [*found, *kernel_panels(data)]


def _beside(data: xr.Dataset) -> Panel:
    """State over length, one line for each model, with its weights as a point where the two are equal."""
    names = [str(name) for name in data.surveyed.values]
    each = {name: data.beside_state.values[i] / MIB for i, name in enumerate(names)}
    figure = lines(data.length.values, each, "tokens", "MiB")
    figure.add_scatter(
        x=data.beside_passes_weights.values, y=data.beside_weights.values / MIB, mode="markers",
        name="as much as the weights", marker=dict(size=10, symbol="x", color=MUTED), text=names,
        hovertemplate="%{text}<br>%{x:,.0f} tokens, %{y:,.1f} MiB<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    told = "; ".join(f"{n}: {k}" for n, k in zip(names, data.surveyed_kinds.values, strict=True))
    return panel(data, "beside_state", f"State of one text in each model ({told})", figure)


def _recall(data: xr.Dataset, name: str, across: str) -> Panel:
    series = {
        "likeliest of all tokens": data[f"recall_{name}"].values,
        "likeliest of what stands there": data[f"recall_{name}_among"].values,
        "guessing": data[f"recall_{name}_chance"].values,
    }
    figure = lines(data[f"{name}_size"].values, series, across, "share right")
    figure.update_xaxes(type="log")
    figure.update_yaxes(range=[-0.02, 1.02])
    return panel(data, f"recall_{name}", f"Recall over the number of {across}", figure)


def attention_finding(data: xr.Dataset) -> str:
    """Kinds, state, and the heads that do most of one thing."""
    names, counts = np.unique(data.kind.values, return_counts=True)
    each = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
    kinds = f", all {names[0]}" if len(names) == 1 else f": {each}"
    per_token = int(data.state_per_token.values.sum())
    fixed = int(data.state_fixed.values.sum())
    kept = [f"{per_token:,} bytes for each token"] if per_token else []
    kept += [f"{fixed:,} bytes whatever the length"] if fixed else []
    state = " and ".join(kept) or "nothing"
    sentence = f"{counted(data.sizes['block'], 'block')} mix tokens{kinds}; they keep {state}"
    if data.attrs["not_counted"]:
        sentence += f" by formula (not counted: {data.attrs['not_counted']})"
    elif data.attrs["agrees"] == data.attrs["blocks"]:
        sentence += ", counted and by formula alike"
    else:
        apart = data.attrs["blocks"] - data.attrs["agrees"]
        sentence += f", but {counted(apart, 'block')} keep another number than the formula says"
    counts = {what: int((data[name].values >= STRONG).sum()) for name, what in DOES.items() if name in data}
    doing = [f"{count} {what}" for what, count in counts.items() if count]
    told = f" Of its heads, with at least half of their attention: {', '.join(doing)}." if doing else ""
    return f"{sentence}.{told}{_beside_told(data)}{_refresh_told(data)}"


def _beside_told(data: xr.Dataset) -> str:
    """State of every model at the longest length."""
    if "beside_state" not in data:
        return ""
    at = zip(data.surveyed.values, data.beside_state.values[:, -1] / MIB, strict=True)
    each = ", ".join(f"{mib:,.1f} MiB in {name}" for name, mib in at)
    return f" A text of {int(data.length[-1]):,} tokens keeps {each}."


def _refresh_told(data: xr.Dataset) -> str:
    """What emptied states and hidden keys cost."""
    if "refresh_loss" not in data:
        return ""
    means = data.refresh_loss.mean("behind")
    each = [f"{float(means[i] - means[0]):+.3g} nats with {name}" for i, name in enumerate(data.left.values)]
    return f" Behind a place where less of its past is left the loss is {', '.join(each[1:])}."


ATTENTION = Drawing(
    "Attention",
    "What mixes tokens, what does it keep, and what do heads look at?",
    "A map has a row for every block and a column for every head; the share is of its attention, averaged"
    " over queries. In a pattern, each row is a token that asks and each column one that is read. The state"
    " is what a model keeps of a text while it writes on.",
    attention_figures,
    attention_finding,
    ("state_per_token", "state_fixed", "window", "query_heads", "key_heads"),
    attention_panels,
    listings=kernel_listings,
)
