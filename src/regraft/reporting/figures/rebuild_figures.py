"""The figure of a rebuilt model: how many decimals match at every stage of every block."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.theme import Drawing, heatmap
from regraft.reporting.wording import capital, counted

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
    figure.update_layout(xaxis_title="block", height=150 + 22 * len(kinds), margin_l=130)
    figure.update_yaxes(autorange="reversed")
    return [("Decimals that match the official model's tensors (17: equal to the bit)", figure)]


def rebuild_finding(dataset: xr.Dataset) -> str:
    """How many stages pass and by how much, or where the two part and why."""
    attrs, count = dataset.attrs, dataset.sizes["stage"]
    exact = int((dataset.largest.values == 0).sum())
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
    " parts.",
    rebuild_figures,
    rebuild_finding,
    ("decimals", "largest", "mean", "shape_of_ours", "shape_of_official"),
)
