"""Rows that carry only what an edit can change: in a causal stack, nothing before the edited position.

The positions before it stand in for themselves as recorded keys and values. The model's own code makes the
masks and the position embeddings for the rest: it is run on the suffix with a cache of the prefix while
stand-ins take the place of its blocks and note what they were called with. Shapes: N rows, B prompts, T
positions, H heads, d head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from regraft.core.structure import Path, main_tensor, map_tensors, with_main_tensor
from regraft.core.tolerance import gap
from regraft.model.block_call import (
    CANNOT,
    BlockCall,
    StandIn,
    StopForward,
    over_rows,
    split_call,
    stacks_replaced,
    with_arguments,
)
from regraft.model.model import Model
from regraft.model.recording import Recording, record
from regraft.model.selfcheck import sample_ids

_PROOF_LENGTH, _PROOF_START, _PROOF_TAIL = 12, 5, 10
"""Tokens of the proof, and the positions that it is cut at: neither in the middle nor at the end, so that an
offset by one shows."""


class PrefixCache(DynamicCache):
    """Answers one block's call for its past with recorded keys and values, and keeps nothing."""

    def __init__(self, keys_BHpd: Tensor, values_BHpd: Tensor, rows: int):
        super().__init__()
        self.prefix = (keys_BHpd, values_BHpd)
        self.rows = rows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Recorded keys and values in front of the new ones, for every row."""
        past = (
            t.repeat(self.rows, 1, 1, 1) if len(t) > 1 else t.expand(self.rows, -1, -1, -1)
            for t in self.prefix
        )
        keys, values = past
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class KeptKeys(PrefixCache):
    """Keeps the keys and values that one block makes, behind those of a prefix; with `stops`, that is all
    that is run of the block."""

    def __init__(self, prefix: tuple[Tensor, Tensor] | None, rows: int, stops: bool):
        DynamicCache.__init__(self)
        self.prefix, self.rows, self.stops = prefix, rows, stops
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What the block attends to."""
        self.kept = (key_states, value_states)
        if self.prefix is not None:
            self.kept = super().update(key_states, value_states)
        if self.stops:
            raise StopForward
        return self.kept


