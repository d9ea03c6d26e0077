"""What heads look at: numbers of each head's pattern, taken head by head while a block runs.

Shapes: B texts, H heads, T positions, q queries, s keys, n tokens of a random text that is read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regraft.core.progress import advance
from regraft.model.attention_patterns import attends, read_patterns
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.model.sites import SiteError


@dataclass(frozen=True)
class PatternReading:
    """A recording's tokens and places, as measures of a pattern see them."""

    ids_BT: Tensor
    distance_TT: Tensor
    regions: Mapping[str, Tensor]


Measure = Callable[[Tensor, PatternReading], Tensor]
"""From a head's weights (B, T, T) to a number for each query, (B, T)."""


def entropy(weights_BTT: Tensor, reading: PatternReading) -> Tensor:
    """Nats: 0 where one key is read, log(t + 1) where all are read alike."""
    return -torch.xlogy(weights_BTT, weights_BTT).sum(-1)


def distance(weights_BTT: Tensor, reading: PatternReading) -> Tensor:
    """Mean distance to what is read, in tokens."""
    return (weights_BTT * reading.distance_TT.abs()).sum(-1)


def first(weights_BTT: Tensor, reading: PatternReading) -> Tensor:
    """Share that falls on the first token."""
    return weights_BTT[..., 0]


def previous(weights_BTT: Tensor, reading: PatternReading) -> Tensor:
    """Share that falls on the token before."""
    return (weights_BTT * (reading.distance_TT == 1)).sum(-1)


def duplicate(weights_BTT: Tensor, reading: PatternReading) -> Tensor:
    """Share that falls on earlier tokens that are the same."""
    same_BTT = reading.ids_BT[:, :, None] == reading.ids_BT[:, None]
    return (weights_BTT * (same_BTT & (reading.distance_TT > 0))).sum(-1)


def induction(weights_BTT: Tensor, reading: PatternReading) -> Tensor:
    """Share that falls on tokens right behind an earlier one that is the same (Olsson et al. 2022)."""
    same_BTT = reading.ids_BT[:, :, None] == reading.ids_BT[:, None]
    behind_BTT = torch.nn.functional.pad(same_BTT, (1, 0))[..., :-1]
    return (weights_BTT * (behind_BTT & (reading.distance_TT >= 0))).sum(-1)


MEASURES: dict[str, Measure] = {
    "entropy": entropy,
    "distance": distance,
    "first": first,
    "previous": previous,
    "duplicate": duplicate,
    "induction": induction,
}


def measured_patterns(
    recording: Recording, measures: Mapping[str, Measure], whole: Mapping[int, set[int]] | None = None
) -> tuple[dict[str, np.ndarray], dict[tuple[int, int], np.ndarray], dict[str, str]]:
    """Every measure of every head, for each query: no pattern is kept but those that are asked for.

    Args:
        whole: heads by block whose patterns of the first text are wanted.

    Returns:
        For each measure and region (L, H, B, T), NaN where a block has no such head; the patterns (T, T) by
        block and head; and why a block has none.
    """
    blocks = recording.model.main_blocks
    reading = _reading(recording)
    names = [*measures, *(f"region {name}" for name in reading.regions)]
    rows: list[list[Tensor]] = []
    kept: dict[tuple[int, int], np.ndarray] = {}
    why: dict[str, str] = {}
    for number, block in enumerate(blocks):
        found: list[Tensor] = []

        def hear(
            head: int, weights_BTT: Tensor, index: int = block.index, found: list[Tensor] = found
        ) -> None:
            if head < len(found):  # differential attention weighs the same patterns twice
                return
            numbers = [measure(weights_BTT, reading) for measure in measures.values()]
            numbers += [(weights_BTT * mask_BT[:, None]).sum(-1) for mask_BT in reading.regions.values()]
            found.append(torch.stack(numbers).cpu())
            if whole is not None and head in whole.get(index, ()):
                kept[index, head] = weights_BTT[0].cpu().numpy()

        try:
            read_patterns(recording, block.index, hear)
        except SiteError as error:
            why[block.address] = str(error)
        rows.append(found)
        advance("blocks", number + 1, len(blocks))
    return dict(zip(names, _joined(rows, recording, len(names)), strict=True)), kept, why


def _reading(recording: Recording) -> PatternReading:
    places = torch.arange(recording.positions, device=recording.ids_BT.device)
    told, regions = recording.regions, {}
    if told is not None:
        regions = {name: told.number_BT == number for number, name in enumerate(("outside", *told.names))}
    return PatternReading(recording.ids_BT, places[:, None] - places[None], regions)


def _joined(rows: list[list[Tensor]], recording: Recording, names: int) -> np.ndarray:
    """(names, L, H, B, T), NaN where there is no head."""
    most = max([len(row) for row in rows] + [1])
    full = np.full((names, len(rows), most, *recording.ids_BT.shape), np.nan, np.float32)
    for number, row in enumerate(rows):
        if row:
            full[:, number, : len(row)] = torch.stack(row, dim=1).numpy()
    return full


def mean_over_queries(values_LHBT: np.ndarray, counted_BT: np.ndarray) -> np.ndarray:
    """The mean over the queries that count, (L, H)."""
    return values_LHBT[:, :, counted_BT].mean(-1)


def twice(model: Model, length: int, texts: int, seed: int) -> list[list[int]]:
    """Random tokens, read twice: what stands in the second half was there n tokens before."""
    generator = torch.Generator().manual_seed(seed)
    low = min(5, model.table_rows - 1)  # special tokens stand first in most vocabularies
    rows_Bn = torch.randint(low, model.table_rows, (texts, length), generator=generator)
    return torch.cat([rows_Bn, rows_Bn], dim=1).tolist()


def forms_patterns(model: Model) -> bool:
    """Whether any block of the stack that writes does."""
    return any(attends(model, block.index) for block in model.main_blocks)
