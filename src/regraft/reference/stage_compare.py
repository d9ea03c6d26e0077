"""Two tensors of one stage beside each other: differences, matching decimals, and proof that they are two
tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MASKED = -1e30
"""Scores below it are masked, however a model writes minus infinity."""
MOST = 17
"""Decimals that a float64 has; more cannot be told."""
NEEDED = {"float32": 5, "float64": 10}
"""Decimals that the published rebuilds ask for."""


class SameTensorError(AssertionError):
    """A stage was compared with itself: the rebuilt side used the official one's memory."""


@dataclass(frozen=True)
class Row:
    """One stage: both shapes, largest and mean absolute difference, decimals that match, and whether those
    suffice."""

    stage: str
    shape: tuple[int, ...]
    official_shape: tuple[int, ...]
    largest: float
    mean: float
    decimals: int
    passed: bool


def compare(stage: str, ours: Tensor, official: Tensor, needed: int) -> Row:
    """Compare one stage; scores that a mask rules out count as equal where both rule them out.

    Decimals are those of the tensors as they are, or scaled to at most 1 where the official one is larger.

    Raises:
        SameTensorError: both sides are one tensor, or lie in one memory.
    """
    refuse_same(stage, ours, [official])
    shape = tuple(ours.shape)
    if ours.dim() == official.dim() and ours.shape[0] == 1:
        ours = ours.expand(official.shape[0], *ours.shape[1:])
    if ours.shape != official.shape:
        return Row(stage, shape, tuple(official.shape), math.inf, math.inf, 0, False)
    difference = (unmasked(ours) - unmasked(official)).abs()
    largest, mean = float(difference.max()), float(difference.mean())
    if math.isnan(largest):
        largest = mean = math.inf
    scale = float(official.detach().double()[unmasked(official) > MASKED].abs().max())
    decimals = matching_decimals(largest / max(1.0, scale))
    return Row(stage, shape, tuple(official.shape), largest, mean, decimals, decimals >= needed)


def unmasked(tensor: Tensor) -> Tensor:
    """In float64, with everything that a mask rules out set to one and the same large number."""
    value = tensor.detach().double()
    return torch.where(value < MASKED, torch.full_like(value, MASKED), value)


def matching_decimals(difference: float) -> int:
    """How many decimals are right: the largest d with a difference of at most half a unit in the d-th place,
    up to 17."""
    if difference == 0:
        return MOST
    if not math.isfinite(difference):
        return 0
    return max(0, min(MOST, math.floor(-math.log10(2 * difference))))


def refuse_same(stage: str, ours: Tensor, others: Iterable[Tensor]) -> None:
    """Make sure that a tensor is not, and does not lie in the memory of, any of the others.

    Raises:
        SameTensorError: it does.
    """
    memory = ours.untyped_storage().data_ptr()
    if any(ours is other or memory == other.untyped_storage().data_ptr() for other in others):
        raise SameTensorError(
            f"stage {stage}: the rebuilt tensor lies in the official one's memory, so nothing was rebuilt"
            " there"
        )


def rows(
    ours: Iterable[tuple[str, Tensor]], official: Mapping[str, Tensor], needed: int, carry: bool = False
) -> Iterator[tuple[Row, Tensor]]:
    """Compare stage after stage, up to and with the first that parts; with `carry` to the end.

    Raises:
        LookupError: a stage that the official side does not have.
        SameTensorError: a stage lies in the official side's memory.
    """
    for stage, tensor in ours:
        if stage not in official:
            raise LookupError(f"the official model has no stage {stage!r}")
        refuse_same(stage, tensor, official.values())
        row = compare(stage, tensor, official[stage], needed)
        yield row, tensor
        if not row.passed and not carry:
            return
