"""One pass over text that tells of every feature where it is active, how often, and how strongly.

Shapes: B sequences, T tokens, N real tokens of a batch, F features, L blocks, k kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from regraft.core.progress import advance
from regraft.data.exchanges import CLOSES, OPENS
from regraft.data.records import PADDING, Records
from regraft.data.windows import Windows
from regraft.features.feature_sources import FeatureSource
from regraft.features.running_histogram import RunningHistogram
from regraft.features.running_top import RunningSample, RunningTop
from regraft.model.model import Model
from regraft.training.tasks.transcoder_task import inputs_of, split_batch

REGIONS = ("question", "think start", "thinking", "answer")
"""Parts of a record."""
BATCH = 16
"""Sequences read together."""


@dataclass
class BlockFeatures:
    """What was found of one block's features."""

    top: RunningTop
    sample: RunningSample
    counts_FDR: np.ndarray
    histogram: RunningHistogram

    @property
    def largest_F(self) -> np.ndarray:
        """The largest value of every feature."""
        return self.histogram.largest_F


@dataclass
class FeaturePass:
    """What one pass found: for each block its features; the ids of all tokens that were read, in the
    order of their places."""

    blocks: list[BlockFeatures]
    domains: list[str]
    ids: list[np.ndarray] = field(default_factory=list)
    tokens_DR: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    @property
    def tokens(self) -> int:
        """Tokens that were read."""
        return int(self.tokens_DR.sum())

    def frequency_F(self, block: int) -> np.ndarray:
        """Share of the tokens at which each feature of a block is above zero."""
        return self.blocks[block].counts_FDR.sum((1, 2)) / max(self.tokens, 1)


@torch.no_grad()
def feature_pass(
    model: Model,
    source: FeatureSource,
    domains: Mapping[str, Windows | Records],
    most: int,
    k: int = 20,
    seed: int = 0,
) -> FeaturePass:
    """Read text with the adapters in place and keep, for every feature, its largest and some of its other
    activations, in memory that hangs on the number of features alone.

    Args:
        model: what the adapters stand in.
        source: whose features.
        domains: text by name.
        most: sequences of each domain.
        k: activations kept of each kind.

    Raises:
        ValueError: no domain is given, or none has a token.
    """
    count, features = len(domains), source.features
    found = FeaturePass(
        [
            BlockFeatures(
                RunningTop(features, k), RunningSample(features, k, seed + block),
                np.zeros((features, count, len(REGIONS)), np.int64),
                RunningHistogram(features),
            )
            for block in range(source.blocks)
        ],
        list(domains),
    )  # fmt: skip
    found.tokens_DR = np.zeros((count, len(REGIONS)), np.int64)
    row = 0
    for domain, (name, text) in enumerate(domains.items()):
        total = min(most, len(text))
        for start in range(0, total, BATCH):
            batch = text.rows(range(start, min(start + BATCH, total))).to(model.device)
            _read(model, source, batch, found, domain, row)
            row += len(batch)
            advance(f"reading {name}", min(start + BATCH, total), total)
    if not found.tokens:
        raise ValueError("the text holds no token: there is nothing to look for features in")
    return found


def _read(
    model: Model, source: FeatureSource, batch: Tensor, found: FeaturePass, domain: int, row: int
) -> None:
    ids_BT, kind_BT = split_batch(batch)
    real_BT, first = kind_BT > PADDING, found.tokens
    values = source.values(inputs_of(ids_BT, kind_BT))
    region_BT = torch.stack([regions_of(model, ids) for ids in ids_BT])
    for number, one in enumerate(values):
        if not bool(one[real_BT].isfinite().all()):
            raise ValueError(
                f"features of block {number} are no numbers at some token of sequences {row} to"
                f" {row + len(batch) - 1}: open the models in a wider type"
            )
    regions = region_BT[real_BT.cpu()].numpy()
    rows_N = (torch.arange(len(batch))[:, None] + row).expand_as(real_BT)[real_BT.cpu()]
    for block, values_BTF in zip(found.blocks, values, strict=True):
        values_NF = values_BTF[real_BT].float().cpu()
        block.top.add(values_NF, values_NF, rows_N, first)
        block.sample.sample(values_NF, rows_N, first)
        _count(block, values_NF.numpy(), regions, domain)
    found.ids.append(ids_BT[real_BT].cpu().numpy().astype(np.int32))
    found.tokens_DR[domain] += np.bincount(regions, minlength=len(REGIONS))


def _count(block: BlockFeatures, values_NF: np.ndarray, regions: np.ndarray, domain: int) -> None:
    active_NF = values_NF > 0
    for region in np.unique(regions):
        block.counts_FDR[:, domain, region] += active_NF[regions == region].sum(0)
    block.histogram.add(values_NF)


def regions_of(model: Model, ids: Tensor) -> Tensor:
    """Which part of a record each token belongs to, (T,): by the text of the tokens up to each, so that a
    marker may be cut in any way. Without a marker all of it is question."""
    text, places = "", []
    for token in ids.tolist():
        text += model.token_text(token)
        places.append(len(text))
    opens = text.find(OPENS)
    closes = text.find(CLOSES, opens) if opens >= 0 else -1
    found = []
    begin = 0
    for end in places:
        if opens < 0 or end <= opens:
            found.append(0)
        elif begin < opens + len(OPENS):
            found.append(1)
        elif closes < 0 or begin < closes:
            found.append(2)
        else:
            found.append(3)
        begin = end
    return torch.tensor(found)
