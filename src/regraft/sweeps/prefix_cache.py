"""Rows that carry only what an edit can change: in a causal stack, nothing before the edited position.

The positions before it stand in for themselves as recorded keys and values. The model's own code makes the
masks and the position embeddings for the rest: it is run on the suffix with a cache of the prefix while
stand-ins take the place of its blocks and note what they were called with. Shapes: N rows, B prompts, T
positions, H heads, d head width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
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
)
from regraft.model.model import Model
from regraft.model.recording import Recording, record
from regraft.model.selfcheck import sample_ids

_PROOF_LENGTH, _PROOF_START = 12, 5
"""Tokens of the proof, and the position that it is cut at: odd and not in the middle, so that an offset by
one shows."""


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


class Cone:
    """The recorded keys and values of a recording, and the arguments of every block for each suffix."""

    def __init__(self, recording: Recording):
        self.recording = recording
        self.model = recording.model
        self.past = self._past()
        self._calls: dict[int, tuple[list[BlockCall], Any]] = {}

    def _past(self) -> list[tuple[Tensor, Tensor]]:
        cache = DynamicCache()
        last = self.model.blocks[-1].module

        def stop(module: nn.Module, args: Any, outcome: Any) -> None:
            raise StopForward

        handle = last.register_forward_hook(stop)
        try:
            with torch.no_grad():
                self.model.hf(**self.recording.inputs, past_key_values=cache, use_cache=True)
        except StopForward:
            pass
        finally:
            handle.remove()
        layers: list[Any] = list(cache.layers)
        return [(layer.keys, layer.values) for layer in layers]

    def run_block(self, block: int, stream: Tensor, rows: int, start: int, module: Any = None) -> Tensor:
        """Run one block on the positions from `start` on."""
        calls, placeholder = self._calls_from(start)
        call = calls[block]
        keys, values = self.past[block]
        stream = stream.clone() if block in self.model.parts.written else stream
        past = PrefixCache(keys[:, :, :start], values[:, :, :start], rows)
        batched = self.model.batched

        def argument(path: Path, tensor: Tensor) -> Tensor:
            if path == call.stream_path:
                return stream
            if rows == 1 or (block, path) not in batched:
                return tensor
            return over_rows(tensor, rows, len(stream))

        nested = map_tensors(call.nested(), argument)
        args = tuple(past if a is placeholder else a for a in nested["args"])
        kwargs = {name: past if a is placeholder else a for name, a in nested["kwargs"].items()}
        out = main_tensor((module or self.model.blocks[block].module)(*args, **kwargs))
        assert out is not None
        return out

    def _calls_from(self, start: int) -> tuple[list[BlockCall], Any]:
        if start not in self._calls:
            self._calls[start] = self._listen(start)
        return self._calls[start]

    def _listen(self, start: int) -> tuple[list[BlockCall], Any]:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.past):
            cache.update(keys[:, :, :start], values[:, :, :start], layer)
        inputs = {n: t if n == "attention_mask" else t[:, start:] for n, t in self.recording.inputs.items()}
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


def cone_holds(model: Model) -> bool:
    """Whether suffixes on recorded keys and values reproduce the recorded stream; measured once for each
    model.

    A model that has fewer positions than the proof needs, or another kind of cache than the proof fills, has
    no cone.
    """
    if "cone" not in model.proved:
        model.proved["cone"] = _prove(model) if _may_hold(model) else float("inf")
    return model.proved["cone"] <= model.rounding


def _may_hold(model: Model) -> bool:
    if model.two_stacks or not model.causal or not model.check.batches:
        return False
    attends = all((b := block.branch("attn")) is not None and not b.recurrent for block in model.blocks)
    return attends and "past_key_values" in inspect.signature(type(model.hf).forward).parameters


def _prove(model: Model) -> float:
    """Largest difference, over all blocks, of a two-row suffix from the recorded stream, relative to the
    stream."""
    try:
        recording = record(model, [sample_ids(model.table_rows, _PROOF_LENGTH, seed=1)], attention_mask="all")
        cone = Cone(recording)
        cone.run_block(0, recording.pre(0)[:, _PROOF_START:], 1, _PROOF_START)
    except CANNOT:
        return float("inf")
    if len(cone.past) != len(model.blocks):
        return float("inf")
    worst = 0.0
    with torch.no_grad():
        for block in range(len(model.blocks)):
            stream = recording.pre(block)[:, _PROOF_START:].repeat(2, 1, 1)
            out = cone.run_block(block, stream, 2, _PROOF_START)
            wanted = recording.post(block)[:, _PROOF_START:].repeat(2, 1, 1)
            worst = max(worst, gap(out, wanted))
    return worst
