"""Experts spread over machines: what a router's own choices on text send where, and how even it is.

Every machine has its share of the experts and of the tokens, in a row. A token goes once to every other
machine that has one of its experts, and what they made of it comes back once. Shapes: N tokens, k experts of
each, E experts, R machines ("ranks"), L blocks with experts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.structure import walk_tensors
from regraft.model.model import Model
from regraft.systems.timing import wait

PASSES = 6
"""Through the model: the first warms up, of the others the median time counts."""
Heard = tuple[np.ndarray, int, list[float]]
"""Choices, experts, and seconds of every pass."""
TABLE = 2
"""Dimensions of a router's choices: tokens, and the experts of each."""


@dataclass(frozen=True)
class Routed:
    """A router's choices (N, k) in one block, how many experts it chose from, and seconds that the experts
    took for all tokens on this machine."""

    choices_Nk: np.ndarray
    experts: int
    seconds: float


def router_trace(model: Model, ids_BT: Tensor) -> dict[str, Routed]:
    """What every router of a model chose, and how long its experts took, by the block's address.

    Found by structure: a module that is called with a whole-number table of as many rows as there are tokens
    beside their streams is a block's experts, and the table says which of them each token goes to.

    Raises:
        ValueError: nothing in the model is called so.
    """
    found: dict[str, Heard] = {}
    begun: dict[int, float] = {}
    tokens = ids_BT.numel()
    device = model.device
    with ExitStack() as hooks:
        for block in model.main_blocks:
            for module in block.module.modules():
                hooks.callback(
                    module.register_forward_pre_hook(_starts(begun, device), with_kwargs=True).remove
                )
                listen = _ends(found, begun, block.address, tokens, device)
                hooks.callback(module.register_forward_hook(listen, with_kwargs=True).remove)
        with torch.no_grad():
            for _ in range(PASSES):
                model.run(input_ids=ids_BT.to(device))
    if not found:
        raise ValueError(
            f"{model.name} has no experts whose choice could be heard: leave ranks out, or name a mixture"
        )
    return {
        address: Routed(choices, experts, float(np.median(seconds[1:])))  # the first pass warms up
        for address, (choices, experts, seconds) in found.items()
    }


def _starts(begun: dict[int, float], device: torch.device) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        wait(device)
        begun[id(module)] = time.perf_counter()

    return hook


def _ends(
    found: dict[str, Heard], begun: dict[int, float], address: str, tokens: int, device: torch.device
) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        wait(device)
        seconds = time.perf_counter() - begun[id(module)]
        for choices_Nk in _tables([args, kwargs], tokens):
            experts = _expert_count(module)
            if experts > int(choices_Nk.max()):
                found.setdefault(address, (choices_Nk.cpu().numpy(), experts, []))[2].append(seconds)

    return hook


def _tables(given: Any, tokens: int) -> Iterator[Tensor]:
    """Whole numbers with a row for each token, among what a module is called with."""
    for _, tensor in walk_tensors(given):
        if tensor.dim() == TABLE and len(tensor) == tokens and not tensor.dtype.is_floating_point:
            yield tensor


def _expert_count(module: nn.Module) -> int:
    """How many experts a module holds: the length of its lists, or of the tensors that stack them."""
    stacked = [len(p) for p in module.parameters(recurse=False) if p.dim() == TABLE + 1]
    lists = (one for one in (module, *module.children()) if isinstance(one, nn.ModuleList))
    listed = [len(list(one.children())) for one in lists]
    return max([*stacked, *listed], default=0)


@dataclass(frozen=True)
class Dispatch:
    """Tokens that go from each machine to each other, and (token, expert) pairs that each computes."""

    sent_RR: np.ndarray
    load_R: np.ndarray

    @property
    def unevenness(self) -> float:
        """The busiest machine's work over the mean: all wait for it."""
        return float(self.load_R.max() / self.load_R.mean())

    def nbytes(self, width: int, itemsize: int) -> int:
        """Bytes of the streams that go there and of those that come back."""
        return 2 * int(self.sent_RR.sum()) * width * itemsize


def dispatch(choices_Nk: np.ndarray, places: list[list[int]], ranks: int) -> Dispatch:
    """Send every token to its experts; `places` names the machines that hold a copy of each expert, and where
    there are several, tokens take them in turns."""
    owners = rank_of(len(choices_Nk), ranks)
    sent, load = np.zeros((ranks, ranks), np.int64), np.zeros(ranks, np.int64)
    turns = [0] * len(places)
    for token, experts in enumerate(choices_Nk):
        own, there = int(owners[token]), set()
        for expert in experts:
            held = places[expert]
            target = held[turns[expert] % len(held)]
            turns[expert] += 1
            load[target] += 1
            there.add(target)
        for target in there - {own}:
            sent[own, target] += 1
    return Dispatch(sent, load)


def rank_of(count: int, ranks: int) -> np.ndarray:
    """Which machine has each of so many things that are dealt out in a row, as evenly as they go."""
    return np.arange(count) * ranks // count


def in_a_row(experts: int, ranks: int) -> list[list[int]]:
    """Each expert on one machine."""
    return [[int(rank)] for rank in rank_of(experts, ranks)]


def replicated(choices_Nk: np.ndarray, experts: int, ranks: int, copies: int) -> list[list[int]]:
    """The same with so many more copies, one after the other: of the expert with the most tokens for each of
    its copies, on the machine with the least to do that has none of it yet."""
    counts = np.bincount(choices_Nk.ravel(), minlength=experts).astype(float)
    places = in_a_row(experts, ranks)
    for _ in range(copies):
        each = [counts[e] / len(places[e]) if len(places[e]) < ranks else -1.0 for e in range(experts)]
        busiest = int(np.argmax(each))
        load = np.zeros(ranks)
        for expert, held in enumerate(places):
            load[held] += counts[expert] / len(held)
        load[places[busiest]] = np.inf
        places[busiest].append(int(np.argmin(load)))
    return places
