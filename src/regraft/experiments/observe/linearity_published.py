"""Variables of the published second version of layer linearity, and what goes with what over the blocks.

Shapes: P prompts, L blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from regraft.core.quantities import quantity
from regraft.data.evaluation import Evaluation
from regraft.experiments.observe.moved_sequences import (
    DIRECTIONS,
    FLOOR,
    SHARED,
    MovedSequences,
    moved_sequences,
)
from regraft.experiments.observe.paired import pearson
from regraft.experiments.observe.published_fits import published_fits
from regraft.model.model import Model
from regraft.sweeps.provenance import sweep_attributes

PUBLISHED = "linearity study of Qwen3-4B, second version (hivaze/dl-experiments)"
OVER_BLOCKS = "Pearson's correlation over blocks"


def relation_quantities(data: xr.Dataset) -> dict[str, Any]:
    """Whether curved blocks are the critical ones, and well-fitted ones replaceable; NaN without a loss, or
    for fewer than four blocks."""
    gap = data.gap.sel(part="block").values
    hurt = data.knockout_loss.values - data.attrs.get("clean_loss", np.nan)
    alike = data.consistency.sel(part="block").values
    one = "One block far from the others can make a correlation: look at the scatter before believing it."
    return {
        "gap_criticality_r": quantity(
            (), pearson(gap, hurt), f"{OVER_BLOCKS}: gap with the loss that skipping adds", one, PUBLISHED
        ),
        "fit_recovered_r": quantity(
            (), pearson(data.linear_fit.values, data.recovered.values),
            f"{OVER_BLOCKS}: R squared of the linear map with the loss that it recovers", one, PUBLISHED,
        ),
        "gap_consistency_r": quantity(
            (), pearson(gap, alike), f"{OVER_BLOCKS}: gap with consistency", one, PUBLISHED
        ),
    }  # fmt: skip


def as_published(model: Model, data: xr.Dataset, text: Evaluation, seed: int) -> xr.Dataset:
    """The result with the published measures beside ours."""
    moved = moved_sequences(model, text, seed)
    names, r2, recovered, swept = published_fits(model, text.recordings, seed)
    data = data.assign_coords(fit=names, prompt=("prompt", [c.prompt for c in text.flat]))
    data = data.assign({**_of_sequences(moved), **_of_directions(moved), **_of_fits(r2, recovered)})
    residual, on = data.fit_r2.sel(fit="residual").values, moved.on
    gap, hurt = moved.gap[0], data.knockout_loss.values - data.attrs.get("clean_loss", np.nan)
    scatters = {
        "published_gap_criticality_r": (
            pearson(gap, hurt),
            "gap with all positions moved, with the loss that skipping adds",
        ),
        "published_gap_consistency_r": (
            pearson(gap, moved.consistency),
            "gap with all positions moved, with the prompts' consistency",
        ),
        "r2_recovered_r": (
            pearson(residual, data.fit_recovered.sel(fit="residual").values),
            "R squared of the residual fit with the loss that it recovers",
        ),
        "manifold_r2_r": (
            pearson(on, residual),
            "gap along the data's directions with R squared of the residual fit",
        ),
    }
    reading = "Near 0: a good fit of the numbers says nothing about the loss."
    data = data.assign(
        {
            n: quantity((), value, f"{OVER_BLOCKS}: {of}", reading, PUBLISHED)
            for n, (value, of) in scatters.items()
        }
    )
    told = sweep_attributes(swept)
    work = {name: data.attrs.get(name, 0) + told[name] for name in ("work_executed", "work_naive")}
    return data.assign_attrs(
        published_work_executed=work["work_executed"], published_work_naive=work["work_naive"]
    )


def _of_sequences(moved: MovedSequences) -> dict[str, Any]:
    grid = ("part", "block")
    change = "of the change, at a step of 5% of all positions at once"
    return {
        "gap_all_positions": quantity(
            grid, moved.gap, f"{change}, {DIRECTIONS} directions",
            "Above our gap: what the attention answers when the context moves too. The MLP's holds its"
            " attention's answer.", PUBLISHED,
        ),
        "gap_by_prompt": quantity(
            ("prompt", *grid), moved.gap_by_prompt, change,
            "A row far above the others is a prompt whose states lie where the block bends.", PUBLISHED,
        ),
        "gap_order": quantity(
            grid, moved.order, "1 + slope of log gap on log step, mean over prompts by their tokens",
            "2 is a quadratic bend; below it something saturates.", PUBLISHED,
        ),
        "gap_order_r2": quantity(
            grid, moved.order_fit, "R squared of that line", "Below 0.5 there is no one order.", PUBLISHED
        ),
        "amplification_all_positions": quantity(
            grid, moved.amplification, "mean length of J d, all positions moved, over the length of d",
            "Above 1 a disturbance of the whole context grows.", PUBLISHED,
        ),
        "transform_ratio": quantity(
            "block", moved.transform_ratio, "mean length of what the block adds / mean length of the stream",
            "Above 1 the block adds more than there was.", PUBLISHED,
        ),
    }  # fmt: skip


def _of_directions(moved: MovedSequences) -> dict[str, Any]:
    step = "gap at a step of 5%"
    shared = f"mean over {SHARED} directions that all positions share"
    return {
        "consistency_prompt": quantity(
            "block", moved.consistency, f"cosine of two prompts' mean responses to one direction, {shared}",
            "High although tokens differ (our consistency): averaging over a prompt's tokens leaves what they"
            " have in common.", PUBLISHED,
        ),
        "consistency_prompt_std": quantity(
            "block", moved.consistency_std, f"standard deviation over the {SHARED} directions",
            "Large: some directions mean the same everywhere, others do not.", PUBLISHED,
        ),
        "gap_on_manifold": quantity(
            "block", moved.on, f"{step} along the data's first 20 principal directions",
            "Below the random ones: the block bends least where its data lie.", PUBLISHED,
        ),
        "gap_off_manifold": quantity(
            "block", moved.off, f"{step} along 20 random directions, new ones at each position",
            "The published other side; it differs from the first in being shared, too.", PUBLISHED,
        ),
        "gap_off_shared": quantity(
            "block", moved.off_shared, f"{step} along 20 random directions that all positions share",
            "Compare this one with the gap along the data: both are shared by all positions.",
        ),
        "gap_ratio": quantity(
            "block", moved.on / (moved.off + FLOOR), "gap along the data / gap along random, as published",
            "Part of what keeps it below 1 is sharing alone: look at the ratio of shared ones.", PUBLISHED,
        ),
        "gap_ratio_shared": quantity(
            "block", moved.on / (moved.off_shared + FLOOR), "gap along the data / gap along shared random",
            "Below 1: less bent along the data's directions, and nothing else differs.",
        ),
        "data_rank95": quantity(
            "block", moved.data_rank, "directions that hold 95% of what the first 20 hold",
            "Capped at 20: near 20 it only says that more than 20 directions matter.", PUBLISHED,
        ),
    }  # fmt: skip


def _of_fits(r2: np.ndarray, recovered: np.ndarray) -> dict[str, Any]:
    return {
        "fit_r2": quantity(
            ("fit", "block"), r2, "R squared on held-out tokens, all coordinates pooled",
            "Of the full output it is high for any block that adds little: compare the residual's.",
            PUBLISHED,
        ),
        "fit_recovered": quantity(
            ("fit", "block"), recovered, "share of the knockout's loss that the map wins back",
            "Fitted and measured on the same prompts, as published; ours (`recovered`) is on others.",
            PUBLISHED,
        ),
    }  # fmt: skip
