"""Keys with the rotation of their position undone, and rotated again.

Which numbers of a key turn together is the model's own affair: halves of a head, or neighbours. Both are
tried on one token at several places, whose keys in the first block differ by their rotation alone. Shapes: B
texts, G key heads, T positions, K width of a head, r of its numbers that turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.core.tolerance import gap
from regraft.model.model import Model
from regraft.model.recording import Recording, record
from regraft.sweeps.prefix_cache import cone_of

PLACES, NOT_FIRST = 9, 7
"""Positions of the proof, and the id that stands at all of them: not a special one."""
HALVES, NEIGHBOURS = 1.0, 0.0
"""What turns together."""


class RotationError(ValueError):
    """Keys whose rotation is not known."""


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines (B or 1, T, r) of one block's positions, and whether halves of a head turn together
    or neighbours."""

    cosines_BTr: Tensor
    sines_BTr: Tensor
    halves: bool

    def undone(self, keys_BGTK: Tensor) -> Tensor:
        """Keys as they are before they are rotated."""
        return self._turned(keys_BGTK, -1)

    def done(self, keys_BGTK: Tensor) -> Tensor:
        """Keys rotated to their positions."""
        return self._turned(keys_BGTK, 1)

    def _turned(self, keys_BGTK: Tensor, way: int) -> Tensor:
        length, width = keys_BGTK.shape[2], self.cosines_BTr.shape[-1]
        cosines, sines = (one[:, None, :length] for one in (self.cosines_BTr, self.sines_BTr))
        # models that stretch their positions scale both: undone, the scale is undone as well
        scale = 1 if way > 0 else cosines.square() + sines.square()
        turning, rest = keys_BGTK[..., :width], keys_BGTK[..., width:]
        turned = (turning * cosines + way * _quarter(turning, self.halves) * sines) / scale
        return torch.cat([turned, rest], dim=-1)


def _quarter(numbers: Tensor, halves: bool) -> Tensor:
    """Every pair of numbers turned by a quarter."""
    if halves:
        first, second = numbers.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)
    return torch.stack([-numbers[..., 1::2], numbers[..., ::2]], dim=-1).flatten(-2)


def rotation_of(recording: Recording, block: int) -> Rotation:
    """The rotation of a block's keys.

    Raises:
        RotationError: the block is given no cosines and sines, or they turn keys in another way.
    """
    model = recording.model
    given = _given(recording, block)
    if given is None:
        raise RotationError(f"the keys of {model.name} are not rotated by cosines and sines that can be had")
    if "rotation" not in model.proved:
        model.proved["rotation"] = _proved(model)
    if model.proved["rotation"] not in (HALVES, NEIGHBOURS):
        raise RotationError(f"the keys of {model.name} turn in a way that is not known here")
    return Rotation(*given, halves=model.proved["rotation"] == HALVES)


def _given(recording: Recording, block: int) -> tuple[Tensor, Tensor] | None:
    """What transformers hands to every block of a model that rotates: cosines and sines."""
    match recording.taken.calls[block].kwargs.get("position_embeddings"):
        case (Tensor() as cosines, Tensor() as sines):
            return cosines, sines
    return None


def _proved(model: Model) -> float:
    """What turns together: halves, neighbours, or neither."""
    one_token = record(model, [[NOT_FIRST] * PLACES], attention_mask="all")
    found, given = cone_of(one_token).past(0), _given(one_token, 0)
    assert found is not None
    assert given is not None
    for halves in (HALVES, NEIGHBOURS):
        alike = Rotation(*given, halves=halves == HALVES).undone(found[0])
        if gap(alike, alike[:, :, :1].expand_as(alike)) <= model.rounding:
            return halves
    return float("nan")