class Cone:
    """The keys and values of a recording, and the arguments of every block for each suffix.

    A block's keys and values are found when it is first asked for, by running it once on its recorded stream:
    so a block that is streamed is asked while it is in memory. `runs` counts these runs in positions.
    """

    def __init__(self, recording: Recording):
        self.recording = recording
        self.model = recording.model
        self.runs = 0
        self._past: dict[int, tuple[Tensor, Tensor] | None] = {}
        self._calls: dict[tuple[int, int], tuple[list[BlockCall], Any]] = {}

    def past(self, block: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values (B, H, T, d) of a block in the clean run; None where it keeps none."""
        if block not in self._past:
            self._past[block] = self._keys(block, self.recording.pre(block), 1, 0)
            self.runs += self.recording.prompts * self.recording.positions_of(block)
        return self._past[block]

    def keys_of(self, block: int, stream_BTD: Tensor) -> Tensor:
        """The keys (B, H, T, d) that a block makes of another stream than the recorded one."""
        found = self._keys(block, stream_BTD, 1, 0)
        assert found is not None
        return found[0]

    def run_block(
        self,
        block: int,
        stream: Tensor,
        rows: int,
        start: int,
        module: Any = None,
        given: Mapping[Path, Tensor] | None = None,
    ) -> Tensor:
        """Run one block on the positions from `start` on; `given` takes the place of other arguments."""
        found = self.past(block)
        assert found is not None
        keys, values = (t[:, :, :start] for t in found)
        return self._call(block, stream, rows, start, PrefixCache(keys, values, rows), module, given=given)

    def on_past(
        self,
        block: int,
        stream: Tensor,
        rows: int,
        start: int,
        past: PrefixCache,
        given: Mapping[Path, Tensor] | None = None,
    ) -> Tensor:
        """Run one block on the positions from `start` on, on keys and values of one's own for the rest."""
        return self._call(block, stream, rows, start, past, given=given)

    def call_from(self, block: int, start: int) -> BlockCall:
        """What a block is called with for the positions from `start` on."""
        return self._calls_from(start, self.recording.positions)[0][block]

    def run_tail(self, block: int, stream: Tensor, rows: int, start: int, tail: int) -> Tensor:
        """What leaves a block at the positions from `tail` on, of a stream that is carried from `start` on.

        In front of `tail` the block makes keys and values, and nothing else: where it is the last one and
        nobody reads those positions, nothing else is needed of them.
        """
        keys = self._keys(block, stream[:, : tail - start], rows, start)
        assert keys is not None
        return self._call(block, stream[:, tail - start :], rows, tail, PrefixCache(*keys, rows=1))

    def _keys(self, block: int, stream: Tensor, rows: int, start: int) -> tuple[Tensor, Tensor] | None:
        """The keys and values of all positions up to the end of a stream that is carried from `start` on."""
        prefix = None
        if start:
            found = self.past(block)
            assert found is not None
            prefix = (found[0][:, :, :start], found[1][:, :, :start])
        cache = KeptKeys(prefix, rows, stops=True)
        with suppress(StopForward):
            self._call(block, stream, rows, start, cache, upto=start + stream.shape[1])
        return cache.kept

    def _call(
        self,
        block: int,
        stream: Tensor,
        rows: int,
        start: int,
        past: DynamicCache,
        module: Any = None,
        upto: int | None = None,
        given: Mapping[Path, Tensor] | None = None,
    ) -> Tensor:
        calls, placeholder = self._calls_from(start, upto or self.recording.positions)
        call, given = calls[block], given or {}
        stream = stream.clone() if block in self.model.parts.written else stream
        batched = self.model.batched

        def argument(path: Path, tensor: Tensor) -> Tensor:
            if path == call.stream_path:
                return stream
            if rows == 1 or path in given or (block, path) not in batched:
                return tensor
            return over_rows(tensor, rows, len(stream))

        nested = map_tensors(with_arguments(call, given), argument)
        args = tuple(past if a is placeholder else a for a in nested["args"])
        kwargs = {name: past if a is placeholder else a for name, a in nested["kwargs"].items()}
        out = main_tensor((module or self.model.blocks[block].module)(*args, **kwargs))
        assert out is not None
        return out

    def _stand_ins(self, start: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the right length for whoever asks a cache how long it is; nobody reads them."""
        one = torch.zeros(1, device=self.model.device, dtype=self.model.dtype)
        nothing = one.expand(self.recording.prompts, 1, start, 1)
        return nothing, nothing

    def _calls_from(self, start: int, end: int) -> tuple[list[BlockCall], Any]:
        if (start, end) not in self._calls:
            self._calls[start, end] = self._listen(start, end)
        return self._calls[start, end]

    def _listen(self, start: int, end: int) -> tuple[list[BlockCall], Any]:
        """What every block is called with for the positions from `start` to `end` on top of a past."""
        cache = DynamicCache()
        if start:
            for layer in range(len(self.model.blocks)):
                cache.update(*self._stand_ins(start), layer)
        given = {name: tensor[:, :end] for name, tensor in self.recording.inputs.items()}
        inputs = {n: t if n == "attention_mask" else t[:, start:] for n, t in given.items()}
        calls: list[BlockCall] = []
        stack = self.model.parts.stacks[0]
        clean = self.recording.taken.calls

        def listener(index: int) -> Any:
            def reply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                call, stream = split_call(args, kwargs)
                calls.append(call)
                if index == len(stack.blocks) - 1:
                    raise StopForward
                return with_main_tensor(clean[index].outcome, stream)

            return reply

        listeners = [StandIn(block.module, listener(i)) for i, block in enumerate(stack.blocks)]
        try:
            with torch.no_grad(), stacks_replaced([(stack, listeners)]):
                self.model.hf(**inputs, past_key_values=cache, use_cache=True)
        except StopForward:
            pass
        return calls, cache


def cone_of(recording: Recording) -> Cone:
    """The cone of a recording, which every sweep of it shares, and which goes with it."""
    if "cone" not in recording.derived:
        recording.derived["cone"] = Cone(recording)
    return recording.derived["cone"]


def cone_holds(model: Model) -> bool:
    """Whether suffixes on recorded keys and values reproduce the recorded stream; measured once for each
    model.

    A model that has fewer positions than the proof needs, or another kind of cache than the proof fills, has
    no cone.
    """
    if "cone" not in model.proved:
        model.proved["cone"] = _prove(model) if _may_hold(model) else float("inf")
    return model.proved["cone"] <= model.rounding


def why_no_cone(model: Model) -> str:
    """Why rows carry all positions in this model; nothing where they need not."""
    if cone_holds(model):
        return ""
    if reason := _why_not(model):
        return reason
    gap_found = model.proved["cone"]
    return f"suffixes on recorded keys and values differ from the recorded stream by {gap_found:.1e}"


def _may_hold(model: Model) -> bool:
    return not _why_not(model)


def _why_not(model: Model) -> str:
    if model.two_stacks or not model.causal:
        return "a position may see all others"
    if not model.check.batches:
        return "rows of a batch differ from one alone"
    for block in model.blocks:
        branch = block.branch("attn")
        if branch is None or branch.recurrent:
            return f"block {block.address} is recurrent, and its state at the cut is not recorded"
    taken = inspect.signature(type(model.hf).forward).parameters
    return "" if "past_key_values" in taken else "the model takes no keys and values of a past"


def _prove(model: Model) -> float:
    """Largest difference, over all blocks, of a two-row suffix from the recorded stream, relative to the
    stream."""
    try:
        recording = record(model, [sample_ids(model.table_rows, _PROOF_LENGTH, seed=1)], attention_mask="all")
        cone = Cone(recording)
        cone.run_block(0, recording.pre(0)[:, _PROOF_START:], 1, _PROOF_START)
    except (*CANNOT, AssertionError):
        return float("inf")
    worst = 0.0
    with torch.no_grad():
        for block in range(len(model.blocks)):
            if cone.past(block) is None:
                return float("inf")
            stream = recording.pre(block)[:, _PROOF_START:].repeat(2, 1, 1)
            out = cone.run_block(block, stream, 2, _PROOF_START)
            wanted = recording.post(block)[:, _PROOF_START:].repeat(2, 1, 1)
            worst = max(worst, gap(out, wanted))
        last = len(model.blocks) - 1
        whole = recording.pre(last).repeat(2, 1, 1)
        for start in (0, _PROOF_START):
            out = cone.run_tail(last, whole[:, start:], 2, start, _PROOF_TAIL)
            worst = max(worst, gap(out, recording.post(last)[:, _PROOF_TAIL:].repeat(2, 1, 1)))
    return worst
