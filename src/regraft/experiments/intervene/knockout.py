"""Knockout: what is lost when a block is skipped, alone, in pairs, or one after the other until too much is
lost."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.quantities import quantity
from regraft.data.evaluation import Evaluation, evaluation
from regraft.experiments.intervene.knockout_pairs import (
    PUBLISHED,
    THRESHOLDS,
    pair_quantities,
    removable_quantities,
    stopping_quantities,
)
from regraft.model.model import Model
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant

MISSED = "A block far above the others is one that the model cannot do without."


def knockout(
    model: Model,
    mode: Literal["single", "pairs", "greedy"] = "single",
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    limit: float = 2.0,
    regions: list[str] | None = None,
) -> xr.Dataset:
    """Skip blocks and measure what the loss becomes.

    A skipped block is the identity on the residual stream. `single` skips each block; `pairs` each pair as
    well, with the synergy S(i, j) = dL(i, j) - (dL(i) + dL(j)), its most super- and sub-additive pairs, and
    how often a block is in the five most super-additive ones; `greedy` removes the least harmful block,
    measures all that remain anew, and goes on until the loss would pass `limit` times the clean one.

    Args:
        mode: single, pairs or greedy.
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        limit: greedy stops before the loss exceeds this multiple of the clean loss.
        regions: markers of parts of the text for which the loss is told by itself, for example
            `<think>...</think>`; with single.

    Raises:
        ValueError: the model has no next-token loss, the mode is not known, or a region's marker is absent
            from a text or not closed there.

    Examples:
        >>> data = regraft.knockout(model, count=2, tokens=4)
        >>> dict(data["loss"].sizes), data["loss"].attrs["units"]
        ({'block': 12}, 'nats per token')
    """
    if regions and mode != "single":
        raise ValueError("regions are told of blocks skipped alone: choose --mode single")
    text = evaluation(model, prompts, count, tokens, regions)
    if mode == "single":
        return _single(model, text)
    if mode == "pairs":
        return _pairs(model, text)
    if mode == "greedy":
        return greedy(model, text, limit, [block.index for block in model.blocks])
    raise ValueError(f"mode {mode!r} is not known: choose single, pairs or greedy")


def _skipping(model: Model, sets: list[set[int]], text: Evaluation) -> SweepResult:
    variants = [Variant(route=Route.skip(len(model.blocks), skipped)) for skipped in sets]
    return sweep(text.recordings, variants, loss())


def _addresses(model: Model) -> list[str]:
    return [block.address for block in model.blocks]


def _attributes(model: Model, text: Evaluation, *results: SweepResult) -> dict[str, Any]:
    return {**sweep_attributes(*results), "clean_loss": results[0].clean_mean("loss"), **text.attributes}


def _single(model: Model, text: Evaluation) -> xr.Dataset:
    result = _skipping(model, [{block.index} for block in model.blocks], text)
    losses, clean = result.mean("loss").numpy(), result.clean_mean("loss")
    named = {name[5:-1]: name for name in result.units if name.startswith("loss[")}
    parts: dict[str, Any] = {}
    if named:
        units = {"units": "nats per token of the region"}
        by_region = np.stack([result.mean(name).numpy() for name in named.values()])
        clean_of = np.array([result.clean_mean(name) for name in named.values()])
        above = {"units": f"{units['units']} above clean"}
        parts = {
            "region_loss": (("region", "block"), by_region, units),
            "region_increase": (("region", "block"), by_region - clean_of[:, None], above),
            "region_clean_loss": ("region", clean_of, units),
        }
    return xr.Dataset(
        {
            **parts,
            "loss": ("block", losses, {"units": "nats per token"}),
            "increase": quantity(
                "block", losses - clean, "nats per token above clean", MISSED, PUBLISHED, correlate="loss"
            ),
            "ratio": quantity("block", losses / clean, "times the clean loss", MISSED, PUBLISHED),
            "prompt_loss": (("block", "prompt"), result.values["loss"].numpy(), {"units": "nats per token"}),
        },
        coords={
            "block": _addresses(model),
            "category": ("prompt", [c.category for c in text.flat]),
            **({"region": list(named)} if named else {}),
        },
        attrs=_attributes(model, text, result),
    )


def _pairs(model: Model, text: Evaluation) -> xr.Dataset:
    count = len(model.blocks)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    result = _skipping(model, [{i} for i in range(count)] + [{i, j} for i, j in pairs], text)
    losses, clean = result.mean("loss").numpy(), result.clean_mean("loss")
    single = losses[:count] - clean
    increase = np.diag(single)
    for (i, j), value in zip(pairs, losses[count:] - clean, strict=True):
        increase[i, j] = increase[j, i] = value
    synergy = increase - (single[:, None] + single[None, :])
    np.fill_diagonal(synergy, np.nan)
    dims = ("block", "other")
    return xr.Dataset(
        {
            "increase": (dims, increase, {"units": "nats per token above clean"}),
            "synergy": quantity(
                dims,
                synergy,
                "nats per token beyond the sum of both alone",
                "Above 0 each of the two stood in for the other; below 0 they broke the same thing.",
                PUBLISHED,
            ),
            **pair_quantities(synergy, pairs, _addresses(model)),
        },
        coords={"block": _addresses(model), "other": _addresses(model)},
        attrs=_attributes(model, text, result),
    )


def greedy(model: Model, text: Evaluation, limit: float, among: list[int], keep: int = 0) -> xr.Dataset:
    """Remove blocks one after the other, of those `among`, until `keep` of them are left or the limit would
    be passed.

    Raises:
        ValueError: a limit that is not above 1.
    """
    if not limit > 1.0:
        raise ValueError(f"the limit is {limit}: it is a multiple of the clean loss and must be above 1")
    removed: list[int] = []
    losses: list[float] = []
    candidate_losses = []
    clean = float("nan")
    works = []
    stopped = ("", float("nan"))
    while len(removed) < len(among) - keep:
        left = [index for index in among if index not in removed]
        result = _skipping(model, [{*removed, block} for block in left], text)
        works.append(result)
        clean = result.clean_mean("loss")
        after = result.mean("loss").numpy()
        if not np.isfinite(after).any():
            break
        best = int(np.nanargmin(after))
        if not after[best] <= limit * clean:
            stopped = (_addresses(model)[left[best]], float(after[best]))
            break
        row = np.full(len(model.blocks), np.nan)
        row[left] = after
        candidate_losses.append(row)
        removed.append(left[best])
        losses.append(float(after[best]))
    attributes = {**_attributes(model, text, *works), "limit": limit, "blocks_removed": len(removed)}
    return xr.Dataset(
        {
            "removed": (
                "step",
                [_addresses(model)[i] for i in removed],
                {"units": "block removed at this step"},
            ),
            "loss": quantity(
                "step",
                np.array(losses),
                "nats per token after this step",
                "It stays level as long as blocks go that nobody misses.",
                PUBLISHED,
            ),
            "ratio": ("step", np.array(losses) / clean, {"units": "times the clean loss"}),
            "candidate_loss": (
                ("step", "block"),
                np.array(candidate_losses).reshape(len(removed), len(model.blocks)),
                {"units": "nats per token if this block went"},
            ),
            **removable_quantities(np.array(losses) / clean, limit),
            **stopping_quantities(*stopped),
        },
        coords={
            "step": np.arange(1, len(removed) + 1),
            "block": _addresses(model),
            "threshold": list(THRESHOLDS),
        },
        attrs=attributes,
    )
