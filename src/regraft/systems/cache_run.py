"""A prefix whose keys and values are changed, and the rest of the text run on it: only the suffix is
computed.

Shapes: N strategies, B texts, H query heads, G key heads, P tokens of the prefix, q tokens behind it (T =
P + q), K width of a head, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from regraft.core.structure import Path
from regraft.model.attention_mask import mask_argument, with_edges_cut
from regraft.model.attention_patterns import read_patterns, read_queries
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.sweeps.prefix_cache import Cone, PrefixCache, cone_of, why_no_cone
from regraft.systems.cache_past import KeptPast, Past, StrategyError
from regraft.systems.cache_strategies import Strategy, keep
from regraft.systems.rotation import Rotation, rotation_of

ROWS = 8
"""Strategies that go through a block together: their prefixes are held side by side."""


def check_caches(model: Model) -> None:
    """Make sure that a text can be run on keys and values of a prefix.

    Raises:
        ValueError: it cannot, with the reason.
    """
    if why := why_no_cone(model):
        raise ValueError(f"a cache of {model.name} cannot be changed: {why}")


def pasts_of(recording: Recording, length: int) -> list[Past]:
    """Keys and values of every block for the first tokens of a recording."""
    cone = cone_of(recording)
    return [_past(recording, cone, block.index, length) for block in recording.model.blocks]


def _past(recording: Recording, cone: Cone, block: int, length: int) -> Past:
    found = cone.past(block)
    assert found is not None
    keys, values = (one[:, :, :length] for one in found)

    @cache
    def attention(last: int | None) -> Tensor:
        """What queries of the prefix look at, added up."""
        first = 0 if last is None else max(0, length - last)
        rows: list[Tensor] = []
        read_patterns(recording, block, lambda head, w: rows.append(w[:, first:length, :length].sum(1)))
        return torch.stack(rows, dim=1)

    @cache
    def queries() -> Tensor:
        return read_queries(recording, block)[:, :, :length]

    def rotation() -> Rotation:
        return rotation_of(recording, block)

    return Past(keys, values, attention, block, len(recording.model.blocks), queries, rotation)


def kept_of(asked: Strategy, pasts: Sequence[Past], only: int | None = None) -> list[KeptPast]:
    """What a strategy keeps of every block; of one block alone, the others whole.

    Raises:
        StrategyError: it does not fit the model's heads or blocks.
    """
    whole = Strategy("whole", "whole")
    if asked.kind != "share":
        return [keep(asked if only in (None, past.block) else whole, past) for past in pasts]
    every = int(asked.number("every", 2))
    found = []
    for past in pasts:
        source = pasts[past.block - past.block % every]
        if source.keys_BGPK.shape != past.keys_BGPK.shape:
            raise StrategyError(
                f"{asked.words}: block {past.block} has other heads than block {source.block}"
            )
        if source is past or only not in (None, past.block):
            found.append(keep(whole, past))
        else:
            found.append(KeptPast(source.keys_BGPK, source.values_BGPK, None, ()))
    return found


@torch.no_grad()
def suffix_streams(recording: Recording, rows: Sequence[Sequence[KeptPast]], length: int) -> Tensor:
    """The stream that leaves the last block behind the prefix, for each row of what is kept: (N, B, q, D)."""
    return torch.cat([
        _together(recording, rows[first : first + ROWS], length) for first in range(0, len(rows), ROWS)
    ])  # fmt: skip


def _together(recording: Recording, rows: Sequence[Sequence[KeptPast]], length: int) -> Tensor:
    cone, count = cone_of(recording), len(rows)
    stream = recording.pre(0)[:, length:].repeat(count, 1, 1)
    with recording.model.held():
        for block in recording.model.blocks:
            kept = [row[block.index] for row in rows]
            past = PrefixCache(
                torch.cat([one.keys_BGPK for one in kept]),
                torch.cat([one.values_BGPK for one in kept]),
                rows=1,
            )
            given = _masks(recording, cone, block.index, kept, length)
            stream = cone.on_past(block.index, stream, count, length, past, given)
    return stream.unflatten(0, (count, -1))


def _masks(
    recording: Recording, cone: Cone, block: int, kept: Sequence[KeptPast], length: int
) -> dict[Path, Tensor] | None:
    """The mask of a call some of whose rows lack tokens of the prefix, head by head."""
    if all(one.stays_BGP is None for one in kept):
        return None
    model = recording.model
    gone = [
        torch.zeros(one.keys_BGPK.shape[:3], dtype=torch.bool, device=model.device)
        if one.stays_BGP is None
        else ~one.stays_BGP
        for one in kept
    ]
    gone_RGP = torch.cat(gone)
    heads = model.tap(f"{model.blocks[block].address}.z").heads
    queries = recording.positions - length
    cut_RHqs = torch.nn.functional.pad(
        gone_RGP.repeat_interleave(heads // gone_RGP.shape[1], dim=1)[:, :, None].expand(-1, -1, queries, -1),
        (0, queries),
    )
    return with_edges_cut(cone.call_from(block, length), mask_argument(model, block), cut_RHqs, causal=True)
