"""Where the columns of a call of the live model stand in each prompt's text.

Shapes: B prompts, T columns of one call, c of them at a tap, k positions of an edit, W features.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from regraft.sweeps.batch_layout import numbered
from regraft.sweeps.variants import NEW, Edit, Position


class Place:
    """Where the columns of the call at hand stand in each prompt's text: position 0 is its first token.

    The prompt is what the first call reads; what later calls add to it is new. Without a cache every call
    reads everything again: one that begins with all that the call before it read goes on from there.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.read_BT: Tensor | None = None
        self.lengths_B = self.pads_B = torch.zeros(0, dtype=torch.long)
        self.at_BT = torch.zeros(0, 0, dtype=torch.long)

    def hears(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in the arguments of a call."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        ids_BT, embeds = given.get(f"{self.prefix}input_ids"), given.get(f"{self.prefix}inputs_embeds")
        shown = embeds if ids_BT is None else ids_BT
        if shown is None:
            raise ValueError(
                f"{type(module).__name__} was called without {self.prefix}input_ids, so nothing tells which"
                " positions an edit means"
            )
        rows, columns = shown.shape[:2]
        mask = given.get(f"{self.prefix}attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= columns else None
        past = given.get("past_key_values")
        start = past.get_seq_length() if isinstance(past, Cache) else 0
        start = mask.shape[1] - columns if mask is not None else start
        if not start and not self._goes_on(ids_BT):
            real = torch.ones(rows, columns, dtype=torch.long) if mask is None else mask.long().cpu()
            self.pads_B, self.lengths_B = real.argmax(1), real.sum(1)
        if not start:
            self.read_BT = ids_BT
        self.at_BT = torch.arange(start, start + columns) - self.pads_B[:, None]

    def _goes_on(self, ids_BT: Tensor | None) -> bool:
        before = self.read_BT
        if ids_BT is None or before is None or ids_BT.shape[0] != before.shape[0]:
            return False
        count = before.shape[1]
        return ids_BT.shape[1] > count and torch.equal(ids_BT[:, :count], before)

    def wanted(self, edit: Edit) -> Tensor:
        """Which columns an edit means, (B, T), true and false."""
        return self.meant(edit, edit.position, self.at_BT)

    def meant(self, edit: Edit, position: Position, at_BT: Tensor) -> Tensor:
        """Which of some columns, told by where they stand, an edit means by a position, (B, T)."""
        if position is None:
            return at_BT >= 0
        if isinstance(position, str):
            new = at_BT >= self.lengths_B[:, None]
            return new if position == NEW else (at_BT >= 0) & ~new
        return (at_BT[:, :, None] == self.listed(edit, position)[:, None]).any(-1)

    def listed(self, edit: Edit, position: Position) -> Tensor:
        """The positions that an edit names in each prompt, (B, k)."""
        found = numbered(edit, position, self.lengths_B.tolist())
        assert found is not None
        wrong = next((p for row in found for p in row if p < 0), None)
        if wrong is not None:
            raise ValueError(
                f"position {position} of the edit at {edit.site} is outside the prompt of"
                f" {int(self.lengths_B.min())} tokens"
            )
        return torch.tensor(found)

    def spread(self, edit: Edit, value: Tensor, columns: int) -> Tensor:
        """An edit's value for every column at hand, to be broadcast over (B, c, W).

        Raises:
            ValueError: it is neither one number or vector, nor one for each position that the edit names.
        """
        if value.dim() <= 1:
            return value
        named = (
            None
            if edit.position is None or isinstance(edit.position, str)
            else self.listed(edit, edit.position)
        )
        rows = len(self.lengths_B)
        value = value[None] if value.dim() == 2 else value
        if named is None or value.shape[1] not in (1, named.shape[1]) or value.shape[0] not in (1, rows):
            count = "" if named is None else f", or ({named.shape[1]}, width) for its positions"
            raise ValueError(
                f"the value of the edit at {edit.site} has shape {tuple(value.shape)}: while text is written,"
                f" give (width,){count}"
            )
        value = value.expand(rows, named.shape[1], -1)
        which = (self.at_BT[:, -columns:, None] == named[:, None]).long().argmax(-1)
        return value[torch.arange(rows)[:, None], which.to(value.device)]
