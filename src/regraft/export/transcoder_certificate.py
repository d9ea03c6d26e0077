"""What transcoder adapters recover of what tuning changed, measured on text that they were not trained on.

Shapes: B sequences, T tokens, R predictions that count, V vocabulary, D width, F features, L blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.progress import advance
from regraft.core.tolerance import largest_difference
from regraft.data.records import PADDING, Records
from regraft.data.windows import Windows
from regraft.model.model import Model
from regraft.modules.backbone import mlps_of
from regraft.modules.placement import streams
from regraft.modules.transcoder import Transcoders, beside
from regraft.sweeps.provenance import provenance
from regraft.training.tasks.embedding_task import divergence
from regraft.training.tasks.transcoder_task import inputs_of, predicts_counted, split_batch

BATCH = 8
"""Sequences measured together."""
MODELS = ("base", "target", "hybrid", "adapted")
"""What is compared, in the order of the result."""
UNITS = {
    "loss": "nats per token that counts",
    "kl": "nats per token from the target",
    "top1": "share of tokens whose most probable next one is the target's",
    "recovered": "share of the target's gain over the hybrid",
    "recovered_from_base": "share of the target's gain over the base",
    "nmse": "squared error of the stream over the target's, pooled over tokens",
    "nmse_by_state": "mean over tokens of the squared error over the target's square",
    "active": "features above zero, of a token",
    "never": "share of features that no token raised",
    "tokens": "predictions that count",
}


@dataclass(frozen=True)
class Standing:
    """The four models that are compared, and the adapters: `carrier` is what they stand in."""

    base: Model
    target: Model
    hybrid: Model
    carrier: Model
    graft: Transcoders

    def named(self) -> Iterator[tuple[str, Model, AbstractContextManager[None]]]:
        """Each model by name, with what must be entered to run it."""
        mlps = mlps_of(self.carrier)
        yield "base", self.base, nullcontext()
        yield "hybrid", self.hybrid, nullcontext()
        yield "adapted", self.carrier, beside(self.carrier.hf, mlps, self.graft)


@dataclass
class _DomainSums:
    """Sums over the tokens of one domain."""

    loss: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MODELS, 0.0))
    kl: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MODELS, 0.0))
    top1: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MODELS, 0.0))
    tokens: int = 0
    real: int = 0
    errors: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ratios: np.ndarray = field(default_factory=lambda: np.zeros(0))
    active: np.ndarray = field(default_factory=lambda: np.zeros(0))


def certify_transcoders(
    standing: Standing, domains: Mapping[str, Windows | Records], most: int = 64
) -> xr.Dataset:
    """Losses of base, target, hybrid and adapted model, the share of the gain that is recovered, the
    divergence from the target, the stream's error by depth, and how many features are active.

    Args:
        standing: the models and the adapters.
        domains: text that was not trained on, by name.
        most: sequences of each domain that are read.

    Raises:
        ValueError: no domain is given, or one has no token that counts.
    """
    if not domains:
        raise ValueError("there is no text to measure on: name at least one domain")
    began, depth = time.perf_counter(), len(standing.carrier.main_blocks)
    fired_LF = torch.zeros(depth, standing.graft.shape.features, dtype=torch.bool)
    found: list[_DomainSums] = []
    for name, text in domains.items():
        sums = _DomainSums(errors=np.zeros(depth + 1), sizes=np.zeros(depth + 1), ratios=np.zeros(depth + 1),
                     active=np.zeros(depth))  # fmt: skip
        total = min(most, len(text))
        for start in range(0, total, BATCH):
            batch = text.rows(range(start, min(start + BATCH, total))).to(standing.carrier.device)
            _add(standing, batch, sums, fired_LF)
            advance(f"measuring {name}", min(start + BATCH, total), total)
        if not sums.tokens:
            raise ValueError(f"the text {name} has no token whose prediction counts")
        found.append(sums)
    data = _dataset(list(domains), found, fired_LF)
    data["off_difference"] = ((), _off_difference(standing, next(iter(domains.values()))), {
        "units": "largest difference of logits, adapters off and none at all, of the largest"})  # fmt: skip
    shape = standing.graft.shape
    data.attrs = {
        **provenance(standing.carrier), "experiment": "transcoder", "features": shape.features,
        "parameters": sum(p.numel() for p in standing.graft.parameters()),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    return data


@torch.no_grad()
def _add(standing: Standing, batch: Tensor, sums: _DomainSums, fired_LF: Tensor) -> None:
    ids_BT, kind_BT = split_batch(batch)
    inputs, counted_BT, real_BT = inputs_of(ids_BT, kind_BT), predicts_counted(kind_BT), kind_BT > PADDING
    next_R = ids_BT.roll(-1, 1)[counted_BT]
    depths = range(len(standing.carrier.main_blocks) + 1)

    def score(name: str, logp_RV: Tensor, wanted_RV: Tensor) -> None:
        sums.loss[name] -= float(logp_RV.gather(-1, next_R[:, None]).double().sum())
        sums.kl[name] += float(divergence(logp_RV, wanted_RV)) * len(next_R)
        sums.top1[name] += float((logp_RV.argmax(-1) == wanted_RV.argmax(-1)).sum())

    with streams(standing.target, list(depths)) as taught:
        wanted_RV = _log_probabilities(standing.target, inputs)[counted_BT]
    score("target", wanted_RV, wanted_RV)
    for name, model, placed in standing.named():
        listens = streams(model, list(depths)) if name == "adapted" else nullcontext({})
        with placed, standing.graft.hearing() as heard, listens as learnt:
            logp_RV = _log_probabilities(model, inputs)[counted_BT]
        score(name, logp_RV, wanted_RV)
        if name == "adapted":
            for depth in depths:
                _add_error(sums, depth, learnt[depth][real_BT], taught[depth][real_BT])
            for block, own in enumerate(heard):
                above_NF = own[0][1][real_BT] > 0
                sums.active[block] += float(above_NF.sum())
                fired_LF[block] |= above_NF.any(0).cpu()
    sums.tokens += len(next_R)
    sums.real += int(real_BT.sum())


def _add_error(sums: _DomainSums, depth: int, found_ND: Tensor, wanted_ND: Tensor) -> None:
    error_N = (found_ND.float() - wanted_ND.float()).pow(2).sum(-1)
    size_N = wanted_ND.float().pow(2).sum(-1)
    sums.errors[depth] += float(error_N.double().sum())
    sums.sizes[depth] += float(size_N.double().sum())
    sums.ratios[depth] += float((error_N / (size_N + 1e-8)).double().sum())


def _log_probabilities(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    return model.run(**inputs).logits.float().log_softmax(-1)


def _off_difference(standing: Standing, text: Windows | Records) -> float:
    """How far the logits of adapters that are switched off lie from those of the model without any."""
    ids_BT, kind_BT = split_batch(text.rows(range(1)).to(standing.carrier.device))
    inputs = inputs_of(ids_BT, kind_BT)
    with torch.no_grad():
        plain = standing.carrier.run(**inputs).logits
        placed = beside(standing.carrier.hf, mlps_of(standing.carrier), standing.graft)
        with placed, standing.graft.switch(strength=0.0):
            off = standing.carrier.run(**inputs).logits
    return largest_difference(off, plain) / float(plain.abs().max())


def _dataset(names: list[str], found: list[_DomainSums], fired_LF: Tensor) -> xr.Dataset:
    def by_model(kind: str) -> np.ndarray:
        return np.array([[getattr(s, kind)[m] / s.tokens for m in MODELS] for s in found])

    loss, at = by_model("loss"), {name: place for place, name in enumerate(MODELS)}
    values = {
        "loss": (("domain", "model"), loss),
        "kl": (("domain", "model"), by_model("kl")),
        "top1": (("domain", "model"), by_model("top1")),
        "recovered": ("domain", _recovered(loss, at["hybrid"], at)),
        "recovered_from_base": ("domain", _recovered(loss, at["base"], at)),
        "nmse": (("domain", "depth"), np.array([s.errors / s.sizes for s in found])),
        "nmse_by_state": (("domain", "depth"), np.array([s.ratios / s.real for s in found])),
        "active": (("domain", "block"), np.array([s.active / s.real for s in found])),
        "never": ("block", 1.0 - fired_LF.double().mean(1).numpy()),
        "tokens": ("domain", np.array([s.tokens for s in found])),
    }
    coordinates = {
        "domain": names, "model": list(MODELS), "depth": range(len(fired_LF) + 1),
        "block": [str(b) for b in range(len(fired_LF))],
    }  # fmt: skip
    data = xr.Dataset(values, coords=coordinates)
    for name, units in UNITS.items():
        data[name].attrs["units"] = units
    return data


def _recovered(loss: np.ndarray, start: int, at: Mapping[str, int]) -> np.ndarray:
    """(L_start - L_adapted) / (L_start - L_target); NaN where the target is no better."""
    gain = loss[:, start] - loss[:, at["target"]]
    return np.where(gain > 0, (loss[:, start] - loss[:, at["adapted"]]) / np.where(gain > 0, gain, 1), np.nan)
