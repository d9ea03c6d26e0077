"""An edit of who reads whom: queries that may not read some keys, in one block.

Shapes: n rows (variants), B prompts, R = n x B, q queries and s keys of one call, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.core.structure import Path
from regraft.model.attention_mask import mask_argument, reads_ahead, with_edges_cut
from regraft.model.block_call import BlockCall
from regraft.model.model import Model
from regraft.model.sites import SiteError, parse_site
from regraft.sweeps.batch_layout import numbered
from regraft.sweeps.variants import Edit, Position, plain

PATTERN, OUTPUT = "pattern", "attn_out"
"""The site of weights, and the one that cut edges change: what the attention adds to the stream."""


@dataclass(frozen=True, eq=False)
class CutAttention(Edit):
    """Forbid queries to read keys in one block, whichever head reads: edges of its attention are cut.

    Queries stand at `position`, keys at `keys`, numbers as those of any edit; none means all. A query always
    keeps its own position unless `own` is true. The model's code is not touched: its block is called with
    another mask. (Attention knockout: Geva et al. 2023, arXiv:2304.14767.)

    Examples:
        >>> clean = model.record("The capital of France is", " Paris")
        >>> cut = [regraft.CutAttention(b, position=-1, keys=3) for b in range(12)]
        >>> regraft.sweep(clean, regraft.Variant(cut), regraft.loss()).values["loss"].shape  # nats
        torch.Size([1, 1])
    """

    keys: Position = None
    own: bool = False

    def __init__(self, block: int | str, position: Position = None, keys: Position = None, own: bool = False):
        object.__setattr__(self, "site", f"{block}.{OUTPUT}")
        object.__setattr__(self, "position", position)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "own", own)

    @property
    def key(self) -> tuple[Any, ...]:
        """Two of one key do the same."""
        return ("CutAttention", self.site, plain(self.position), plain(self.keys), self.own)

    @property
    def reads_beside(self) -> bool:
        """True: it changes what the block computes, which no correction of its output tells."""
        return True

    @property
    def named(self) -> tuple[Position, ...]:
        """Queries, then keys."""
        return (self.position, self.keys)


def check_attention(model: Model, edit: Edit) -> None:
    """Make sure that an edit of attention's weights cuts edges, and that the block's mask can be told so.

    Raises:
        SiteError: it writes to a pattern, or the mask is no argument of the block.
    """
    site = parse_site(edit.site, model.parts)
    if isinstance(edit, CutAttention):
        assert site.block is not None
        mask_argument(model, site.block)
    elif site.name == PATTERN:
        raise SiteError(
            f"{edit.site} can be read but not written: the model mixes values before it returns its pattern;"
            " CutAttention forbids queries to read keys"
        )


def cut_edges(edit: CutAttention, lengths: Sequence[int], queries: range, positions: int) -> Tensor:
    """Which edges an edit cuts in a call: (B, q, s), true where it does.

    Args:
        lengths: real tokens of each prompt.
        queries: the positions that the call's queries stand at; keys are all `positions`.

    Raises:
        ValueError: a position outside the prompt.
    """
    every = [list(range(positions))] * len(lengths)
    at = [numbered(edit, position, lengths) or every for position in edit.named]
    cut_BTT = torch.zeros(len(lengths), positions, positions, dtype=torch.bool)
    for prompt, (rows, columns) in enumerate(zip(*at, strict=True)):
        cut_BTT[prompt, torch.tensor(rows)[:, None], torch.tensor(columns)[None]] = True
    if not edit.own:
        cut_BTT &= ~torch.eye(positions, dtype=torch.bool)
    return cut_BTT[:, queries.start : queries.stop]


def masks_of(
    model: Model,
    block: int,
    call: BlockCall,
    edits: Sequence[Sequence[Edit]],
    lengths: Sequence[int],
    queries: range,
    positions: int,
) -> dict[Path, Tensor]:
    """The argument that takes the place of a block's mask in one call of many rows.

    Args:
        edits: those inside the block, row by row.
        queries: the positions that the rows carry.
    """
    device = model.device
    nothing = torch.zeros(len(lengths), len(queries), positions, dtype=torch.bool)
    cut = [
        sum((cut_edges(e, lengths, queries, positions) for e in row if isinstance(e, CutAttention)), nothing)
        for row in edits
    ]
    return with_edges_cut(
        call, mask_argument(model, block), torch.cat(cut).to(device), causal=not reads_ahead(model, block)
    )
