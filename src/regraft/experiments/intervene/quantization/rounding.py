"""Round-to-nearest quantization of a block's matrices: symmetric, one scale for each group of inputs.

The rounded weights are numbers of the model's own type, so that a route can run them. Shapes: O outputs, I
inputs, E experts, D width of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from regraft.core.defaults import QUANTIZATION_GROUP
from regraft.model.cpu_pack import copied
from regraft.model.model import Model
from regraft.model.parts import Block, is_linear, matrix_OI
from regraft.model.weights import Matrix

FEWEST_BITS, MOST_BITS = 2, 16
"""One bit has no zero between its two levels; beyond 16 a rounded number takes as much as a half-precision
one."""

SMALL_BYTES = 1 << 26
"""Bytes of all blocks of a model, 64 MiB, up to which changed copies of them are kept."""
SCALE_BYTES = 2
"""Bytes of a scale: a half-precision number."""


def round_to_nearest(weight: Tensor, bits: int, axis: int = -1, group: int = QUANTIZATION_GROUP) -> Tensor:
    """The weight with each group of `group` values along its input axis rounded to 2^bits - 1 evenly spaced
    levels.

    The largest value of a group is kept exactly; no value moves by more than half a step. Rounding is done in
    float32.
    """
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise ValueError(f"{bits} bits cannot be rounded to: choose {FEWEST_BITS} to {MOST_BITS}")
    rows = weight.detach().movedim(axis, -1).float()
    levels = 2 ** (bits - 1) - 1
    parts = []
    for part in rows.split(group, dim=-1):
        step = part.abs().amax(-1, keepdim=True) / levels
        step = torch.where(step > 0, step, torch.ones_like(step))
        parts.append((part / step).round().clamp(-levels, levels) * step)
    return torch.cat(parts, dim=-1).movedim(-1, axis).to(weight.dtype)


def quantized_bytes(shape: tuple[int, ...], axis: int, bits: int, group: int = QUANTIZATION_GROUP) -> float:
    """Bytes of the codes and of one 16-bit scale for each group."""
    size = 1
    for length in shape:
        size *= length
    groups = size // shape[axis] * -(-shape[axis] // group)
    return size * bits / 8 + groups * SCALE_BYTES


def matrix_axes(block: Block, width: int) -> dict[str, int]:
    """Every matrix parameter of a block by name, with the axis of its inputs; mixtures' stacks of matrices
    too.

    Raises:
        ValueError: a matrix is stored as codes already.
    """
    found: dict[str, int] = {}
    for name, module in block.module.named_modules():
        if is_linear(module):
            matrix_OI(module)
            found[f"{name}.weight"] = 0 if isinstance(module, Conv1D) else 1
    for name, parameter in block.module.named_parameters():
        if parameter.dim() == 3 and "experts" in name:
            outputs_first = parameter.shape[1] == width if "down" in name else parameter.shape[2] == width
            found[name] = 2 if outputs_first else 1
    return found


def quantized_block(
    model: Model,
    block: Block,
    bits: int,
    only: Iterable[Matrix] | None = None,
    group: int = QUANTIZATION_GROUP,
) -> nn.Module:
    """A copy of a block with all its matrices rounded, or only the given ones (a role of a packed matrix by
    its rows)."""
    made = copied(model.filled(block.index).module)
    axes = matrix_axes(block, model.width)
    chosen = list(only) if only is not None else None
    with torch.no_grad():
        for name, axis in axes.items():
            weight = made.get_parameter(name)
            rounded = round_to_nearest(weight, bits, axis, group)
            if chosen is None:
                weight.copy_(rounded)
                continue
            for matrix in chosen:
                if matrix.tensor == f"{block.path}.{name}":
                    _write(weight, rounded, matrix)
    return made


def role_block(
    model: Model,
    block: Block,
    matrices: Iterable[Matrix],
    bits: Callable[[str], int],
    group: int = QUANTIZATION_GROUP,
) -> nn.Module:
    """A copy of a block with each of its matrices rounded to the bits of its role."""
    made = copied(model.filled(block.index).module)
    axes = matrix_axes(block, model.width)
    with torch.no_grad():
        for matrix in matrices:
            name = matrix.tensor.removeprefix(f"{block.path}.")
            if name in axes:
                weight = made.get_parameter(name)
                _write(weight, round_to_nearest(weight, bits(matrix.role), axes[name], group), matrix)
    return made


@dataclass(frozen=True, eq=False)
class MadeWhenRun:
    """What stands in a block's place on a route: a block made anew at each call, so that of a whole model's
    changed blocks one is held at a time; or made once and kept, where all of them are small."""

    make: Callable[[], nn.Module]
    small: bool = False
    kept: list[nn.Module] = field(default_factory=list, init=False, repr=False)

    def block(self) -> nn.Module:
        """The block."""
        if self.kept:
            return self.kept[0]
        made = self.make()
        self.kept.extend([made] if self.small else [])
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block computes."""
        return self.block()(*args, **kwargs)


def all_small(blocks: Iterable[Block]) -> bool:
    """Whether copies of all the blocks may be kept beside the model."""
    return sum(p.numel() * p.element_size() for b in blocks for p in b.module.parameters()) <= SMALL_BYTES


def rounded_when_run(
    model: Model,
    block: Block,
    bits: int,
    only: Sequence[Matrix] | None = None,
    group: int = QUANTIZATION_GROUP,
) -> MadeWhenRun:
    """`quantized_block` at each call, or at the first one."""
    return MadeWhenRun(partial(quantized_block, model, block, bits, only, group), all_small(model.blocks))


def _write(weight: Tensor, rounded: Tensor, matrix: Matrix) -> None:
    """Copy one matrix's share of the rounded tensor."""
    into, out = (weight[matrix.expert], rounded[matrix.expert]) if weight.dim() == 3 else (weight, rounded)
    if matrix.rows is None:
        into.copy_(out)
    else:
        index = matrix.rows.parts[matrix.role].to(weight.device)
        into.index_copy_(matrix.rows.axis, index, out.index_select(matrix.rows.axis, index))


def block_bytes(model: Model, block: Block, bits: int | None, group: int = QUANTIZATION_GROUP) -> float:
    """Bytes of a block with its matrices at so many bits (None: as they are) and all else in the model's
    type."""
    axes = matrix_axes(block, model.width)
    total = 0.0
    for name, parameter in block.module.named_parameters():
        plain = parameter.numel() * parameter.element_size()
        total += (
            plain
            if bits is None or name not in axes
            else quantized_bytes(tuple(parameter.shape), axes[name], bits, group)
        )
    return total
