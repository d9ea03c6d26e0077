"""Swap cost: what is lost when two blocks change places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.quantities import quantity
from regraft.data.evaluation import evaluation
from regraft.experiments.intervene.swap_zones import CLUSTERS, COSTS, PUBLISHED, swap_quantities
from regraft.model.model import Model
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant


def swap(
    model: Model,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    tolerance: float = 0.01,
) -> xr.Dataset:
    """Exchange every pair of blocks and measure what the loss becomes.

    Each block keeps the arguments that the model passes to it (its own mask, for example). From the matrix of
    losses: the mean cost of moving each block, mean and spread by distance, hierarchical clusterings (average
    linkage of the cost; beside it Ward's, as published, with flat clusters), the dearest and the cheapest
    pairs, and those that can be exchanged for less than `tolerance` of the clean loss.

    Args:
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        tolerance: a pair is interchangeable where the loss changes by less than this share of the clean loss.

    Raises:
        ValueError: the model has no next-token loss, or a single block in every stack.

    Examples:
        >>> data = regraft.swap(model, count=1, tokens=4)
        >>> dict(data["cost"].sizes), data["cost"].attrs["units"]
        ({'block': 12, 'other': 12}, 'nats per token above clean')
    """
    pairs = [
        (i, j)
        for stack in model.parts.stacks
        for i in range(stack.first, stack.stop)
        for j in range(i + 1, stack.stop)
    ]
    if not pairs:
        raise ValueError("there is no pair of blocks to exchange: every stack has one block")
    if not tolerance >= 0:
        raise ValueError(f"a tolerance of {tolerance} is no share of the loss: write 0 or more")
    text = evaluation(model, prompts, count, tokens)
    blocks = len(model.blocks)
    result = sweep(text.recordings, [Variant(route=Route.swap(blocks, i, j)) for i, j in pairs], loss())
    clean = result.clean_mean("loss")
    cost = np.full((blocks, blocks), np.nan)
    np.fill_diagonal(cost, 0.0)
    for (i, j), value in zip(pairs, result.mean("loss").numpy() - clean, strict=True):
        cost[i, j] = cost[j, i] = value
    addresses = [block.address for block in model.blocks]
    same = [f"{addresses[i]} and {addresses[j]}" for i, j in pairs if abs(cost[i, j]) < tolerance * clean]
    return _dataset(cost, pairs, addresses, clean).assign_attrs(
        **sweep_attributes(result),
        clean_loss=clean,
        **text.attributes,
        tolerance=tolerance,
        interchangeable_pairs="; ".join(same) or "none",
        pairs=len(pairs),
    )


def _dataset(
    cost: np.ndarray, pairs: Sequence[tuple[int, int]], addresses: Sequence[str], clean: float
) -> xr.Dataset:
    """The matrix of costs and everything that follows from it."""
    blocks = len(cost)
    others = cost.copy()
    np.fill_diagonal(others, np.nan)
    tree, ward = cluster(cost), cluster(cost, "ward")
    distances = np.arange(1, blocks)
    by_distance = [_mean(np.diagonal(cost, offset)) for offset in distances]
    return xr.Dataset(
        {
            "cost": quantity(
                ("block", "other"), cost, COSTS, "Near 0 the two blocks do nearly the same work.", PUBLISHED
            ),
            "mean_cost": quantity(
                "block",
                np.array([_mean(row) for row in others]),
                COSTS,
                "A block that is dear to exchange with all others has a place of its own.",
                PUBLISHED,
                correlate="mean cost",
            ),
            "distance_cost": quantity(
                "distance",
                np.array(by_distance),
                COSTS,
                "It grows with the distance where neighbours do like work.",
                PUBLISHED,
            ),
            "linkage": (("merge", "field"), tree, {"units": "left, right, cost, size (average linkage)"}),
            "linkage_ward": (
                ("merge", "field"),
                ward,
                {"units": "left, right, cost, size (Ward's linkage of the cost, as published)"},
            ),
            **swap_quantities(cost, ward, addresses, pairs, clean),
            "leaf_order": (
                "leaf",
                leaves_list(tree),
                {"units": "block index, as the dendrogram orders them"},
            ),
        },
        coords={
            "block": addresses,
            "other": addresses,
            "distance": distances,
            "clusters": list(CLUSTERS),
        },
    )


def _mean(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def cluster(cost: np.ndarray, method: Literal["average", "ward"] = "average") -> np.ndarray:
    """Linkage of blocks by the cost of exchanging them; pairs that cannot be exchanged count as the
    dearest."""
    distance = np.where(np.isfinite(cost), np.maximum(cost, 0.0), np.nanmax(cost))
    return linkage(squareform(distance, checks=False), method=method)
