"""Keys with the rotation of their position undone, and rotated again.

Which numbers of a key turn together is the model's own affair, block by block: halves of a head, neighbours,
or none. All ways are tried on a stream that is the same at several places, whose keys differ by their
rotation alone. Shapes: B texts, G key heads, T positions, K width of a head, r of its numbers that turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.core.tolerance import gap
from regraft.model.model import Model
from regraft.model.recording import Recording, record
from regraft.sweeps.prefix_cache import cone_of

PLACES, NOT_FIRST = 9, 7
"""Positions of the proof, and the id that stands at all of them: not a special one."""


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
    """The rotation of a block's keys; one that changes nothing where it does not rotate them.

    Raises:
        RotationError: the block is given no cosines and sines, or they turn keys in another way.
    """
    model = recording.model
    given = _given(recording, block)
    remedy = "leave latent and rotation=undone out"
    if given is None:
        raise RotationError(
            f"the keys of {model.name} are not rotated by cosines and sines that can be had: {remedy}"
        )
    proof = f"rotation of block {block}"
    if proof not in model.proved:
        model.proved[proof] = _proved(model, block)
    if math.isnan(model.proved[proof]):
        raise RotationError(
            f"the keys of block {block} of {model.name} turn in a way that is not known here: {remedy}"
        )
    return _ways(*given)[int(model.proved[proof])]


def _given(recording: Recording, block: int) -> tuple[Tensor, Tensor] | None:
    """What transformers hands to every block of a model that rotates: cosines and sines."""
    match recording.taken.calls[block].kwargs.get("position_embeddings"):
        case (Tensor() as cosines, Tensor() as sines):
            return cosines, sines
    return None


def _ways(cosines: Tensor, sines: Tensor) -> list[Rotation]:
    """Every way in which such cosines and sines may be used, not at all first: halves or neighbours, with one
    number for each of a pair, or one for both, which stands in the first half or is all there is."""

    def made(change: Callable[[Tensor], Tensor], halves: bool) -> Rotation:
        return Rotation(change(cosines), change(sines), halves)

    half = cosines.shape[-1] // 2
    return [
        Rotation(torch.ones_like(cosines), torch.zeros_like(sines), halves=True),
        made(lambda one: one, True),
        made(lambda one: one, False),
        made(lambda one: one[..., :half].repeat_interleave(2, -1), False),
        made(lambda one: torch.cat([one, one], -1), True),
        made(lambda one: one.repeat_interleave(2, -1), False),
    ]


def _proved(model: Model, block: int) -> float:
    """Which of the ways makes keys of one stream alike at all positions; not a number if none does."""
    one_token = record(model, [[NOT_FIRST] * PLACES], attention_mask="all")
    given = _given(one_token, block)
    assert given is not None
    same_BTD = one_token.pre(block)[:, :1].expand(-1, PLACES, -1).contiguous()
    keys_BGTK = cone_of(one_token).keys_of(block, same_BTD)
    for number, way in enumerate(_ways(*given)):
        if way.cosines_BTr.shape[-1] > keys_BGTK.shape[-1]:
            continue
        alike = way.undone(keys_BGTK)
        if gap(alike, alike[:, :, :1].expand_as(alike)) <= model.rounding:
            return float(number)
    return float("nan")
