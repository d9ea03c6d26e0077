"""Bytes that a model keeps of a text: by formula from its structure, and counted in the cache that it makes.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from regraft.core.structure import walk_tensors
from regraft.model.attention_mask import reads_ahead
from regraft.model.block_call import CANNOT, longest_input
from regraft.model.model import Model
from regraft.model.selfcheck import sample_ids
from regraft.systems.mixers import Mixer, mixers_of

SHORT, LONG = 16, 48
"""Tokens of the two runs that are counted, where no window is shorter."""
FLOAT32 = 4
"""Bytes of a number of a recurrent state that is kept no narrower."""
FARTHEST = 512
"""Tokens up to which a run also looks behind the smallest window."""
HOLDERS = ("past_key_values", "cache_params", "state")
"""What transformers calls the state in what a model returns."""


@dataclass(frozen=True)
class BlockState:
    """What one block keeps: its mixers, bytes by formula, and bytes that were counted (None: not held where
    they can be counted). A block that reads ahead keeps nothing: an encoder does not write on."""

    mixers: tuple[Mixer, ...]
    itemsize: int
    counted_at: tuple[int, ...]
    counted: tuple[int, ...] | None
    writes: bool = True

    def bytes_at(self, length: int) -> int:
        """Bytes by formula for a text of so many tokens."""
        return sum(self._bytes_of(mixer, length) for mixer in self.mixers) if self.writes else 0

    def _bytes_of(self, mixer: Mixer, length: int) -> int:
        kept = length if mixer.kept is None else min(length, mixer.kept)
        plain = mixer.fixed - mixer.wide + mixer.per_token * kept
        return plain * self.itemsize + mixer.wide * max(self.itemsize, FLOAT32)

    @property
    def kind(self) -> str:
        """All kinds of the block, as words."""
        return " + ".join(mixer.kind for mixer in self.mixers) or "none"

    @property
    def agrees(self) -> bool:
        """Whether what was counted is what the formula says, at every length."""
        return self.counted == tuple(self.bytes_at(length) for length in self.counted_at)


def block_states(model: Model) -> tuple[list[BlockState], str]:
    """The state of every block of the stack that writes, and why nothing was counted where nothing was."""
    blocks = model.main_blocks
    mixers = [tuple(mixers_of(block, model.hf.config)) for block in blocks]
    lengths = _lengths(model, [mixer for row in mixers for mixer in row])
    counted, why = _counted(model, lengths, len(blocks))
    states = [
        BlockState(
            row,
            model.dtype.itemsize,
            lengths,
            None if counted is None else tuple(c[i] for c in counted),
            writes=not reads_ahead(model, blocks[i].index),
        )
        for i, row in enumerate(mixers)
    ]
    return states, why


FAR = 1 << 40
"""Tokens, more than any window: what still grows there grows without end."""


def length_as_heavy(states: Sequence[BlockState], weights: int) -> float:
    """Tokens of a text whose state is as large as the weights; infinite where the state stops growing, 0
    where what does not grow is as large already."""
    per_token = sum(s.bytes_at(FAR) - s.bytes_at(FAR - 1) for s in states)
    bounded = sum(s.bytes_at(FAR) for s in states) - per_token * FAR
    return max(0.0, (weights - bounded) / per_token) if per_token else float("inf")


def weight_bytes(model: Model) -> int:
    """Bytes of a model's weights, each tensor once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())


def _lengths(model: Model, mixers: list[Mixer]) -> tuple[int, ...]:
    """Two lengths that every window holds, and one behind the smallest; as far as the model has positions."""
    windows = [m.kept for m in mixers if m.kept]
    most = longest_input(model.hf.config) or FARTHEST
    inside = min([*windows, most, LONG])
    lengths = (SHORT, LONG) if inside >= LONG else (max(1, inside // 2), max(2, inside))
    behind = 2 * min(windows, default=FARTHEST)
    return (*lengths, behind) if lengths[1] < behind <= min(FARTHEST, most) else lengths


def _counted(model: Model, lengths: tuple[int, ...], blocks: int) -> tuple[list[list[int]] | None, str]:
    if model.two_stacks:
        return None, "a decoder behind an encoder keeps the encoder's keys as well"
    if not model.causal:
        return None, "an encoder keeps nothing"
    found = []
    for length in lengths:
        ids = torch.tensor([sample_ids(model.table_rows, length, seed=1)], device=model.device)
        try:
            with model.held(), torch.no_grad():
                out = model.hf(input_ids=ids, use_cache=True)
        except CANNOT as error:
            return None, f"the model's own code does not run with a cache: {error}"
        held = next((out[name] for name in HOLDERS if name in out and out[name] is not None), None)
        if held is None:
            return None, "the model holds its state in its own modules, not in a cache that it returns"
        found.append(held_bytes(held, blocks))
    return found, ""


def held_bytes(held: Any, blocks: int) -> list[int]:
    """Bytes of every block's tensors in a cache, or in a state whose last dimension counts blocks."""
    if isinstance(held, Cache):
        rows = [0] * blocks
        listed = {name: value for name, value in vars(held).items() if isinstance(value, list)}
        for layers in listed.values():  # a kind of state of its own stands in a list of its own
            for index, layer in enumerate(layers[:blocks]):
                rows[index] += sum(
                    _size(t) for t in _tensors(layer if isinstance(layer, Tensor | list) else vars(layer))
                )
        return rows
    tensors = [tensor for _, tensor in walk_tensors(held)]
    return [sum(_size(t) // t.shape[-1] for t in tensors)] * blocks


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of a state; numbers that say how it is used are none of it."""
    return (tensor for _, tensor in walk_tensors(value) if tensor.dim() > 0)
