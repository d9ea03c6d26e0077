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
    """A tensor as it is kept: codes packed into bytes (or short floats), with a scale and a lowest value for
    each run of `group` numbers along `axis`."""

    codes: Tensor
    scales: Tensor | None
    lowest: Tensor | None
    shape: tuple[int, ...]
    bits: int
    axis: int
    group: int

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
        scales, lowest = (one.float().unsqueeze(self.axis + 1) for one in (self.scales, self.lowest))
        found = _grouped(codes, self.axis, self.group) * scales + lowest
        return found.flatten(self.axis, self.axis + 1).narrow(self.axis, 0, self.shape[self.axis])


def coded(numbers: Tensor, bits: int, axis: int, group: int) -> Coded:
    """Whole numbers of so many bits: along `axis`, each run of `group` numbers has a scale and a lowest value
    of its own, kept in half precision.

    With keys (B, G, P, K), `axis=2` runs over tokens, so that each channel has its scale ("by channel"), and
    `axis=3` over channels ("by token"). The last run may be shorter.

    Raises:
        ValueError: a number too large for half precision, in which the lowest value is kept.
    """
    grouped = _grouped(numbers.float(), axis, group)
    low, high = grouped.amin(axis + 1), grouped.amax(axis + 1)
    levels = (1 << bits) - 1
    scales = ((high - low) / levels).clamp_min(torch.finfo(torch.float16).smallest_normal).half()
    lowest = low.half()
    if not bool(lowest.isfinite().all() and scales.isfinite().all()):
        raise ValueError(
            f"keys or values reach {float(numbers.abs().max()):.3g}, beyond a lowest value in half precision:"
            " keep them in bf16 or fp8"
        )
    steps = (grouped - lowest.float().unsqueeze(axis + 1)) / scales.float().unsqueeze(axis + 1)
    codes = steps.round().clamp(0, levels).to(torch.uint8).flatten(axis, axis + 1)
    codes = codes.narrow(axis, 0, numbers.shape[axis])
    return Coded(packed(codes, bits), scales, lowest, tuple(numbers.shape), bits, axis, group)


def as_float(numbers: Tensor, name: str) -> Coded:
    """Short floats; those of eight bits with one scale for each head, so that its largest number is the
    type's."""
    dtype = FLOATS[name]
    if dtype.itemsize > 1:
        return Coded(numbers.to(dtype), None, None, tuple(numbers.shape), 0, 0, 0)
    most = numbers.float().abs().amax((-2, -1), keepdim=True)
    scales = (most / torch.finfo(dtype).max).clamp_min(torch.finfo(torch.float32).tiny)
    return Coded((numbers.float() / scales).to(dtype), scales, None, tuple(numbers.shape), 0, 0, 0)


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


def _grouped(numbers: Tensor, axis: int, group: int) -> Tensor:
    """Numbers with an axis cut into runs of so many, the last one filled up with its last number."""
    size = numbers.shape[axis]
    missing = -size % group
    if missing:
        last = numbers.narrow(axis, size - 1, 1)
        numbers = torch.cat([numbers, *[last] * missing], dim=axis)
    return numbers.unflatten(axis, (-1, group))
