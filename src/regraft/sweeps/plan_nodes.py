"""What a plan is made of: calls of one block for one row, ends of variants, and the order of the calls."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from regraft.sweeps.routes import Stop
from regraft.sweeps.variants import Edit

Source = tuple[str, int]
"""A recorded stream: `("pre", b)` enters block b, `("post", b)` leaves it."""


@dataclass(frozen=True)
class EntryEdit:
    """Edits applied to the stream that enters a block; `correct` is the block whose output they correct
    linearly."""

    edits: tuple[Edit, ...] = ()
    correct: int | None = None
    bridge: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """Two of one key do the same."""
        return (tuple(edit.key for edit in self.edits), self.correct, self.bridge)


@dataclass(eq=False)
class Node:
    """One call of one block for one row, behind `parent` or, where that is None, behind the recorded stream
    `source`.

    The row carries the positions from `start` on; with a `tail`, only those from there on leave the block,
    and in front of it there are keys and values alone.
    """

    parent: Node | None
    source: Source
    entry_edits: tuple[EntryEdit, ...]
    stop: Stop
    inner: tuple[Edit, ...]
    start: int
    children: int = 0
    tail: int = 0


@dataclass(eq=False)
class Leaf:
    """Where a variant is measured: behind `parent`, or at the recorded stream `source`."""

    variant: int
    parent: Node | None
    source: Source
    entry_edits: tuple[EntryEdit, ...]
    final: tuple[Edit, ...]
    start: int
    control: bool = False


def _corrected(node: Node) -> bool:
    """Whether a row comes to its block from a corrected output of another one."""
    return any(entry_edit.correct is not None for entry_edit in node.entry_edits)


def scheduled(nodes: list[Node], batch_rows: int, walks: bool) -> list[list[Node]]:
    """Greedy: the block that most rows wait for goes next, the earlier one where equally many wait.

    Where blocks are read from disk (`walks`), they go in their own order instead, again from the first where
    a route leads back: each is read once a walk, and there are as few walks as routes go back.
    """
    waiting: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        if node.parent is not None:
            waiting[id(node.parent)].append(node)
    ready: dict[tuple[Any, ...], list[Node]] = defaultdict(list)
    for node in nodes:
        if node.parent is None:
            ready[(node.stop.key, node.start, node.tail)].append(node)
    batches: list[list[Node]] = []
    while ready:
        if walks:
            at = batches[-1][0].stop.block if batches else 0
            group = min(
                ready,
                key=lambda key: (key[0][0] < at, key[0][0], not any(map(_corrected, ready[key])), key[1]),
            )
        else:
            group = max(ready, key=lambda key: (len(ready[key]), -key[0][0], -key[1]))
        members = ready.pop(group)
        if walks:  # while the block in front, which they correct, is still there
            members.sort(key=_corrected, reverse=True)
        batch, rest = members[:batch_rows], members[batch_rows:]
        if rest:
            ready[group] = rest
        batches.append(batch)
        for node in batch:
            for child in waiting.pop(id(node), ()):
                ready[(child.stop.key, child.start, child.tail)].append(child)
    return batches
