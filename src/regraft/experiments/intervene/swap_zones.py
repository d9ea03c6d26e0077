"""Zones of blocks that are cheap to exchange with one another, and the dearest and cheapest exchanges.

Shapes: L blocks, R pairs that are listed, Z numbers of clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster

from regraft.core.quantities import quantity

CLUSTERS = (3, 4, 5, 6)
"""Numbers of flat clusters."""
LISTED_PAIRS = 10
"""Pairs in a list."""
LEAST_COST = 1e-6
"""Nats per token under which the logarithm of a cost is not taken, as published."""
COSTS = "nats per token above clean"
PUBLISHED = "swap-cost study of Qwen3-4B (hivaze/dl-experiments)"


def swap_quantities(
    cost_LL: np.ndarray,
    ward: np.ndarray,
    addresses: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    clean: float,
) -> dict[str, Any]:
    """Maps of the cost in other units, its spread by distance, flat clusters of Ward's tree, and the ends of
    the list of pairs."""
    known = [(float(cost_LL[i, j]), f"{addresses[i]} and {addresses[j]}") for i, j in pairs]
    ranked = sorted((one for one in known if np.isfinite(one[0])), key=lambda one: one[0])
    grid = ("block", "other")
    lists: dict[str, Any] = {}
    for name, chosen in (("cheapest", ranked[:LISTED_PAIRS]), ("dearest", ranked[::-1][:LISTED_PAIRS])):
        reading = f"The {name} exchange first; neighbours are usually the cheapest."
        lists[f"{name}_cost"] = quantity(f"{name}_place", [c for c, _ in chosen], COSTS, reading, PUBLISHED)
        lists[f"{name}_pair"] = quantity(
            f"{name}_place", [p for _, p in chosen], "blocks", reading, PUBLISHED
        )
    return {
        "cost_log10": quantity(
            grid, np.log10(np.maximum(cost_LL, LEAST_COST)), f"log10 of {COSTS}",
            "Small costs, which the plain map shows in one colour, can be told apart here.", PUBLISHED,
        ),
        "cost_percent": quantity(
            grid, 100 * cost_LL / clean, "percent of the clean loss",
            "Within a percent of 0 two blocks are interchangeable.", PUBLISHED,
        ),
        "distance_cost_std": quantity(
            "distance", [_spread(np.diagonal(cost_LL, offset)) for offset in range(1, len(cost_LL))],
            f"{COSTS}, standard deviation over the pairs at this distance",
            "Small beside the mean: distance alone tells what an exchange costs.", PUBLISHED,
        ),
        "swap_cluster": quantity(
            ("block", "clusters"), flat_clusters(ward, len(cost_LL)), "number of the cluster, by depth",
            "Runs of one number are zones whose blocks are cheap to exchange with one another.", PUBLISHED,
        ),
        **lists,
    }  # fmt: skip


def _spread(values: np.ndarray) -> float:
    some = values[np.isfinite(values)]
    return float(some.std()) if len(some) else float("nan")


def flat_clusters(tree: np.ndarray, blocks: int) -> np.ndarray:
    """The cluster of each block for each number of clusters, (L, Z), numbered from 1 by their first block."""
    columns = []
    for count in CLUSTERS:
        found = fcluster(tree, min(count, blocks), criterion="maxclust")
        order = {cluster: place for place, cluster in enumerate(dict.fromkeys(found.tolist()), 1)}
        columns.append([order[cluster] for cluster in found.tolist()])
    return np.array(columns).T
