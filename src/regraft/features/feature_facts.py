"""What is told of a feature: where it is active, in words and numbers, what it pushes, which others are like
it.

Shapes: F features, D width, V vocabulary, L blocks, k kept, W tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.features.feature_pass import REGIONS, BlockFeatures, FeaturePass
from regraft.features.feature_sources import FeatureSource
from regraft.features.running_top import BEFORE
from regraft.model.model import Model

PUSHED, NEAREST, SHOWN = 10, 5, 5
"""Tokens pushed up and down, features nearest to one, and examples shown of each quantile."""
QUANTILES = 4
"""Parts of the random sample, from strong to weak."""
UNITS = {
    "frequency": "share of tokens above zero",
    "largest": "largest value",
    "share_by_region": "share of the tokens above zero that stand in a region",
    "share_by_domain": "share of the tokens above zero that stand in a domain",
    "length": "length of the decoder's column",
}


class Facts:
    """What a pass found, told feature by feature."""

    def __init__(self, model: Model, source: FeatureSource, found: FeaturePass):
        self.model, self.source, self.found = model, source, found
        self.ids = np.concatenate(found.ids)
        self.words: dict[int, str] = {}
        self.blank = model.record([[0, 1, 2, 3]], attention_mask="all")

    def table(self) -> xr.Dataset:
        """Numbers of all features: how often they are above zero, where, how strongly, how long a column."""
        blocks = range(self.source.blocks)
        counts = np.stack([block.counts_FDR for block in self.found.blocks])
        active = np.maximum(counts.sum((2, 3), keepdims=True), 1)
        values = {
            "frequency": np.stack([self.found.frequency_F(block) for block in blocks]),
            "largest": np.stack([block.largest_F for block in self.found.blocks]),
            "length": np.stack([self.source.columns(block).norm(dim=1).cpu() for block in blocks]),
        }
        shares = {
            "share_by_region": (counts.sum(2) / active[..., 0], "region"),
            "share_by_domain": (counts.sum(3) / active[..., 0], "domain"),
        }
        data = xr.Dataset(
            {name: (("block", "feature"), value) for name, value in values.items()}
            | {name: (("block", "feature", dim), value) for name, (value, dim) in shares.items()},
            coords={
                "block": [str(b) for b in blocks], "feature": range(self.source.features),
                "region": list(REGIONS), "domain": self.found.domains,
            },
        )  # fmt: skip
        for name, units in UNITS.items():
            data[name].attrs["units"] = units
        data["tokens"] = (("domain", "region"), self.found.tokens_DR, {"units": "tokens read"})
        return data

    def of_block(self, number: int) -> Iterator[dict[str, Any]]:
        """Every feature of a block that was ever above zero, in the layout of circuit-tracer's feature files,
        with a few entries more (`share_by_region`, `share_by_domain`, `nearest`)."""
        block, columns_FD = self.found.blocks[number], self.source.columns(number)
        up, down = self.pushed(columns_FD)
        near, likeness = nearest(columns_FD)
        frequency = self.found.frequency_F(number)
        for feature in np.nonzero(block.largest_F > 0)[0].tolist():
            counts_DR = block.counts_FDR[feature]
            total = max(int(counts_DR.sum()), 1)
            examples, bounds = self._examples(block, feature)
            yield {
                "transcoder_id": f"{self.source.features} features beside block {number}",
                "index": feature,
                "examples_quantiles": examples,
                "top_logits": [self.word(int(t)) for t in up[feature]],
                "bottom_logits": [self.word(int(t)) for t in down[feature]],
                "act_min": 0.0,
                "act_max": round(float(block.largest_F[feature]), 4),
                "quantile_values": bounds,
                "histogram": block.histogram.of(feature).tolist(),
                "activation_frequency": float(frequency[feature]),
                "share_by_region": dict(
                    zip(REGIONS, (counts_DR.sum(0) / total).round(4).tolist(), strict=True)
                ),
                "share_by_domain": dict(
                    zip(self.found.domains, (counts_DR.sum(1) / total).round(4).tolist(), strict=True)
                ),
                "nearest": [
                    [int(other), round(float(likeness[feature, place]), 3)]
                    for place, other in enumerate(near[feature])
                ],
            }

    def pushed(self, columns_FD: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The tokens (F, PUSHED) whose scores what features write raises and lowers most, through the model's
        own final norm and head alone."""
        columns_FD = columns_FD.to(self.model.dtype)
        floor_V = self.blank.head(torch.zeros_like(columns_FD[None, :1]))[0, 0].float()
        up, down = [], []
        for some in columns_FD.split(256):
            scores_fV = self.blank.head(some[:, None])[:, 0].float() - floor_V
            up.append(scores_fV.topk(PUSHED).indices.cpu().numpy())
            down.append((-scores_fV).topk(PUSHED).indices.cpu().numpy())
        return np.concatenate(up), np.concatenate(down)

    def _examples(self, block: BlockFeatures, feature: int) -> tuple[list[dict[str, Any]], list[float]]:
        """The largest activations, then the random sample in quantiles, each with the tokens around."""
        found = [{"quantile_name": "Top activations", "examples": self._told(
            block.top.places_Fk[feature], block.top.windows_FkW[feature])}]  # fmt: skip
        places, windows = block.sample.places_Fk[feature], block.sample.windows_FkW[feature]
        real = places >= 0
        places, windows = places[real], windows[real]
        order = windows[:, BEFORE].argsort(descending=True)
        bounds = [float(block.largest_F[feature])]
        for number, some in enumerate(np.array_split(order.numpy(), QUANTILES)):
            if len(some):
                told = self._told(places[some][:SHOWN], windows[some][:SHOWN])
                found.append({"quantile_name": f"Subsample interval {number}", "examples": told})
                bounds.append(round(float(windows[some][:, BEFORE].min()), 4))
        return found, bounds

    def word(self, token: int) -> str:
        """How a token reads, asked once of the tokenizer."""
        if token not in self.words:
            self.words[token] = self.model.token_text(token)
        return self.words[token]

    def _told(self, places_k: Tensor, windows_kW: Tensor) -> list[dict[str, Any]]:
        told = []
        for place, window_W in zip(places_k.tolist(), windows_kW.tolist(), strict=True):
            if place < 0:
                continue
            inside = [i for i, value in enumerate(window_W) if not math.isnan(value)]
            at = [place + offset - BEFORE for offset in inside]
            told.append({
                "tokens_acts_list": [round(window_W[i], 4) for i in inside],
                "train_token_ind": inside.index(BEFORE),
                "is_repeated_datapoint": False,
                "tokens": [self.word(int(self.ids[i])) for i in at],
            })  # fmt: skip
        return told


def nearest(columns_FD: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The features (F, NEAREST) of the same block that write most the same way, and the cosines."""
    columns_FD = torch.nn.functional.normalize(columns_FD, dim=1)
    cosine_FF = columns_FD @ columns_FD.T
    cosine_FF.fill_diagonal_(-2.0)
    top = cosine_FF.topk(min(NEAREST, len(cosine_FF) - 1), dim=1)
    return top.indices.cpu().numpy(), top.values.cpu().numpy()
