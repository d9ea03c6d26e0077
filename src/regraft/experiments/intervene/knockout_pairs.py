"""Pairs of blocks ranked by what skipping both costs beyond the sum, and how much can be removed.

Shapes: L blocks, R pairs that are listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.core.quantities import quantity

RANKED_PAIRS = 10
"""Pairs in a list."""
HUB_PAIRS = 5
"""Most super-additive pairs in which a block's occurrences are counted."""
THRESHOLDS = (1.05, 1.1, 1.25, 1.5, 2.0)
"""Multiples of the clean loss up to which removable blocks are counted."""
PUBLISHED = "knockout study of Qwen3-4B (hivaze/dl-experiments)"


def pair_quantities(
    synergy_LL: np.ndarray, pairs: Sequence[tuple[int, int]], addresses: Sequence[str]
) -> dict[str, Any]:
    """The most super- and the most sub-additive pairs, and how often each block is in the first five."""
    known = [(float(synergy_LL[i, j]), (i, j)) for i, j in pairs if np.isfinite(synergy_LL[i, j])]
    ranked = sorted(known, key=lambda one: -one[0])
    hubs = np.zeros(len(addresses), dtype=int)
    for _, pair in ranked[:HUB_PAIRS]:
        hubs[list(pair)] += 1
    unit = "nats per token beyond the sum of both alone"
    found: dict[str, Any] = {
        "hub_count": quantity(
            "block", hubs, f"times among the {min(HUB_PAIRS, len(ranked))} pairs with the largest synergy",
            "A block in most of them is one that others lean on; the counts add up to twice the pairs.",
            PUBLISHED,
        )
    }  # fmt: skip
    above, below = [one for one in ranked if one[0] > 0], [one for one in ranked[::-1] if one[0] < 0]
    lists = {
        "superadditive": (above, "Skipping both costs more than the sum: each can stand in for the other."),
        "subadditive": (below, "Skipping both costs less than the sum: they break the same thing."),
    }
    for name, (chosen, reading) in lists.items():
        first, place = chosen[:RANKED_PAIRS], f"{name}_place"
        words = [f"{addresses[i]} and {addresses[j]}" for _, (i, j) in first]
        found[name] = quantity(place, [value for value, _ in first], unit, reading, PUBLISHED)
        found[f"{name}_pair"] = quantity(place, words, "blocks", reading, PUBLISHED)
    return found


def removable_quantities(ratio: np.ndarray, limit: float) -> dict[str, Any]:
    """How many blocks can go, one after the other, before the loss passes each multiple of the clean one; NaN
    for multiples beyond the limit at which the removal stopped."""
    counts = [
        float(np.logical_and.accumulate(ratio <= threshold).sum()) if threshold <= limit else float("nan")
        for threshold in THRESHOLDS
    ]
    return {
        "removable": quantity(
            "threshold", counts, "blocks removed while the loss stays within this multiple of the clean one",
            "How far the model can be cut without training, for what it may cost.", PUBLISHED,
        )
    }  # fmt: skip


def stopping_quantities(block: str, loss: float) -> dict[str, Any]:
    """The step at which the removal stopped: it would have passed the limit. Empty where every block went."""
    reading = "Earlier studies keep this step; here it is told and not taken."
    return {
        "stopped_block": quantity((), block, "block that would have gone next", reading, PUBLISHED),
        "stopped_loss": quantity((), loss, "nats per token if it had gone", reading, PUBLISHED),
    }
