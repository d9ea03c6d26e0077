"""Published comparisons between experiments: one pair of quantities over the blocks, by Pearson.

Shapes: L blocks, R comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.quantities import quantity
from regraft.experiments.observe.paired import pearson

PUBLISHED = "weight-spectra and knockout studies of Qwen3-4B (hivaze/dl-experiments)"
RANK_WITH = {
    "gap": ("linearity", "gap"),
    "knockout increase": ("knockout", "increase"),
    "IsoScore": ("geometry", "isoscore"),
    "participation ratio": ("geometry", "participation_ratio"),
}
"""What the mean rank ratio of a block's matrices is compared with: experiment and variable. What is measured
at depths is taken behind the block."""


def cross_quantities(
    results: Sequence[xr.Dataset], blocks: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and coordinates: the mean rank ratio against four measures, and what a block's absence costs
    against the size of its weights; NaN where an experiment is not among the results."""
    known = {result.attrs["experiment"]: result for result in results}
    ranks, norms = (
        _of_blocks(known, blocks, "spectra", "mean_rank_ratio"),
        _of_blocks(known, blocks, "spectra", "block_norm"),
    )
    hurt = _of_blocks(known, blocks, "knockout", "increase")
    with_ranks = [pearson(ranks, _of_blocks(known, blocks, *place)) for place in RANK_WITH.values()]
    over = "Pearson's correlation over blocks"
    found = {
        "rank_cross_r": quantity(
            "compared",
            with_ranks,
            f"{over}: mean rank ratio of a block's matrices with this",
            "Away from 0 the weights' spectra tell something of what a block does; blocks are no independent"
            " sample.",
            PUBLISHED,
        ),
        "criticality_norm_r": quantity(
            (),
            pearson(norms, hurt),
            f"{over}: size of a block's weights with the loss that skipping it adds",
            "Near 0: how large a block's weights are does not tell how much it matters.",
            PUBLISHED,
        ),
        "weight_norm": quantity(
            "block",
            norms,
            "Frobenius norm of all matrices of the block",
            "Across: size of the weights.",
            PUBLISHED,
        ),
        "criticality": quantity(
            "block",
            hurt,
            "nats per token that skipping the block adds",
            "A block far above the others matters most, whatever its size.",
            PUBLISHED,
        ),
    }
    return found, {"compared": list(RANK_WITH)}


def _of_blocks(known: dict[str, xr.Dataset], blocks: Sequence[str], experiment: str, name: str) -> np.ndarray:
    """A quantity of every block; NaN where it was not measured."""
    nothing = np.full(len(blocks), np.nan)
    if experiment not in known or name not in known[experiment]:
        return nothing
    values = known[experiment][name]
    if "part" in values.dims:
        values = values.sel(part="block")
    if values.dims == ("depth",):
        own = [str(block) for block in known[experiment].block.values]
        values = xr.DataArray(values.values[1:], {"block": own}, ("block",))
    if values.dims != ("block",):
        return nothing
    return (
        values.assign_coords(block=values.block.astype(str)).reindex(block=list(blocks)).values.astype(float)
    )
