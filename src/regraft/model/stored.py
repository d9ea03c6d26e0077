"""The floating types that a checkpoint keeps its numbers in, and writing others in the same.

On a CPU a half-precision checkpoint is opened in float32, because that computes faster and rounds less. What is made of it is
written in the types that it came in, so that it is as small; what this rounds is rounded before it is compared.
"""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import nn

from regraft.model.files import check_header, weight_files
from regraft.model.opened import Model

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def pattern(name: str) -> str:
    """A tensor's name without the numbers in it, so that block 3 stands for every block."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name)


def stored_types(model: Model) -> dict[str, torch.dtype]:
    """The floating type of every tensor in the model's files, by the pattern of its name, and under "" the commonest.

    Empty for a live model, and where the files hold no floating numbers or codes beside them.
    """
    if model.folder is None:
        return {}
    entries = {n: e["dtype"] for file in weight_files(model.folder) for n, e in check_header(file).items()}
    if not entries or any(kind not in TYPES for kind in entries.values()):
        return {}
    commonest = Counter(entries.values()).most_common(1)[0][0]
    return {"": TYPES[commonest], **{pattern(name): TYPES[kind] for name, kind in entries.items()}}


@torch.no_grad()
def round_as_stored(changed: nn.Module, types: dict[str, torch.dtype]) -> bool:
    """Round every floating parameter to the type that its like is stored in, keeping the type that is computed in.

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


def _type_of(name: str, types: dict[str, torch.dtype]) -> torch.dtype:
    """Names in files may lack the prefix of a base model, or carry one; a name that is new has the commonest type."""
    wanted = pattern(name)
    fitting = (kind for known, kind in types.items() if known and (wanted.endswith(known) or known.endswith(wanted)))
    return types.get(wanted) or next(fitting, types[""])
