"""Execute a plan: rows go through blocks in batches, are measured where they end, and are forgotten.

Shapes: n rows, B prompts, R = n x B, T positions of the stack, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.core.structure import Path
from regraft.model.hooks import reading, writing, writing_mid
from regraft.model.recording import Recording
from regraft.model.sites import Tap
from regraft.sweeps.attention_edits import CutAttention, masks_of
from regraft.sweeps.batch_layout import BRANCH_OF
from regraft.sweeps.changed_reads import ChangedReads
from regraft.sweeps.edits import Carried, Placed, apply_edits
from regraft.sweeps.feature_edits import FeatureEdit
from regraft.sweeps.linear_edits import CleanBlocks, corrected_stream
from regraft.sweeps.plan import SweepPlan, keys_cost
from regraft.sweeps.plan_nodes import EntryEdit, Leaf, Node
from regraft.sweeps.prefix_cache import cone_of
from regraft.sweeps.routes import Route
from regraft.sweeps.variants import Edit


@dataclass(eq=False)
class State:
    """The stream of one row behind a node, and what its decoder attends to where that differs from the
    recording."""

    stream_BTD: Tensor
    memory: Tensor | None = None


Measure = Callable[[list[Leaf], list[State]], None]


class Replay:
    """Runs one plan over one recording. `executed` counts the work in the plan's unit, `clean.runs` that for
    corrections."""

    def __init__(
        self,
        recording: Recording,
        plan: SweepPlan,
        measure: Measure,
        most_rows: int,
        reads: ChangedReads | None = None,
    ):
        self.recording = recording
        self.model = recording.model
        self.plan = plan
        self.measure = measure
        self.most_rows = most_rows
        self.reads = reads
        self.states: dict[int, State] = {}
        self.executed = 0
        self.clean = CleanBlocks(recording)
        self.cone = cone_of(recording) if plan.uses_cone else None

    def run(self, progress: Callable[[int], None]) -> None:
        """Execute every batch; `progress` hears how much work each one was."""
        with torch.no_grad():
            self._measure(self.plan.immediate, None)
            for batch in self.plan.batches:
                before = self.executed
                self._run_batch(batch)
                progress(self.executed - before)

    def _run_batch(self, nodes: list[Node]) -> None:
        for begin in range(0, len(nodes), self.most_rows):
            part = nodes[begin : begin + self.most_rows]
            try:
                states = self._call(part)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                self.most_rows = len(part) // 2
                self._run_batch(nodes[begin:])
                return
            self._finish(part, states)

    def _finish(self, nodes: list[Node], states: list[State]) -> None:
        for node, state in zip(nodes, states, strict=True):
            self.states[id(node)] = state
        for node in nodes:
            if node.parent is not None:
                self._release(node.parent)
        ended = [leaf for node in nodes for leaf in self.plan.leaves.get(id(node), ())]
        self._measure(ended, nodes)

    def _measure(self, leaves: list[Leaf], nodes: list[Node] | None) -> None:
        for begin in range(0, len(leaves), self.most_rows):
            part = leaves[begin : begin + self.most_rows]
            by_start: dict[int, list[Leaf]] = {}
            for leaf in part:
                by_start.setdefault(leaf.start, []).append(leaf)
            for group in by_start.values():
                self.measure(
                    group,
                    self._arrive(group, [(leaf.parent, leaf.source, leaf.entry_edits) for leaf in group]),
                )
            for leaf in part:
                if leaf.parent is not None:
                    self._release(leaf.parent)

    def _release(self, node: Node) -> None:
        node.children -= 1
        if node.children == 0:
            del self.states[id(node)]

    def _arrive(self, rows: Sequence[Node | Leaf], entries: list[tuple[Any, ...]]) -> list[State]:
        """The state of every row in front of its next call: its parent's or the recorded one, edited where
        that is asked."""
        start = rows[0].start
        arrived: list[State | None] = [None] * len(rows)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, (parent, source, entry_edits) in enumerate(entries):
            shape = tuple(self._entry_kind(entry_edit) for entry_edit in entry_edits)
            where = (source if parent is None else None, shape)
            groups.setdefault(where, []).append(i)
        for members in groups.values():
            states = [self._origin(entries[i][0], entries[i][1], start) for i in members]
            for step in range(len(entries[members[0]][2])):
                states = self._enter([entries[i][2][step] for i in members], states, start)
            for i, state in zip(members, states, strict=True):
                arrived[i] = state
        return [state for state in arrived if state is not None]

    def _entry_kind(self, entry_edit: EntryEdit) -> tuple[Any, ...]:
        """Doors of one kind are passed by all rows together."""
        names = {self.model.site(edit.site).name for edit in entry_edit.edits}
        if entry_edit.correct is None:
            return ("embed" in names, entry_edit.bridge)
        return (entry_edit.correct, *sorted({(BRANCH_OF[name], name.endswith("_out")) for name in names}))

    def _origin(self, parent: Node | None, source: tuple[str, int], start: int) -> State:
        if parent is not None:
            return self.states[id(parent)]
        side, block = source
        stream = self.recording.pre(block) if side == "pre" else self.recording.post(block)
        return State(stream[:, start:])

    def _enter(self, entry_edits: list[EntryEdit], states: list[State], start: int) -> list[State]:
        rows = len(states)
        if entry_edits[0].bridge:
            memory = self.recording.bridge(torch.cat([s.stream_BTD for s in states]), rows)
            first = self.recording.pre(self.model.parts.stacks[1].first)
            return [State(first, m) for m in memory.unflatten(0, (rows, -1))]
        if entry_edits[0].correct is not None:
            edits = [entry_edit.edits for entry_edit in entry_edits]
            streams = corrected_stream(self.clean, entry_edits[0].correct, edits)
            return [State(stream[:, start:]) for stream in streams]
        placed = [
            Placed(row, edit) for row, entry_edit in enumerate(entry_edits) for edit in entry_edit.edits
        ]
        if placed and self.model.site(placed[0].edit.site).name == "embed":
            return [State(stream) for stream in self._embedded(placed, rows)]
        streams = torch.stack([s.stream_BTD for s in states])
        changed = apply_edits(streams, placed, self._carried(placed[0].edit, start))
        return [State(stream, s.memory) for stream, s in zip(changed, states, strict=True)]

    def _embedded(self, placed: list[Placed], rows: int) -> Tensor:
        tap = Tap(self.model.parts.embedding, "output")
        shape = (rows * self.recording.prompts, self.recording.positions)
        carried = Carried(0, self.recording.positions, self.recording.lengths_of(0))

        def change(x: Tensor) -> Tensor:
            return apply_edits(x.unflatten(0, (rows, -1)), placed, carried).flatten(0, 1)

        with writing(tap, change, shape):
            return self.recording.embedded(rows).unflatten(0, (rows, -1))

    def _carried(self, edit: Edit, start: int) -> Carried:
        block = self.model.site(edit.site).block
        assert block is not None
        return Carried(start, self.recording.positions_of(block), self.recording.lengths_of(block))

    def _call(self, nodes: list[Node]) -> list[State]:
        """Send one batch of rows through their block."""
        first, rows = nodes[0], len(nodes)
        block = first.stop.block
        states = self._arrive(nodes, [(node.parent, node.source, node.entry_edits) for node in nodes])
        stream = torch.cat([state.stream_BTD for state in states])
        memories = [state.memory for state in states]
        if any(m is not None for m in memories):
            assert self.recording.taken.memory is not None
            clean = self.recording.taken.memory
            memory = torch.cat([clean if m is None else m for m in memories])
        else:
            memory = None
        if first.start and self.cone is not None:
            self.cone.past(block)  # of the clean run: before any edit hangs on the block
        given = self._masks(nodes)
        with ExitStack() as hooks:
            self._hook_edits(hooks, nodes, stream)
            seen = hooks.enter_context(self.reads.hearing(nodes, stream)) if self.reads else {}
            if first.tail and self.cone is not None:
                out = self.cone.run_tail(block, stream, rows, first.start, first.tail)
            elif first.start and self.cone is not None:
                out = self.cone.run_block(block, stream, rows, first.start, first.stop.module, given)
            else:
                out = self.recording.run_block(block, stream, rows, memory, first.stop.module, given)
            seen["resid_post"] = out
        self.executed += out.shape[0] * out.shape[1]
        if first.tail:
            self.executed += out.shape[0] * keys_cost(first.tail - first.start, self.plan.key_share)
        return [State(o, m) for o, m in zip(out.unflatten(0, (rows, -1)), memories, strict=True)]

    def _masks(self, nodes: list[Node]) -> dict[Path, Tensor] | None:
        """The mask of a call some of whose rows cut edges of attention; None where none does."""
        if not any(isinstance(edit, CutAttention) for node in nodes for edit in node.inner):
            return None
        block, start = nodes[0].stop.block, nodes[0].start
        positions = self.recording.positions_of(block)
        call = self.cone.call_from(block, start) if start and self.cone else self.recording.taken.calls[block]
        lengths, queries = self.recording.lengths_of(block), range(start, positions)
        return masks_of(self.model, block, call, [node.inner for node in nodes], lengths, queries, positions)

    def _hook_edits(self, hooks: ExitStack, nodes: list[Node], stream: Tensor) -> None:
        """Hooks for the edits inside the block, one for each tapped module, over all rows."""
        rows, block = len(nodes), nodes[0].stop.block
        by_tap: dict[tuple[Any, ...], list[Placed]] = {}
        taps: dict[tuple[Any, ...], Tap | None] = {}
        besides: dict[tuple[Any, ...], Tap | None] = {}
        for row, node in enumerate(nodes):
            for edit in node.inner:
                if isinstance(edit, CutAttention):
                    continue
                site = self.model.site(edit.site)
                tap = None if site.name == "resid_mid" else self.model.taps[site]
                beside = edit.beside if isinstance(edit, FeatureEdit) else None
                key = ("mid",) if tap is None else (id(tap.module), tap.side, beside and id(beside.module))
                besides[key] = beside
                taps.setdefault(key, tap)
                by_tap.setdefault(key, []).append(Placed(row, edit, tap.features if tap else None))
        for key, placed in by_tap.items():
            carried = self._carried(placed[0].edit, nodes[0].start)

            shape = (stream.shape[0], stream.shape[1])
            beside = besides[key]
            heard = hooks.enter_context(reading({"it": beside}, shape)) if beside else {}

            def change(
                x: Tensor,
                placed: list[Placed] = placed,
                carried: Carried = carried,
                heard: dict[str, Tensor] = heard,
            ) -> Tensor:
                joint = torch.cat([x, heard["it"]], dim=-1) if heard else x
                done = apply_edits(joint.unflatten(0, (rows, -1)), placed, carried).flatten(0, 1)
                return done[..., : x.shape[-1]]

            tap = taps[key]
            if tap is None:
                hooks.enter_context(writing_mid(self.model.blocks[block], change, stream))
            else:
                hooks.enter_context(writing(tap, change, shape))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in str(error)
        or "can't allocate" in str(error)
    )


def route_logits(recording: Recording, route: Route) -> Tensor:
    """Logits (B, T, V) of one route that differs in the last stack only, at every position, one block after
    the other."""
    return recording.head(route_stream(recording, route))


def route_stream(recording: Recording, route: Route) -> Tensor:
    """The stream (B, T, D) that leaves the last block of such a route."""
    first = recording.model.parts.stacks[-1].first
    assert all(stop.block == i and stop.module is None for i, stop in enumerate(route.stops[:first]))
    stream = recording.pre(first)
    with torch.no_grad():
        for stop in route.stops[first:]:
            stream = recording.run_block(stop.block, stream, rows=1, module=stop.module)
    return stream
