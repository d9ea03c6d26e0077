"""A plain loop: one full Hugging Face forward for each cell, with a hook, as a careful user writes it
today."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.cases import Task
from benchmarks.peers.worker import Outcome, Peer, difference, open_hf, serve, timed


class Hooks(Peer):
    def load(self, folders: dict[str, str]) -> None:
        self.models = {name: open_hf(folder) for name, folder in folders.items()}

    def grid(self, task: Task) -> Outcome:
        """Keep the clean run's hidden states; put one position of one block's input in place and run the
        model."""
        hf = self.models[task.model]
        blocks, _ = stack(hf)

        def clean_run() -> tuple[Tensor, ...]:
            options = {"logits_to_keep": 1} if task.last_only else {}
            return hf(
                torch.tensor([task.clean]), use_cache=False, output_hidden_states=True, **options
            ).hidden_states

        def cells(clean: tuple[Tensor, ...]) -> dict[str, list[float]]:
            rows: dict[str, list[float]] = {}
            for block in task.blocks:
                rows[str(block)] = []
                for position in range(len(task.clean)):
                    with before(blocks[block], put(clean[block], position)):
                        rows[str(block)].append(measure(hf, task))
            return rows

        clean, fixed = timed(clean_run)
        values, seconds = timed(lambda: cells(clean))
        return Outcome(values, fixed + task.scale * seconds)

    def heads(self, task: Task) -> Outcome:
        """Zero one head's columns in the input of the attention's output projection and run the model."""
        hf = self.models[task.model]
        blocks, _ = stack(hf)
        width = task.shape["head_width"]

        def cells() -> dict[str, list[float]]:
            rows: dict[str, list[float]] = {}
            for block in task.blocks:
                rows[str(block)] = []
                for head in range(task.shape["heads"]):
                    with before(output_projection(blocks[block]), zero(head * width, (head + 1) * width)):
                        rows[str(block)].append(measure(hf, task))
            return rows

        values, seconds = timed(cells)
        return Outcome(values, task.scale * seconds)

    def knockout(self, task: Task) -> Outcome:
        """Take one block out of the list and run the model."""
        hf = self.models[task.model]
        count = task.shape["blocks"]

        def cells() -> dict[str, list[float]]:
            rows = {}
            for block in task.blocks:
                with ordered(hf, [b for b in range(count) if b != block]):
                    rows[str(block)] = [measure(hf, task)]
            return rows

        values, seconds = timed(cells)
        return Outcome(values, task.scale * seconds)

    def swap(self, task: Task) -> Outcome:
        """Exchange two blocks in the list and run the model."""
        hf = self.models[task.model]

        def cells() -> list[float]:
            values = []
            for first, second in combinations(range(task.shape["blocks"]), 2):
                order = list(range(task.shape["blocks"]))
                order[first], order[second] = second, first
                with ordered(hf, order):
                    values.append(measure(hf, task))
            return values

        values, seconds = timed(cells)
        return Outcome({"pairs": values}, seconds)

    def record(self, task: Task) -> Outcome:
        """The plain forward alone, in a process that has never seen regraft: the median of its seconds."""
        hf, ids = self.models[task.model], torch.tensor([task.corrupted])
        seconds = [timed(lambda: hf(ids, use_cache=False))[1] for _ in range(task.repeats)]
        return Outcome({}, statistics.median(seconds))


def measure(hf: Any, task: Task) -> float:
    """One full forward; the logit difference at the last position."""
    options = {"logits_to_keep": 1} if task.last_only else {}
    return float(
        difference(hf(torch.tensor([task.corrupted]), use_cache=False, **options).logits[0, -1], task)
    )


def stack(hf: Any) -> tuple[nn.ModuleList, tuple[nn.Module, str]]:
    """The blocks, and the module and attribute that hold them."""
    owner, name = (hf.transformer, "h") if hasattr(hf, "transformer") else (hf.model, "layers")
    return getattr(owner, name), (owner, name)


def output_projection(block: Any) -> nn.Module:
    """The layer behind the heads of a block's attention."""
    return block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj


def put(clean_BTD: Tensor, position: int) -> Callable[[Tensor], None]:
    """A change: the clean stream at one position."""

    def change(x_BTD: Tensor) -> None:
        x_BTD[:, position] = clean_BTD[:, position]

    return change


def zero(begin: int, end: int) -> Callable[[Tensor], None]:
    """A change: some columns become 0."""

    def change(x_BTW: Tensor) -> None:
        x_BTW[..., begin:end] = 0

    return change


@contextmanager
def before(module: nn.Module, change: Callable[[Tensor], None]) -> Iterator[None]:
    """While inside, a module's first input is changed in place before it runs."""
    handle = module.register_forward_pre_hook(lambda m, args: change(args[0]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def ordered(hf: Any, order: list[int]) -> Iterator[None]:
    """While inside, the model passes through its blocks in this order."""
    blocks, (owner, name) = stack(hf)
    setattr(owner, name, nn.ModuleList([blocks[b] for b in order]))
    try:
        yield
    finally:
        setattr(owner, name, blocks)


if __name__ == "__main__":
    serve(Hooks())
