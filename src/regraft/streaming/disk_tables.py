"""Tables of a vocabulary that stay on disk: embedding rows read by number, the head in pieces.

Shapes: N tokens, D width, V vocabulary, v rows of one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regraft.streaming.pages import sparse_table
from regraft.streaming.residency import CHUNK, Ceiling
from regraft.streaming.shards import Shards

KEPT_ROWS = 1 << 14
"""Rows of an embedding that stay once they were read; behind that the table begins anew."""


class RowsOnDemand:
    """An embedding's table of which only the rows that were asked for take memory.

    The module computes as always, on a table of its full shape: pages of it that nobody wrote to do not
    exist. Outside of its calls the parameter is empty, so that nobody takes unread rows for zeros.
    """

    def __init__(self, module: nn.Embedding, shards: Shards, name: str, dtype: torch.dtype):
        self.module, self.shards, self.name = module, shards, name
        self.empty = module._parameters["weight"]
        self.shape, self.dtype = (module.num_embeddings, module.embedding_dim), dtype
        self.known: set[int] = set()
        self._begin()
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._behind, always_call=True)

    def _begin(self) -> None:
        self.table_VD = sparse_table(self.shape, self.dtype)
        self.known.clear()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        wanted = set(args[0].unique().tolist()) - self.known
        if len(self.known) + len(wanted) > KEPT_ROWS:
            self._begin()
            wanted = set(args[0].unique().tolist())
        for number in sorted(wanted):
            if not 0 <= number < self.shape[0]:
                raise IndexError(f"token {number} is outside the table of {self.shape[0]:,} rows")
            self.table_VD[number].copy_(self.shards.rows(self.name, number, number + 1)[0])
        self.known |= wanted
        module._parameters["weight"] = nn.Parameter(self.table_VD, requires_grad=False)

    def _behind(self, module: nn.Module, args: tuple[Any, ...], outcome: Any) -> None:
        module._parameters["weight"] = self.empty


class HeadInPieces:
    """What an output matrix computes, piece by piece; put over the module's own forward.

    `rows` gives the rows from one number to another: of the file, which every call then reads once, or of the
    matrix in memory, of which some kernels would make a whole copy in an order of their own.
    """

    def __init__(
        self, module: nn.Linear, rows: Callable[[int, int], Tensor], dtype: torch.dtype, ceiling: Ceiling
    ):
        self.module, self.rows, self.dtype, self.ceiling = module, rows, dtype, ceiling
        self.step = max(1, CHUNK // (module.in_features * dtype.itemsize))

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Scores (N, V)."""
        self.ceiling.mind()
        count = self.module.out_features
        found = x_ND.new_empty((*x_ND.shape[:-1], count))
        for begin in range(0, count, self.step):
            end = min(begin + self.step, count)
            piece_vD = self.rows(begin, end).to(self.dtype).to(x_ND.device)
            found[..., begin:end] = nn.functional.linear(x_ND, piece_vD)
        return found if self.module.bias is None else found + self.module.bias

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[[Tensor], Tensor]:
        return self
