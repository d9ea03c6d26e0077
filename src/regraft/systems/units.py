"""Parts of a model as calls of their own, with the very inputs that a text gives them.

Shapes: B texts, T tokens of each, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.structure import main_tensor, walk_tensors
from regraft.core.tolerance import gap
from regraft.model.block_call import without_cache
from regraft.model.inputs import batch_inputs
from regraft.model.model import Model
from regraft.model.parts import NORM, Block
from regraft.systems.mixers import mixers_of

PARTS = ("norm", "sum and norm", "rotation", "attention", "recurrence", "mlp", "block")
"""What is taken of one block of each kind."""
WHOLE = ("stack", "model")
"""All blocks with their embedding, and the model with its head."""
UNITS = (*PARTS, *WHOLE)
ROTATION = "inv_freq"
"""The buffer of a module that makes rotations of positions."""


class UnitError(ValueError):
    """No such unit, or the model has none."""


@dataclass(frozen=True)
class Inputs:
    """What one call is given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class UnitCall:
    """A part that is called alone; `inputs` are those that texts of each length gave it."""

    name: str
    where: str
    module: nn.Module
    inputs: dict[int, Inputs]

    def call(self, length: int, run: Callable[..., Any] | None = None) -> Tensor:
        """What comes out: its one tensor, or the first of several."""
        given = self.inputs[length]
        return outcome((self.module if run is None else run)(*given.args, **given.kwargs))


class SumAndNorm(nn.Module):
    """What stands between two branches: the stream takes what the first one adds, and is normalised."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, stream_BTD: Tensor, added_BTD: Tensor) -> Any:
        """The normalised sum."""
        return self.norm(stream_BTD + added_BTD)


def outcome(returned: Any) -> Tensor:
    """The first tensor of floating point numbers in what a module returns."""
    return next(tensor for _, tensor in walk_tensors(returned) if tensor.is_floating_point())


def units_of(model: Model, rows_BT: Sequence[Sequence[int]], lengths: Sequence[int],
             names: Sequence[str]) -> tuple[list[UnitCall], dict[str, str]]:  # fmt: skip
    """The asked parts of a model with their inputs, and why some are not there.

    Args:
        model: an opened model.
        rows_BT: texts, at least as long as the longest length.
        lengths: how many of their tokens the inputs are taken at.
        names: of `UNITS`; of each but the whole ones, one for each kind of block that has it.
    """
    found: dict[tuple[str, str], nn.Module] = {}
    missing: dict[str, str] = {}
    kinds = _kinds(model)
    for name in names:
        places = _whole(model, name) if name in WHOLE else {
            where: module for where, block in kinds.items()
            if (module := _part(model, block, name)) is not None
        }  # fmt: skip
        found |= {(name, where): module for where, module in places.items()}
        if not places:
            missing[name] = f"no module of {model.name} is one"
    taken = {at: _taken(model, [list(row[:at]) for row in rows_BT], list(found.values())) for at in lengths}
    units = []
    for (name, where), module in found.items():
        given = {at: by_module[module] for at, by_module in taken.items() if module in by_module}
        if len(given) < len(lengths):
            missing[name] = f"{where} is not called in a forward pass"
        elif name == "sum and norm":
            if (unit := _sum_and_norm(model, kinds[where], where, module, rows_BT, lengths, given)) is None:
                missing[name] = (
                    "what the second norm reads is not the stream with the first branch's addition"
                )
            else:
                units.append(unit)
        else:
            units.append(UnitCall(name, where, module, given))
    return units, missing


def _kinds(model: Model) -> dict[str, Block]:
    """The first block of each kind, by address and kind."""
    found: dict[str, tuple[str, Block]] = {}
    for block in model.main_blocks:
        kind = " + ".join(mixer.kind for mixer in mixers_of(block, model.hf.config)) or "block"
        found.setdefault(kind, (f"{block.address} ({kind})", block))
    return dict(found.values())


def _whole(model: Model, name: str) -> dict[str, nn.Module]:
    if name == "model":
        return {"whole": model.hf}
    owner = next(stack.owner for stack in model.parts.stacks if stack.blocks[0] in model.main_blocks)
    return {"whole": owner}


def _part(model: Model, block: Block, name: str) -> nn.Module | None:
    """The module of a block that is the asked part."""
    if name == "block":
        return block.module
    if name == "rotation":
        buffers = ((m, dict(m.named_buffers(recurse=False))) for m in model.hf.modules())
        return next((module for module, own in buffers if ROTATION in own), None)
    norms = [m for n, m in block.module.named_modules() if NORM.search(n) and not list(m.children())]
    outer = [m for m in norms if any(m is child for child in block.module.children())]
    if name == "norm":
        return next(iter(outer), None)
    if name == "sum and norm":
        return outer[1] if len(outer) > 1 and not block.parallel else None
    if name == "mlp":
        branch = block.branch("mlp")
        return None if branch is None else _child_with(block.module, branch.module)
    recurrent = name == "recurrence"
    mixing = [
        b
        for b in block.branches
        if b.kind in ("attn", "mixer") and (b.kind == "mixer" or b.recurrent) == recurrent
    ]
    return next((b.attention or _child_with(block.module, b.module) for b in mixing), None)


def _child_with(block: nn.Module, inner: nn.Module) -> nn.Module | None:
    """The child of a block in which a module stands; None where the module is that child: then nothing holds
    the whole branch."""
    return next(
        (child for child in block.children() if child is not inner and inner in set(child.modules())), None
    )


def _taken(model: Model, rows: list[list[int]], modules: list[nn.Module]) -> dict[nn.Module, Inputs]:
    """What each module is first given in a forward pass."""
    found: dict[nn.Module, Inputs] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(module, Inputs(args, dict(kwargs)))

    sources, follow = (rows, [row[1:] for row in rows]) if model.two_stacks else (rows, [[] for _ in rows])
    inputs, _, _ = batch_inputs(model, sources, follow)
    with ExitStack() as hooked, model.held(), torch.no_grad():
        for module in dict.fromkeys(modules):
            handle = module.register_forward_pre_hook(keep, with_kwargs=True)
            hooked.callback(handle.remove)
        model.hf(**inputs, **without_cache(model.hf))
    return found


def _sum_and_norm(model: Model, block: Block, where: str, norm: nn.Module, rows_BT: Sequence[Sequence[int]],
                  lengths: Sequence[int], given: dict[int, Inputs]) -> UnitCall | None:  # fmt: skip
    """The unit with the stream and the addition apart, where their sum is what the norm reads."""
    inputs = {}
    for at in lengths:
        recording = model.record([list(row[:at]) for row in rows_BT], attention_mask="all")
        first = block.branches[0]
        stream, added = recording.pre(block.index), recording[f"{block.address}.{first.kind}_out"]
        read = main_tensor(given[at].args) if given[at].args else None
        if read is None or read.shape != stream.shape:
            return None
        if gap(stream + added, read) > model.rounding:
            return None
        inputs[at] = Inputs((stream, added), {})
    return UnitCall("sum and norm", where, SumAndNorm(norm), inputs)
