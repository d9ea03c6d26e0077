"""The table of drawings: how each result is drawn and explained.

A third-party package adds one through the entry point group `regraft.drawings`, whose name is the
experiment's and whose value is `package.module:DRAWING`. A result without a drawing is drawn plainly.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

import plotly.graph_objects as go
import xarray as xr

from regraft.reporting.figures import (
    attention_figures,
    bit_figures,
    block_figures,
    cache_figures,
    codec_figures,
    compile_figures,
    component_figures,
    component_panels,
    disaggregate_figures,
    graft_figures,
    intervene_figures,
    intervene_panels,
    observe_figures,
    patch_figures,
    rebuild_figures,
    route_figures,
    steer_figures,
    text_figures,
    token_figures,
    transcoder_figures,
)
from regraft.reporting.theme import Drawing, bars, heatmap

GROUP = "regraft.drawings"
DRAWINGS = {
    "lens": observe_figures.LENS,
    "geometry": observe_figures.GEOMETRY,
    "attention": attention_figures.ATTENTION,
    "contributions": component_panels.CONTRIBUTIONS,
    "completions": observe_figures.COMPLETIONS,
    "spectra": block_figures.SPECTRA,
    "linearity": block_figures.LINEARITY,
    "correlations": block_figures.CORRELATIONS,
    "trajectories": text_figures.TRAJECTORIES,
    "neurons": text_figures.NEURONS,
    "knockout": intervene_figures.KNOCKOUT,
    "swap": intervene_figures.SWAP,
    "patch": patch_figures.PATCH,
    "paths": patch_figures.PATHS,
    "cache": cache_figures.CACHE,
    "compile": compile_figures.COMPILE,
    "disaggregate": disaggregate_figures.DISAGGREGATE,
    "bottleneck": intervene_panels.BOTTLENECK,
    "replacement": intervene_figures.REPLACEMENT,
    "ablate": component_figures.ABLATE,
    "push": component_figures.PUSH,
    "prune": route_figures.PRUNE,
    "reorder": route_figures.REORDER,
    "transplant": route_figures.TRANSPLANT,
    "repeat": route_figures.REPEAT,
    "noise": route_figures.NOISE,
    "steer": steer_figures.STEER,
    "shuffle": route_figures.SHUFFLE,
    "quantize": bit_figures.QUANTIZE,
    "quantizers": bit_figures.QUANTIZERS,
    "rebuild": rebuild_figures.REBUILD,
    "certificate": graft_figures.CERTIFICATE,
    "transcoder": transcoder_figures.TRANSCODER,
    "transcoder_pareto": transcoder_figures.PARETO,
    "codecs": codec_figures.CODECS,
    "tokenizers": token_figures.TOKENIZERS,
    "tokenizer transplant": token_figures.TOKENIZER_TRANSPLANT,
}
"""Every drawing of this package by the name of its result."""


@cache
def drawings() -> dict[str, Drawing]:
    """Every drawing by the name of its result: those of this package, then those that other packages add.

    Raises:
        ValueError: a package draws what has a drawing already.
    """
    found = dict(DRAWINGS)
    for point in entry_points(group=GROUP):
        if point.name in found:
            raise ValueError(f"the experiment {point.name!r} has a drawing already")
        found[point.name] = point.load()
    return found


def drawing_of(dataset: xr.Dataset) -> Drawing:
    """The drawing of a result; a plain one where its experiment brought none."""
    return drawings().get(dataset.attrs["experiment"]) or _plain(dataset)


def title_for(experiment: str) -> str:
    """What a chapter is called by its experiment, before there is a result."""
    drawing = drawings().get(experiment)
    return drawing.title if drawing is not None else experiment.capitalize()


def _plain(dataset: xr.Dataset) -> Drawing:
    name = dataset.attrs["experiment"]
    return Drawing(
        name.capitalize(),
        "What did this experiment measure?",
        "Each figure shows one measured quantity over its dimensions. Hover over a point to read its value.",
        _plain_figures,
        lambda d: "",
    )


def _plain_figures(dataset: xr.Dataset) -> list[tuple[str, go.Figure]]:
    found = []
    for name, values in dataset.data_vars.items():
        if values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
            continue
        x = values.dims[-1]
        if values.ndim == 1:
            figure = bars(dataset[x].values, values.values, str(x), str(name), values.attrs.get("units", ""))
        else:
            figure = heatmap(
                values.values,
                dataset[x].values,
                dataset[values.dims[0]].values,
                values.attrs.get("units", ""),
            )
            figure.update_layout(xaxis_title=str(x), yaxis_title=str(values.dims[0]))
        found.append((str(name), figure))
    return found
