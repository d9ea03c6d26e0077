"""Keys and values in fewer bits: whole numbers of 8, 4, 3 or 2 bits with a scale for each group, and short
floats.

Shapes: ... any number of leading dimensions, P tokens, K width of a head, c codes, g numbers of one group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BYTE = 8
"""Bits."""
FLOATS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
"""Short floats by the name that a strategy gives them."""


@dataclass(frozen=True)
class Coded:
    """A tensor as it is kept: codes packed into bytes (or short floats), a scale and a smallest value for
    each
    group."""

    codes: Tensor
    scales: Tensor | None
    lowest: Tensor | None
    shape: tuple[int, ...]
    bits: int
    axis: int

    @property
    def tensors(self) -> list[Tensor]:
        """All that is kept."""
        return [one for one in (self.codes, self.scales, self.lowest) if one is not None]

    def read(self) -> Tensor:
        """The numbers that the codes stand for, in float32."""
        if self.bits == 0:
            found = self.codes.float()
            return found if self.scales is None else found * self.scales.float()
        assert self.scales is not None
        assert self.lowest is not None
        count = torch.Size(self.shape).numel()
        codes = unpacked(self.codes, self.bits, count).view(self.shape).float()
        grouped, size = _grouped(codes, self.axis, self.scales.shape[self.axis])
        found = grouped * self.scales.float().unsqueeze(self.axis + 1) + self.lowest.float().unsqueeze(
            self.axis + 1
        )
        return found.flatten(self.axis, self.axis + 1)[(slice(None),) * self.axis + (slice(size),)]


def coded(numbers: Tensor, bits: int, axis: int, group: int) -> Coded:
    """Whole numbers of so many bits: along `axis`, each run of `group` numbers has a scale and a lowest value
    of its own, kept in half precision.

    With keys (B, G, P, K), `axis=2` runs over tokens, so that each channel has its scale ("by channel"), and
    `axis=3` over channels ("by token").
    """
    axis = axis % numbers.dim()
    count = -(-numbers.shape[axis] // group)
    grouped, _ = _grouped(numbers.float(), axis, count)
    low, high = grouped.amin(axis + 1), grouped.amax(axis + 1)
    levels = (1 << bits) - 1
    scales = ((high - low) / levels).clamp_min(torch.finfo(torch.float16).smallest_normal).half()
    lowest = low.half()
    steps = (grouped - lowest.float().unsqueeze(axis + 1)) / scales.float().unsqueeze(axis + 1)
    codes = steps.round().clamp(0, levels).to(torch.uint8).flatten(axis, axis + 1)
    codes = codes[(slice(None),) * axis + (slice(numbers.shape[axis]),)]
    return Coded(packed(codes, bits), scales, lowest, tuple(numbers.shape), bits, axis)


def as_float(numbers: Tensor, name: str) -> Coded:
    """Short floats; those of eight bits with one scale for each head, so that its largest number is the
    type's."""
    dtype = FLOATS[name]
    if dtype.itemsize > 1:
        return Coded(numbers.to(dtype), None, None, tuple(numbers.shape), 0, 0)
    most = numbers.float().abs().amax((-2, -1), keepdim=True)
    scales = (most / torch.finfo(dtype).max).clamp_min(torch.finfo(torch.float32).tiny)
    return Coded((numbers.float() / scales).to(dtype), scales, None, tuple(numbers.shape), 0, 0)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes of so many bits, one behind the other, as bytes: the lowest bit first."""
    if bits == BYTE:
        return codes.flatten()
    flat = codes.flatten()
    spread = (flat[:, None] >> torch.arange(bits, device=flat.device, dtype=torch.uint8)) & 1
    flags = torch.nn.functional.pad(spread.flatten(), (0, -spread.numel() % BYTE)).view(-1, BYTE)
    weights = 1 << torch.arange(BYTE, device=flat.device, dtype=torch.int32)
    return (flags.int() * weights).sum(1).to(torch.uint8)


def unpacked(stored: Tensor, bits: int, count: int) -> Tensor:
    """The codes again."""
    if bits == BYTE:
        return stored[:count]
    flags = (stored[:, None] >> torch.arange(BYTE, device=stored.device, dtype=torch.uint8)) & 1
    weights = 1 << torch.arange(bits, device=stored.device, dtype=torch.int32)
    return (flags.flatten()[: count * bits].view(count, bits).int() * weights).sum(1).to(torch.uint8)


def _grouped(numbers: Tensor, axis: int, count: int) -> tuple[Tensor, int]:
    """Numbers with an axis cut into so many groups, the last one filled up with its last number; and the
    size."""
    size = numbers.shape[axis]
    group = -(-size // count)
    missing = count * group - size
    if missing:
        last = numbers.narrow(axis, size - 1, 1).expand(
            *numbers.shape[:axis], missing, *numbers.shape[axis + 1 :]
        )
        numbers = torch.cat([numbers, last], dim=axis)
    return numbers.unflatten(axis, (count, group)), size
