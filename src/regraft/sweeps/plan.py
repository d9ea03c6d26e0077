"""From variants to steps, with no tensor in it: what is run once, what is shared, what is not run at all.

The runs of all variants form a trie. Its root is the recording: as long as a variant does what the clean run
did, it costs nothing. Every node behind that is one call of one block for one row. Rows that need the same
block go through it together, whatever their depth: the plan is a list of such batches in an order that
respects who waits for whom.

Work is counted in rows x prompts x positions through one block, the same unit for the plan, the execution and
the naive way of one full forward for each variant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.sweeps.batch_layout import (
    LINEAR_SITES,
    STREAM_SITES,
    BatchLayout,
    check_positions,
    edit_positions,
)
from regraft.sweeps.plan_nodes import EntryEdit, Leaf, Node, Source, scheduled
from regraft.sweeps.routes import Route, Stop
from regraft.sweeps.variants import Edit, Variant

CONE_STEPS, CONE_LEAST_STEP = 16, 4
"""Rows that go together carry positions from the same place on: sixteen places, none of fewer than four
positions: more places save work and leave fewer rows that go together."""


@dataclass
class Work:
    """Counted work in rows x prompts x positions through one block."""

    planned: int = 0
    preparation: int = 0
    naive: int = 0
    executed: int = 0

    @classmethod
    def joined(cls, parts: Sequence[Work]) -> Work:
        """The work of several sweeps together."""
        return cls(
            *(
                sum(getattr(part, name) for part in parts)
                for name in ("planned", "preparation", "naive", "executed")
            )
        )

    @property
    def saved(self) -> float:
        """How many times less is run than by one full forward for each variant."""
        return self.naive / max(self.planned + self.preparation, 1)


@dataclass
class SweepPlan:
    """Batches of nodes in the order of their execution, leaves by their parent, and the work counted."""

    batches: list[list[Node]] = field(default_factory=list)
    leaves: dict[int, list[Leaf]] = field(default_factory=lambda: defaultdict(list))
    immediate: list[Leaf] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    starts: set[int] = field(default_factory=set)
    uses_cone: bool = False
    key_share: float = 1.0
    keys: int = 0
    """Of the preparation, what keys and values cost: every block that rows with a past pass runs once. It is
    counted in full also where an earlier sweep of the recording has found them, so that a share of a sweep
    counts for the same whoever ran before."""
    corrected: set[int] = field(default_factory=set)


def make_plan(
    variants: Sequence[Variant],
    layout: BatchLayout,
    batch_rows: int = 1 << 30,
    control: bool = True,
    linear: bool = True,
) -> SweepPlan:
    """Plan a sweep.

    Args:
        variants: what to run. With `control`, the first is run from the first block on, whatever it shares.
        batch_rows: most rows that go through a block together.
        linear: correct a block's recorded output where an edit acts on it linearly, instead of running the
            block.

    Raises:
        ValueError: a route that crosses stacks or names a block that does not exist, an edit of a block that
            its route does not pass, or a position outside the prompt.
    """
    plan = SweepPlan()
    runs = [_compile(variant, layout) for variant in variants]
    starts = _cone_starts(variants, runs, layout)
    trie: dict[tuple[Any, ...], Node] = {}
    for number, (run, start) in enumerate(zip(runs, starts, strict=True)):
        _insert(plan, trie, number, run, start, layout, control and number == 0, linear)
    nodes = list(trie.values())
    if layout.cone:
        _cut_tails(plan, nodes, layout)
    plan.batches = scheduled(nodes, batch_rows, layout.walks)
    plan.starts = {node.start for node in nodes if node.start}
    plan.uses_cone = any(node.start or node.tail for node in nodes)
    plan.key_share = layout.key_share
    plan.work.planned = sum(_cost_of(node, layout) for node in nodes)
    plan.work.naive = sum(sum(_cost(stop.block, layout, 0) for stop in run.stops) for run in runs)
    plan.keys = sum(_cost(block, layout, 0) for block in {node.stop.block for node in nodes if node.start})
    plan.work.preparation = plan.keys + sum(_cost(block, layout, 0) for block in plan.corrected)
    return plan


@dataclass
class _Planning:
    """A variant taken apart: stops, the edits inside and in front of each, and what happens behind the
    last."""

    stops: tuple[Stop, ...]
    before: list[tuple[Edit, ...]]
    inner: list[tuple[Edit, ...]]
    after: list[tuple[Edit, ...]]
    embed: tuple[Edit, ...]
    final: tuple[Edit, ...]
    clean_route: bool


def _compile(variant: Variant, layout: BatchLayout) -> _Planning:
    clean = Route.order(range(layout.blocks))
    route = variant.route or clean
    _check_route(route, layout)
    by_block: dict[int, list[tuple[str, Edit]]] = defaultdict(list)
    embed, final = [], []
    for edit in variant.edits:
        block, name = layout.addresses[edit.site]
        check_positions(edit, layout, block)
        if block is None:
            (embed if name == "embed" else final).append(edit)
        else:
            by_block[block].append((name, edit))
    passed = {stop.block for stop in route.stops}
    for block, found in by_block.items():
        inner = next((edit for name, edit in found if name not in STREAM_SITES), None)
        if inner is not None and any(stop.block == block and stop.module is not None for stop in route.stops):
            raise ValueError(
                f"the edit at {inner.site} is inside a block that the route replaces by another module: edit"
                " resid_pre or resid_post there"
            )
        if block not in passed:
            raise ValueError(
                f"the edit at {found[0][1].site} is never reached: the route does not pass block {block}"
            )

    def pick(stop: Stop, *names: str, inside: bool = False) -> tuple[Edit, ...]:
        return tuple(
            e for n, e in by_block.get(stop.block, ()) if (n not in STREAM_SITES if inside else n in names)
        )

    return _Planning(
        route.stops,
        [pick(stop, "resid_pre") for stop in route.stops],
        [pick(stop, inside=True) for stop in route.stops],
        [pick(stop, "resid_post") for stop in route.stops],
        tuple(embed),
        tuple(final),
        all(stop.key == own.key for stop, own in zip(route.stops, clean.stops, strict=False))
        and len(route.stops) == layout.blocks,
    )


def _check_route(route: Route, layout: BatchLayout) -> None:
    if route.count not in (None, layout.blocks):
        raise ValueError(
            f"the route was made for {route.count} blocks, the model has {layout.blocks}: make it for as many"
        )
    wrong = next((stop.block for stop in route.stops if not 0 <= stop.block < layout.blocks), None)
    if wrong is not None:
        raise ValueError(
            f"the route names block {wrong}: there are {layout.blocks} blocks, 0 to {layout.blocks - 1}"
        )
    stacks = [layout.stack_of(stop.block) for stop in route.stops]
    if stacks != sorted(stacks):
        raise ValueError(
            "the route enters the encoder again after the decoder: each stack keeps its own blocks"
        )


def _cost(block: int, layout: BatchLayout, start: int) -> int:
    return layout.prompts * (layout.positions[layout.stack_of(block)] - start)


def naive_cost(layout: BatchLayout) -> int:
    """What one full forward counts for."""
    return sum(_cost(block, layout, 0) for block in range(layout.blocks))


def _cost_of(node: Node, layout: BatchLayout) -> int:
    whole = _cost(node.stop.block, layout, node.tail or node.start)
    if not node.tail:
        return whole
    return whole + layout.prompts * keys_cost(node.tail - node.start, layout.key_share)


def keys_cost(positions: int, share: float) -> int:
    """What keys and values of so many positions count for, in positions through the whole block."""
    return round(share * positions)


def _cut_tails(plan: SweepPlan, nodes: list[Node], layout: BatchLayout) -> None:
    """At the last block, let only the positions leave that are read behind it.

    Not where something is edited inside it or behind it, nor of the control row, which is compared whole.
    """
    inner = {id(node.parent) for node in nodes}
    for node in nodes:
        leaves = plan.leaves.get(id(node), ())
        own = node.stop.block == layout.blocks - 1 and node.stop.module is None and not node.inner
        plain = all(not leaf.entry_edits and not leaf.control for leaf in leaves)
        saved = layout.read_from - node.start
        if own and plain and id(node) not in inner and saved >= CONE_LEAST_STEP:
            node.tail = layout.read_from
            for leaf in leaves:
                leaf.start = layout.read_from


def _cone_starts(variants: Sequence[Variant], runs: list[_Planning], layout: BatchLayout) -> list[int]:
    """For each variant the first position that its rows carry, rounded down so that few different ones
    arise."""
    step = max(CONE_LEAST_STEP, -(-layout.positions[-1] // CONE_STEPS))
    starts = [
        _first_position(variant, run, layout) // step * step
        for variant, run in zip(variants, runs, strict=True)
    ]
    saved = sum(start * layout.blocks for start in starts) // 2
    pays = layout.cone and saved > layout.positions[-1] * layout.blocks
    return starts if pays else [0] * len(starts)


def _first_position(variant: Variant, run: _Planning, layout: BatchLayout) -> int:
    if not run.clean_route or run.embed or not variant.edits:
        return 0
    found = [edit_positions(edit, layout.lengths[-1]) for edit in variant.edits]
    return min((min(map(min, rows)) if rows else 0) for rows in found)


def _insert(
    plan: SweepPlan,
    trie: dict[tuple[Any, ...], Node],
    number: int,
    run: _Planning,
    start: int,
    layout: BatchLayout,
    control: bool,
    linear: bool,
) -> None:
    """Add one variant's calls to the trie, below the longest part that is there already."""
    at = 0 if control or run.embed else _clean_prefix(run)
    source, entry_edits = _entrance(run, at, layout)
    if linear and not entry_edits and not control and at < len(run.stops) and _corrects(run, at, layout):
        entry_edits = (EntryEdit(run.inner[at], correct=at), *_entry_edits(run.after[at]))
        plan.corrected.add(at)
        source, at = ("pre", at), at + 1
    stream_stack = layout.stack_of(source[1])
    parent: Node | None = None
    key: tuple[Any, ...] = ("control",) if control else (start, source)
    for index in range(at, len(run.stops)):
        stop = run.stops[index]
        if layout.stack_of(stop.block) != stream_stack:
            stream_stack, entry_edits = layout.stack_of(stop.block), (*entry_edits, EntryEdit(bridge=True))
        entry_edits = (*entry_edits, *_entry_edits(run.before[index]))
        key = (
            *key,
            tuple(d.key for d in entry_edits),
            stop.key,
            tuple(edit.key for edit in run.inner[index]),
        )
        if key not in trie:
            trie[key] = Node(parent, source, entry_edits, stop, run.inner[index], start)
            if parent is not None:
                parent.children += 1
        parent = trie[key]
        key, entry_edits = (id(parent),), _entry_edits(run.after[index])
    if stream_stack != len(layout.stacks) - 1:
        entry_edits = (*entry_edits, EntryEdit(bridge=True))
    leaf = Leaf(number, parent, source, entry_edits, run.final, start, control)
    if parent is None:
        plan.immediate.append(leaf)
    else:
        parent.children += 1
        plan.leaves[id(parent)].append(leaf)


