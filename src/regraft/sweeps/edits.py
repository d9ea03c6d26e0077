"""Apply edits to many rows at once.

Shapes: n rows, B prompts, T positions that the rows carry, W features of the tapped tensor, g edits of one
group, k positions and w features of an edit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.core.structure import lengths_of_prompts
from regraft.model.model import Model
from regraft.model.sites import SiteError
from regraft.sweeps.attention_edits import check_attention
from regraft.sweeps.batch_layout import edit_positions
from regraft.sweeps.variants import Edit, Noise, Scale, Variant, listed


@dataclass(eq=False)
class Placed:
    """An edit at a row: `features` None for all of the tapped tensor's."""

    row: int
    edit: Edit
    features: Tensor | None = None


@dataclass(frozen=True)
class Carried:
    """Which positions the rows carry: `start` and those behind it, of prompts with the given lengths."""

    start: int
    positions: int
    lengths: tuple[int, ...]


def apply_edits(x_nBTW: Tensor, placed: Sequence[Placed], carried: Carried) -> Tensor:
    """A copy of the activation with every edit applied to its row; edits of one kind and size go in one step.

    Raises:
        ValueError: an edit's value has a shape that does not fit.
    """
    x_nBTW = x_nBTW.clone()
    for wave in _waves(placed):
        groups: dict[tuple[Any, ...], list[tuple[Placed, Tensor]]] = defaultdict(list)
        for one in wave:
            positions_Bk = _positions(one.edit, carried, x_nBTW.shape[1]).to(x_nBTW.device)
            width = None if one.features is None else len(one.features)
            groups[(type(one.edit), positions_Bk.shape[1], width)].append((one, positions_Bk))
        for members in groups.values():
            _apply_group(x_nBTW, members, carried)
    return x_nBTW


def _waves(placed: Sequence[Placed]) -> list[list[Placed]]:
    """Edits of one row follow one another; the first edits of all rows go first, then the second ones."""
    waves: list[list[Placed]] = []
    count: dict[int, int] = defaultdict(int)
    for one in placed:
        index = count[one.row]
        count[one.row] += 1
        if index == len(waves):
            waves.append([])
        waves[index].append(one)
    return waves


def _positions(edit: Edit, carried: Carried, prompts: int) -> Tensor:
    found = edit_positions(edit, carried.lengths)
    if found is None:
        return torch.arange(carried.positions - carried.start).expand(prompts, -1)
    return torch.tensor(found) - carried.start


def _apply_group(x_nBTW: Tensor, members: list[tuple[Placed, Tensor]], carried: Carried) -> None:
    device = x_nBTW.device
    prompts = x_nBTW.shape[1]
    rows = torch.tensor([one.row for one, _ in members], device=device)[:, None, None]
    batch = torch.arange(prompts, device=device)[None, :, None]
    positions_gBk = torch.stack([positions for _, positions in members])
    index: tuple[Tensor, ...] = (rows, batch, positions_gBk)
    if members[0][0].features is not None:
        features = torch.stack([one.features for one, _ in members if one.features is not None]).to(device)
        index = (*(i[..., None] for i in index), features[:, None, None, :])
    old = x_nBTW[index]
    operands = [
        one.edit.operand(
            old[i], lambda value, one=one, p=positions: pick_value(one.edit, value, p, carried, old.shape[-1])
        )
        for i, (one, positions) in enumerate(members)
    ]
    stacked = torch.stack([o for o in operands if o is not None]) if operands[0] is not None else None
    x_nBTW[index] = members[0][0].edit.change(old, stacked).to(x_nBTW.dtype)


def pick_value(edit: Edit, value: Tensor, positions_Bk: Tensor, carried: Carried, width: int) -> Tensor:
    """The part of an edit's value that belongs to its positions; a value with heads is flattened.

    Raises:
        ValueError: the shape fits neither one vector, nor one for each position, nor a whole activation, or
            the edit counts from the end and the value's prompts end elsewhere.
    """
    came_from = lengths_of_prompts(value)
    value = value.to(positions_Bk.device)
    whole = (carried.positions,)
    if value.dim() == 4:
        value = value.flatten(2)
    if value.dim() and value.shape[-1] not in (1, width):
        raise ValueError(
            f"the value of the edit at {edit.site} is {value.shape[-1]} wide, the activation {width}"
        )
    if value.dim() == 3 and value.shape[1:2] == whole and value.shape[0] in (1, len(positions_Bk)):
        _check_ends(edit, came_from, carried)
        value = value.expand(len(positions_Bk), -1, -1)
        batch = torch.arange(len(positions_Bk), device=value.device)[:, None]
        return value[batch, positions_Bk + carried.start]
    if value.dim() == 1 or (value.dim() == 2 and value.shape[0] in (1, positions_Bk.shape[1])):
        return value
    if value.dim() == 3 and value.shape[:2] == positions_Bk.shape:
        return value
    raise ValueError(
        f"the value of the edit at {edit.site} has shape {tuple(value.shape)}: give (width,), (positions,"
        f" width) or the whole activation ({len(positions_Bk)}, {carried.positions}, width)"
    )


def _check_ends(edit: Edit, came_from: tuple[int, ...] | None, carried: Carried) -> None:
    """A position counted from the end of a prompt is another one in prompts of another length."""
    if not any(position < 0 for position in listed(edit.position) or ()):
        return
    even = len(set(carried.lengths)) == 1
    if came_from != carried.lengths and not (came_from is None and even):
        there = "prompts of unknown lengths" if came_from is None else f"prompts of {list(came_from)} tokens"
        raise ValueError(
            f"position {edit.position} of the edit at {edit.site} counts from the end of prompts of"
            f" {list(carried.lengths)} tokens, its value comes from {there}: give the values at the edited"
            " positions, (prompts, positions, width)"
        )


def check_edits(model: Model, variants: Sequence[Variant]) -> None:
    """Make sure that a sweep can make every edit.

    Raises:
        ValueError: a size that is no finite number, or a site that a sweep cannot write to.
    """
    for edit in (edit for variant in variants for edit in variant.edits):
        _check_outside(edit)
        check_attention(model, edit)


def _check_outside(edit: Edit) -> None:
    size = edit.scale if isinstance(edit, Noise) else edit.factor if isinstance(edit, Scale) else 0.0
    if not -float("inf") < size < float("inf"):
        raise ValueError(f"the edit at {edit.site} has the size {size}: write a finite number")
    if isinstance(edit, Noise) and edit.site in ("final_norm", "logits"):
        raise SiteError(f"noise at {edit.site} is not offered: add it to the last block's resid_post")
