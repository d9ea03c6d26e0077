"""The floating types that a checkpoint keeps its numbers in, and writing others in the same.

On a CPU a half-precision checkpoint is opened in float32, because that computes faster and rounds less. What
is made of it is written in the types that it came in, so that it is as small; what this rounds is rounded
before it is compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from regraft.checkpoint.locate import check_header, weight_files
from regraft.core.tolerance import rounding
from regraft.model.model import Model

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NO_CODES = ("I64", "BOOL")
"""Types of the positions and masks that older checkpoints keep beside their numbers."""


def pattern(name: str) -> str:
    """A tensor's name without the numbers in it, so that block 3 stands for every block."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name)


def stored_types(model: Model) -> dict[str, torch.dtype]:
    """The floating type of every tensor in the model's files, by the pattern of its name, and under "" the
    commonest.

    Empty for a live model, and where the files hold no floating numbers or codes beside them.
    """
    if model.folder is None:
        return {}
    kinds = {n: e["dtype"] for file in weight_files(model.folder) for n, e in check_header(file).items()}
    entries = {name: kind for name, kind in kinds.items() if kind not in NO_CODES}
    if not entries or any(kind not in TYPES for kind in entries.values()):
        return {}
    commonest = Counter(entries.values()).most_common(1)[0][0]
    return {"": TYPES[commonest], **{pattern(name): TYPES[kind] for name, kind in entries.items()}}


@torch.no_grad()
def round_as_stored(changed: nn.Module, types: dict[str, torch.dtype]) -> bool:
    """Round every floating parameter to the type that its like is stored in, keeping the type that is
    computed in.

    Returns whether any number changed.
    """
    rounded = False
    for name, p in changed.named_parameters():
        if types and p.is_floating_point():
            nearest = p.to(_type_of(name, types)).to(p.dtype)
            rounded |= not torch.equal(nearest, p)
            p.copy_(nearest)
    return rounded


@torch.no_grad()
def cast_as_stored(changed: nn.Module, types: dict[str, torch.dtype]) -> nn.Module:
    """Give every floating parameter the type that its like is stored in; the same module."""
    for name, p in changed.named_parameters():
        if types and p.is_floating_point():
            p.data = p.data.to(_type_of(name, types))
    return changed


def settle(
    changed: nn.Module,
    types: dict[str, torch.dtype],
    output: Callable[[], Tensor],
    wanted: Tensor,
    depth: int,
    width: int,
) -> tuple[Tensor, float]:
    """Give a model that is about to be written the types of its source's files.

    Returns its outputs on the rounded numbers, computed in the type that was computed in, with how far they
    may lie from `wanted`, its outputs before; these themselves and 0 where no number is rounded.
    """
    found, bound = wanted, 0.0
    if round_as_stored(changed, types):
        coarsest = max(types.values(), key=lambda kind: torch.finfo(kind).eps)
        found, bound = output(), rounding(coarsest, depth, width)
    cast_as_stored(changed, types)
    return found, bound


def narrowed(name: str, tensor: Tensor, types: dict[str, torch.dtype]) -> Tensor:
    """A tensor in the type that its like is stored in, where not a bit is lost; else as it is, as what is
    new."""
    if not types or not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(_type_of(name, types))
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def rounding_note(types: dict[str, torch.dtype], difference: float) -> str:
    """What to say of outputs that rounding alone has moved by a share of the largest; nothing where it has
    not."""
    kind = str(types.get("")).removeprefix("torch.")
    return (
        f"; rounding to {kind}, the type of its source's files, moves them by {difference:.1g}"
        if difference
        else ""
    )


def _type_of(name: str, types: dict[str, torch.dtype]) -> torch.dtype:
    """Names in files may lack the prefix of a base model, or carry one; a name that is new has the commonest
    type."""
    wanted = pattern(name)
    fitting = [known for known in types if f".{wanted}".endswith(f".{known}") or known.endswith(f".{wanted}")]
    return types[min(fitting, key=lambda known: abs(len(known) - len(wanted)), default="")]