def _entry_edits(edits: tuple[Edit, ...]) -> tuple[EntryEdit, ...]:
    return (EntryEdit(edits),) if edits else ()


def _entrance(run: _Planning, at: int, layout: BatchLayout) -> tuple[Source, tuple[EntryEdit, ...]]:
    """The recorded stream that a variant leaves from after `at` clean calls, and the edits there."""
    if at == 0:
        return ("pre", 0), _entry_edits(run.embed)
    after = _entry_edits(run.after[at - 1])
    new_stack = at < layout.blocks and layout.stack_of(at) != layout.stack_of(at - 1)
    goes_on_there = at >= len(run.stops) or layout.stack_of(run.stops[at].block) == layout.stack_of(
        min(at, layout.blocks - 1)
    )
    if new_stack and goes_on_there and not after:
        return ("pre", at), ()
    return ("post", at - 1), after


def _clean_prefix(run: _Planning) -> int:
    """Number of leading blocks that the variant runs as the clean run did, counted as far as nothing is
    edited."""
    for index, stop in enumerate(run.stops):
        if stop.block != index or stop.module is not None or run.before[index] or run.inner[index]:
            return index
        if run.after[index]:
            return index + 1
    return len(run.stops)


def _corrects(run: _Planning, at: int, layout: BatchLayout) -> bool:
    """Whether the first edits act on the block's output linearly, so that the block need not be run."""
    stop = run.stops[at]
    if stop.block != at or stop.module is not None or run.before[at] or not run.inner[at]:
        return False
    if any(edit.reads_beside for edit in run.inner[at]):
        return False
    names = {layout.addresses[edit.site][1] for edit in run.inner[at]}
    if len(run.inner[at]) > 1 and len(names) > 1:
        return False
    kind = next((kind for kind in layout.linear[at] if names <= set(LINEAR_SITES[kind])), None)
    return kind is not None and (
        layout.columns is None or kind in layout.columns[at] or names == {f"{kind}_out"}
    )
