"""What stays in memory and what is read when it is needed, as a pure function of sizes and a limit."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from regraft.core.sizes import in_words
from regraft.streaming.pages import give_free_memory_back

CHUNK = 1 << 26
"""Bytes of an output matrix that are read at once where it is not kept: 64 MiB."""
WORKING = 1 << 29
"""Bytes kept free for activations and scores: 512 MiB. Work that says that it takes more makes blocks leave
(`fewer_blocks`)."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights in the type that it computes in.

    `rest` is what is neither table nor block; `head` is 0 where it shares the embedding's table or where
    there is none.
    """

    rest: int
    embedding: int
    head: int
    tied: bool
    blocks: tuple[int, ...]

    @property
    def whole(self) -> int:
        """All weights."""
        return self.rest + self.embedding + self.head + sum(self.blocks)

    @property
    def least(self) -> int:
        """What must be held at once: two blocks, the one that runs and the one that comes, and a piece of the
        head."""
        return self.rest + 2 * max(self.blocks) + min(CHUNK, max(self.head, self.embedding))


@dataclass(frozen=True)
class Placement:
    """What stays: the embedding's whole table, the head's, and the first `pinned` blocks. Two more take
    turns."""

    embedding: bool
    head: bool
    pinned: int


def place(sizes: Sizes, limit: int) -> Placement:
    """Everything where it fits; else the head before blocks, since every depth may ask for it, then as many
    blocks as fit.

    Args:
        sizes: of the model's weights.
        limit: bytes that the weights may take.

    Raises:
        ValueError: not even two blocks fit; the sentence says how much is needed.
    """
    if sizes.whole <= limit:
        return Placement(True, True, len(sizes.blocks))
    if sizes.least > limit:
        raise ValueError(
            f"two blocks and what goes with them take {in_words(sizes.least)}, and {in_words(max(limit, 0))}"
            f" are left for weights: allow {in_words(sizes.least - limit)} more with --memory (memory=)"
        )
    turning = 2 * max(sizes.blocks)
    free = limit - sizes.rest - turning
    head = sizes.embedding if sizes.tied else sizes.head
    keeps_head = head <= free
    free -= head if keeps_head else CHUNK
    pinned = 0
    for size in sizes.blocks[: len(sizes.blocks) - 2]:
        if size > free:
            break
        free -= size
        pinned += 1
    keeps_embedding = keeps_head if sizes.tied else sizes.embedding <= free
    return Placement(keeps_embedding, keeps_head, pinned)


def fewer_blocks(sizes: Sizes, placed: Placement, limit: int) -> Placement:
    """The same tables, and as many of the blocks as fit a limit that became lower.

    Raises:
        ValueError: not even two fit; the sentence says how much is missing.
    """
    tables = sizes.embedding if placed.embedding and not (sizes.tied and placed.head) else 0
    head = (sizes.embedding if sizes.tied else sizes.head) if placed.head else CHUNK
    whole = sizes.rest + tables + head + sum(sizes.blocks)
    if whole <= limit:
        return placed
    free = limit - (sizes.rest + tables + head + 2 * max(sizes.blocks))
    if free < 0:
        raise ValueError(
            f"what these prompts take at once leaves {in_words(-free)} too little for two blocks: allow as"
            " much more with --memory (memory=), or give fewer or shorter prompts"
        )
    fitting = [total for total in accumulate(sizes.blocks[: len(sizes.blocks) - 2]) if total <= free]
    return replace(placed, pinned=min(placed.pinned, len(fitting)))


@dataclass(frozen=True)
class Ceiling:
    """What a process is to stay below on a device; None where nobody said."""

    most: int | None
    device: torch.device

    def mind(self) -> None:
        """Where the process comes near it, let it give back what it has freed."""
        near = self.most is not None and held_now(self.device) > self.most - WORKING // 2
        if near and self.device.type == "cpu":
            give_free_memory_back()


def held_now(device: torch.device) -> int:
    """Bytes that this process holds on a device: resident ones on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_now(device: torch.device) -> int:
    """Bytes that are free on a device, as far as the system says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as file:
        found = re.search(r"MemAvailable:\s+(\d+) kB", file.read())
    assert found is not None
    return int(found[1]) << 10
