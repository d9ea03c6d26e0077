"""The figure of a rebuilt model: how many decimals match at every stage of every block."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import SECOND, Drawing, heatmap
from regraft.reporting.wording import capital, counted, listed

OUTSIDE = "outside"


def split(stage: str) -> tuple[str, str]:
    """The block of a stage (`0`, `encoder.2`, or outside), and its kind."""
    words = stage.split(".")
    number = next((i for i, word in enumerate(words) if word.isdigit()), None)
    if number is None:
        return OUTSIDE, stage
    return ".".join(words[: number + 1]), ".".join(words[number + 1 :])


def rebuild_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    """Decimals that match: kinds of stages over blocks, those outside the blocks in the last column."""
    pairs = [split(str(stage)) for stage in dataset.stage.values]
    blocks = [*dict.fromkeys(block for block, _ in pairs if block != OUTSIDE), OUTSIDE]
    kinds = list(dict.fromkeys(kind for _, kind in pairs))
    table = np.full((len(kinds), len(blocks)), np.nan)
    largest = np.full(table.shape, np.nan)
    for (block, kind), decimals, difference in zip(
        pairs, dataset.decimals.values, dataset.largest.values, strict=True
    ):
        table[kinds.index(kind), blocks.index(block)] = decimals
        largest[kinds.index(kind), blocks.index(block)] = difference
    figure = heatmap(
        table, blocks, kinds, "decimals that match", customdata=largest, zmin=0, zmax=17,
        hovertemplate="%{y} of %{x}: %{z} decimals<br>largest difference %{customdata:.2g}<extra></extra>",
    )  # fmt: skip
    gone_on = [place for place, (_, flag) in zip(pairs, _carried(dataset), strict=True) if flag]
    if gone_on:
        figure.add_scatter(
            x=[block for block, _ in gone_on], y=[kind for _, kind in gone_on], mode="markers",
            marker=dict(symbol="x", size=9, color=SECOND), name="official tensor went on",
            hovertemplate="%{y} of %{x}: it parts, the official tensor went on<extra></extra>",
        )  # fmt: skip
    figure.update_layout(xaxis_title="block", height=150 + 22 * len(kinds), margin_l=130)
    figure.update_yaxes(autorange="reversed")
    return [("Decimals that match the official model's tensors (17: equal to the bit)", figure)]


def _carried(dataset: xr.Dataset) -> list[tuple[str, bool]]:
    """Every stage, and whether the official tensor went on in its place; results of older runs say nothing of
    it."""
    flags = dataset.carried.values if "carried" in dataset else np.zeros(dataset.sizes["stage"])
    return [(str(stage), bool(flag)) for stage, flag in zip(dataset.stage.values, flags, strict=True)]


def rebuild_finding(dataset: xr.Dataset) -> str:
    """How many stages pass and by how much, or where the two part and why."""
    attrs, count = dataset.attrs, dataset.sizes["stage"]
    exact = int((dataset.largest.values == 0).sum())
    went_on = [str(stage) for stage, flag in _carried(dataset) if flag]
    if went_on:
        agreeing = count - len(went_on) - bool(attrs["stuck"])
        behind = f" It ends there: {attrs['stuck']}." if attrs["stuck"] else ""
        return (
            f"{capital(counted(agreeing, 'stage'))} of the rebuilt {attrs['architecture']}"
            f" {'agrees' if agreeing == 1 else 'agree'}. {listed(went_on)} part, and the official tensor went"
            f" on in {'its place' if len(went_on) == 1 else 'the place of each'}.{behind}"
        )
    if attrs["parted"]:
        last = dataset.isel(stage=-1)
        return (
            f"{capital(counted(count - 1, 'stage'))} of the rebuilt"
            f" {attrs['architecture']} {'agrees' if count == 2 else 'agree'}, then {attrs['parted']} parts:"
            f" largest difference {float(last.largest):.2g}, {int(last.decimals)} decimals where"
            f" {attrs['needed']} are needed. {attrs['causes']}."
        )
    unused = f" Tensors that nothing read: {attrs['unused']}." if attrs["unused"] else ""
    note = f" {attrs['notes']}." if attrs["notes"] else ""
    sentence = f"All {count} stages of the rebuilt {attrs['architecture']} agree"
    if not count:
        return f"No stage of the rebuilt {attrs['architecture']} was compared."
    if count == 1:
        sentence = f"The one stage of the rebuilt {attrs['architecture']} agrees"
    rest = "" if exact == count else f", the others to at least {int(dataset.decimals.values.min())} decimals"
    return (
        f"{sentence} with {attrs['official']}: {exact or 'none'} of them to the bit{rest}"
        f" ({attrs['dtype']}). "
        f"{attrs['generated'] and attrs['generated'] + '.'}{unused}{note}"
    ).strip()


REBUILD = Drawing(
    "Rebuild",
    "Does a model written from the paper give the official model's numbers, stage by stage?",
    "Every cell is one named tensor, computed from the checkpoint's files alone and compared with the"
    " official model's, which ran in a process of its own. The comparison stops at the first stage that"
    " parts; with --carry the official tensor goes on in its place, marked by a cross.",
    rebuild_figures,
    rebuild_finding,
    ("decimals", "largest", "mean", "shape_of_ours", "shape_of_official"),
)
