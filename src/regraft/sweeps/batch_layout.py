"""What a plan must know of a batch, with no tensor in it: stacks, positions, which sites are linear."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regraft.sweeps.variants import NEW, PROMPT, Edit, Position, listed

LINEAR_SITES = {
    "mlp": ("mlp_out", "mlp_act", "neuron"),
    "attn": ("attn_out", "z", "head"),
    "mixer": ("mixer_out",),
    "cross": ("cross_out",),
}


BRANCH_OF = {site: kind for kind, sites in LINEAR_SITES.items() for site in sites}


STREAM_SITES = ("resid_pre", "resid_post")


@dataclass(frozen=True)
class BatchLayout:
    """What the plan needs to know of a recording: numbers and names, no tensors.

    `stacks` are (first, stop) block indices; `positions` the number of positions of each stack; `linear` for
    each block the branches whose outputs are added to the stream with nothing behind them but a norm,
    `columns` those of them whose projection is proved to be its matrix (None: all); `addresses` map a site's
    address to (block, name); `lengths` are each prompt's real tokens, stack by stack; `cone` says whether a
    row may carry only the positions that an edit can change; `walks` that blocks are read from disk, so that
    they are best run in their own order. `read_from` is the first position that a metric reads, `key_share`
    what keys and values cost of the last block.
    """

    stacks: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]
    prompts: int
    lengths: tuple[tuple[int, ...], ...]
    linear: tuple[frozenset[str], ...]
    addresses: dict[str, tuple[int | None, str]]
    cone: bool
    columns: tuple[frozenset[str], ...] | None = None
    walks: bool = False
    read_from: int = 0
    key_share: float = 1.0

    @property
    def blocks(self) -> int:
        """Number of blocks of the whole model."""
        return self.stacks[-1][1]

    def stack_of(self, block: int) -> int:
        """Index of the stack that the block belongs to."""
        return next(i for i, (first, stop) in enumerate(self.stacks) if first <= block < stop)


def edit_positions(edit: Edit, lengths: Sequence[int]) -> list[list[int]] | None:
    """For each prompt the positions that an edit touches; None for all of them."""
    return numbered(edit, edit.position, lengths)


def numbered(edit: Edit, position: Position, lengths: Sequence[int]) -> list[list[int]] | None:
    """For each prompt the numbers of what an edit calls a position; None for all of them."""
    wanted = listed(position)
    if wanted is None:
        return None
    if isinstance(position, str) and position in (PROMPT, NEW):
        raise ValueError(
            f"position {position!r} of the edit at {edit.site} is one of text that is being written"
            " (model.generate, model.changed): in a recording, give numbers"
        )
    if any(isinstance(position, (bool, np.bool_)) for position in wanted):
        raise ValueError(
            f"the position of the edit at {edit.site} is a mask: give the numbers of its positions, for"
            " example mask.nonzero()[:, 0].tolist()"
        )
    try:
        wanted = [operator.index(position) for position in wanted]
    except TypeError as error:
        raise ValueError(f"position {position!r} of the edit at {edit.site} is no whole number") from error
    if not wanted:
        raise ValueError(f"the edit at {edit.site} names no position: leave it out to mean all of them")
    return [[p + length if p < 0 else p for p in wanted] for length in lengths]


def check_positions(edit: Edit, layout: BatchLayout, block: int | None) -> None:
    """Make sure that every prompt has the positions of an edit.

    Raises:
        ValueError: a prompt is shorter.
    """
    lengths = layout.lengths[-1 if block is None else layout.stack_of(block)]
    for position in edit.named:
        for length, row in zip(lengths, numbered(edit, position, lengths) or (), strict=False):
            if any(not 0 <= p < length for p in row):
                raise ValueError(
                    f"position {position} of the edit at {edit.site} is outside the prompt of {length} tokens"
                )
