"""The neurons that matter, one by one: how much the answer loses without each, and what comes in its place.

Shapes: P prompts, L blocks, F neurons of a block, R neurons that are listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.core.quantities import quantity

CHANGE, TOKEN, BOTH = "change", "another token", "both"
"""Why a neuron is listed: its change is beyond the threshold, another token becomes the most likely one, or
both."""
MOST_LISTED = 1000
"""Neurons in the list; a threshold of 0 would list them all."""
SEED = "neuron-ablation study of small Llamas (the project's seed)"


def neurons_that_matter(
    addresses: Sequence[str],
    change_PLF: np.ndarray,
    flips_PLF: np.ndarray,
    after: Sequence[Sequence[str]],
    threshold: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and coordinates of the list, the largest change first.

    Args:
        after: for each prompt the most likely token without each neuron, block by block.
    """
    large, flips = np.abs(change_PLF) > threshold, flips_PLF > 0
    found = np.argwhere(large | flips)
    order = np.argsort([-abs(change_PLF[tuple(place)]) for place in found], kind="stable")
    chosen = [tuple(map(int, found[i])) for i in order[:MOST_LISTED]]
    width = change_PLF.shape[2]
    why = [BOTH if large[place] and flips[place] else CHANGE if large[place] else TOKEN for place in chosen]
    reading = "A list of few: the answer hangs on them; an empty one: no single neuron decides it."
    data = {
        "listed_change": quantity(
            "listed", [change_PLF[place] for place in chosen], "change of the answer's probability", reading,
            SEED,
        ),
        "listed_top": quantity(
            "listed", np.array([after[p][row * width + n] for p, row, n in chosen], dtype=str),
            "most likely token without the neuron", reading, SEED,
        ),
        "listed_condition": quantity(
            "listed", np.array(why, dtype=str), f"why it is listed: {CHANGE}, {TOKEN} or {BOTH}", reading,
            SEED,
        ),
    }  # fmt: skip
    coords = {
        "listed_block": ("listed", np.array([addresses[row] for _, row, _ in chosen], dtype=str)),
        "listed_neuron": ("listed", np.array([n for _, _, n in chosen], dtype=int)),
        "listed_prompt": ("listed", np.array([p for p, _, _ in chosen], dtype=int)),
    }
    return data, coords
