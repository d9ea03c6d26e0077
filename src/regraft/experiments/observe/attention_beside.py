"""Surveys of several models side by side: kinds, state and work of all their blocks together.

Shapes: M models, n lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import xarray as xr

from regraft.core.quantities import quantity
from regraft.model.load import load
from regraft.model.model import Model
from regraft.systems.mixer_work import expert_macs, linear_macs, prefill_macs
from regraft.systems.state_bytes import BlockState, block_states, length_as_heavy, weight_bytes


def beside_dataset(
    model: Model, states: Sequence[BlockState], others: Sequence[str], at: list[int]
) -> xr.Dataset:
    """State and work of this model and of others, each opened, surveyed and let go.

    Raises:
        ValueError: a model that cannot be opened.
    """
    found = [_one(model, states, at)]
    for name in others:
        other = load(name, dtype=model.dtype, pack=False)
        found.append(_one(other, block_states(other)[0], at))
    return xr.concat(found, "surveyed")


def _one(model: Model, states: Sequence[BlockState], at: list[int]) -> xr.Dataset:
    """Sums over the blocks of one model."""
    weights = weight_bytes(model)
    mixing = np.array([sum(prefill_macs(s.mixers, t, s.writes) for s in states) for t in at], float)
    whole = sum(linear_macs(block.module) + expert_macs(block.module, model) for block in model.main_blocks)
    inside = sum(linear_macs(m.module) for state in states for m in state.mixers)
    share = mixing / (mixing + np.array(at) * (whole - inside))
    held = [sum(s.bytes_at(t) for s in states) for t in at]
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(state.kind for state in states).items())
    data = {
        "beside_state": quantity(("surveyed", "length"), [held], "bytes of one text, by formula",
                                 "What one user's text holds in each model."),
        "beside_weights": quantity("surveyed", [weights], "bytes of weights, each tensor once",
                                   "What all texts share."),
        "beside_passes_weights": quantity("surveyed", [length_as_heavy(states, weights)],
                                          "tokens whose state is as large as the weights",
                                          "Beyond it, state is what fills a machine."),
        "beside_mixing_share": quantity(("surveyed", "length"), [share],
                                        "share of all multiply-adds of the blocks, reading a whole text",
                                        "What is not mixing is matrices of MLPs."),
        "beside_agrees": quantity("surveyed", [sum(s.agrees for s in states) / len(states)],
                                  "share of blocks whose counted state is the formula's", "1: all of them."),
    }  # fmt: skip
    coords = {"surveyed": [model.name], "length": at, "surveyed_kinds": ("surveyed", [kinds])}
    return xr.Dataset(data, coords=coords)
