"""What a graft costs and saves, measured against the model that it came from; nothing is saved without it.

Shapes: B windows, T tokens, D width, V vocabulary, L depths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.data.token_bytes import TokenBytes
from regraft.data.token_groups import TokenSums
from regraft.data.windows import Windows
from regraft.export.noise_scale import SCALES, noise_quantities
from regraft.export.profile import measured_costs
from regraft.model.model import Model
from regraft.modules.placement import Swaps, all_placed, forward_inputs, logits_of, streams, written
from regraft.sweeps.provenance import provenance

BATCH, WORST, TOP = 4, 12, 5
"""Sequences measured together, tokens of the list of the worst, and the model's most probable tokens that are
looked for."""
MATCHED = (1, 5, 10)
"""Lengths of the lists of most probable tokens that are compared whole."""
NOISE_WINDOWS = 8
"""Sequences on which a graft is held against noise: five scales each read them again."""
PUBLISHED = "embedding-transplant studies (deformers)"
PARTS = ("bits_per_byte_before", "bits_per_byte_after", "kl", "top1", "top5")
UNITS = {
    "bits_per_byte_before": "bits per byte of text, the model as it was",
    "bits_per_byte_after": "bits per byte of text, with the graft",
    "kl": "nats per token from the model as it was",
    "top1": "share of tokens whose most probable next one is the same",
    "top5": f"share of the model's {TOP} most probable next tokens that are among the graft's",
}


def certify(
    model: Model,
    swaps: Swaps,
    domains: Mapping[str, Windows],
    table: TokenBytes,
    most: int = 64,
) -> xr.Dataset:
    """Measure one graft or several in their places on windows of text by domain.

    Args:
        model: an opened model.
        swaps: each part of the model with the graft that takes its place.
        domains: text that was not trained on, by name.
        table: the bytes of every token, for bits per byte.
        most: how many windows of each domain are read.

    Returns:
        The certificate: bits per byte, divergence in nats and agreement by domain, and costs.

    Raises:
        ValueError: no domain is given, or the model predicts no tokens.

    Examples:
        >>> import copy
        >>> from regraft.data.token_bytes import token_bytes
        >>> from regraft.data.windows import cut
        >>> from regraft.specimens import almanac
        >>> ids = numpy.array(model.tokenizer(" ".join(almanac.corpus(4_000, 7)))["input_ids"])
        >>> old, table = model.parts.embedding, token_bytes(model.tokenizer, model.table_rows)
        >>> swaps, domains = [(old, copy.deepcopy(old))], {"almanac": cut(ids, 24)}
        >>> data = regraft.certify(model, swaps, domains, table, most=4)
        >>> float(data.top1[0])  # the part itself changes no first token
        1.0
    """
    if not domains:
        raise ValueError("there is no text to certify on: name at least one domain")
    if model.parts.head is None:
        raise ValueError(f"{model.name} has no output matrix, so there are no predictions to compare")
    began = time.perf_counter()
    sums = _Sums.empty(len(domains), len(model.parts.stacks[-1].blocks) + 1)
    tokens = TokenSums(len(table))
    worst: list[tuple[float, str, str, str]] = []
    lengths_V = torch.tensor([len(content) for content in table.bytes_V], dtype=torch.float64)
    for row, (name, windows) in enumerate(domains.items()):
        total = min(most, len(windows))
        for start in range(0, total, BATCH):
            ids_BT = windows.rows(range(start, min(start + BATCH, total))).to(model.device)
            before, after, taught, learnt = _both(model, swaps, ids_BT, sums.depths)
            written_BT = written(model, ids_BT)
            sums.predictions[row] += _measured(before, after, written_BT)
            sums.matches[row] += _matches(before, after)
            tokens.add(before, after, written_BT)
            read_BT = written_BT[:, 1:].cpu()
            sums.counts[row] += (read_BT.numel(), float(lengths_V[read_BT].sum()))
            sums.add_streams(row, taught, learnt)
            worst += _worst(model, name, before, after, written_BT)
            advance(f"measuring {name}", start + BATCH, total)
    read = np.array([min(most, len(windows)) for windows in domains.values()])
    return xr.Dataset(
        {
            **sums.variables(read),
            **tokens.by_group(table),
            **_worst_quantities(worst),
            **measured_costs(model, swaps, next(iter(domains.values()))),
            **_against_noise(model, swaps, next(iter(domains.values()))),
        },
        coords={
            "domain": list(domains),
            "depth": sums.depths,
            "state": ["before", "after"],
            "k": list(MATCHED),
            "scale": list(SCALES),
        },
        attrs={
            **provenance(model),
            "experiment": "certificate",
            "window": next(iter(domains.values())).length,
            "seconds": time.perf_counter() - began,
        },
    )


def _worst_quantities(found: Sequence[tuple[float, str, str, str]]) -> dict[str, Any]:
    """The tokens that cost most more than before, the worst first: how much, where, which, behind what."""
    columns = list(zip(*sorted(found, key=lambda one: -one[0])[:WORST], strict=True)) or [()] * 4
    units = {
        "excess": "nats more than the model as it was",
        "worst_domain": "domain",
        "token": "token that was to come",
        "context": "text in front of it",
    }
    return {
        name: ("worst", list(column), {"units": unit})
        for (name, unit), column in zip(units.items(), columns, strict=True)
    }


@dataclass
class _Sums:
    """Sums by domain: of the predictions' measures, of tokens and bytes, and of the streams by depth."""

    predictions: np.ndarray
    counts: np.ndarray
    errors: np.ndarray
    sizes: np.ndarray
    cosines: np.ndarray
    matches: np.ndarray

    @classmethod
    def empty(cls, domains: int, depths: int) -> _Sums:
        """All of them 0."""
        errors, sizes, cosines = np.zeros((3, domains, depths))
        matches = np.zeros((domains, 2, len(MATCHED)))
        parts, counts = np.zeros((domains, len(PARTS))), np.zeros((domains, 2))
        return cls(parts, counts, errors, sizes, cosines, matches)

    @property
    def depths(self) -> list[int]:
        """Numbers of blocks behind which the stream is compared."""
        return list(range(self.errors.shape[1]))

    def add_streams(self, row: int, taught: Mapping[int, Tensor], learnt: Mapping[int, Tensor]) -> None:
        """Count in the streams of some sequences, before and with the graft."""
        for depth in self.depths:
            wanted, found = taught[depth].float(), learnt[depth].float()
            self.errors[row, depth] += float(((found - wanted) ** 2).sum())
            self.sizes[row, depth] += float((wanted**2).sum())
            cosine = torch.cosine_similarity(found, wanted, dim=-1).mean()
            self.cosines[row, depth] += float(cosine * len(found))

    def lists(self) -> dict[str, tuple[Any, ...]]:
        """Shares of positions with the same lists, and what the loss does to perplexity."""
        shares = self.matches / self.counts[:, :1, None]
        more = (self.predictions[:, 1] - self.predictions[:, 0]) / self.counts[:, 0]
        whole = "share of positions whose first k tokens are the same"
        return {
            "topk_set_match": quantity(
                ("domain", "k"), shares[:, 0], f"{whole}, in any order",
                "Stricter than the share of tokens found again: one other token in k, and it does not count.",
                PUBLISHED,
            ),
            "topk_order_match": quantity(
                ("domain", "k"), shares[:, 1], f"{whole}, in the same order",
                "Falls first where many tokens are nearly as probable as each other.", PUBLISHED,
            ),
            "perplexity_ratio": quantity(
                "domain", np.exp(more), "perplexity per token with the graft / as it was",
                "1: as good; 2: as if twice as many tokens were possible.", PUBLISHED,
            ),
        }  # fmt: skip

    def variables(self, read: np.ndarray) -> dict[str, tuple[Any, ...]]:
        """What they come to, over so many sequences of each domain."""
        bits = self.predictions[:, :2] / math.log(2) / self.counts[:, 1:]
        values = np.concatenate([bits, self.predictions[:, 2:] / self.counts[:, :1]], axis=1)
        both = ("domain", "depth")
        return {
            **{name: ("domain", values[:, i], {"units": UNITS[name]}) for i, name in enumerate(PARTS)},
            "tokens": ("domain", self.counts[:, 0], {"units": "tokens predicted"}),
            "windows": ("domain", read, {"units": "sequences read"}),
            **self.lists(),
            "nmse": quantity(
                both, self.errors / self.sizes, "squared error of the stream over its mean square",
                "0: the stream is as it was; 1: it is off by as much as it is long.", PUBLISHED,
            ),
            "cosine": quantity(
                both, self.cosines / read[:, None], "mean cosine of the stream before and after",
                "1: the same direction, whatever the length.", PUBLISHED,
            ),
        }  # fmt: skip


def _matches(before: Tensor, after: Tensor) -> np.ndarray:
    """Positions whose lists of most probable tokens are the same as sets, and in the same order, (2, K)."""
    theirs, ours = before[:, :-1], after[:, :-1]
    found = np.zeros((2, len(MATCHED)))
    for place, k in enumerate(MATCHED):
        one, other = (x.topk(min(k, x.shape[-1]), dim=-1).indices for x in (theirs, ours))
        found[0, place] = float((one.sort(-1).values == other.sort(-1).values).all(-1).sum())
        found[1, place] = float((one == other).all(-1).sum())
    return found


def _against_noise(model: Model, swaps: Swaps, windows: Windows) -> dict[str, Any]:
    """The graft's error as an amount of noise, on a few sequences."""
    ids_BT = windows.rows(range(min(NOISE_WINDOWS, len(windows)))).to(model.device)
    with torch.no_grad():
        before = _log_probabilities(model, ids_BT)[:, :-1].double()

    def divergence() -> float:
        after = _log_probabilities(model, ids_BT)[:, :-1].double()
        return float((before.exp() * (before - after)).sum(-1).mean())

    return noise_quantities(model, swaps, divergence)


def _both(model: Model, swaps: Swaps, ids_BT: Tensor, depths: list[int]):
    """Log-probabilities (B, T, V) and the stream at every depth, of the model as it was and with the
    graft."""
    with torch.no_grad():
        with streams(model, depths) as taught:
            before = _log_probabilities(model, ids_BT)
        with all_placed(model.hf, swaps), streams(model, depths) as learnt:
            after = _log_probabilities(model, ids_BT)
    return before, after, taught, learnt


def _log_probabilities(model: Model, ids_BT: Tensor) -> Tensor:
    logits_BTV = logits_of(model, forward_inputs(model, ids_BT))
    assert logits_BTV is not None
    return logits_BTV.float().log_softmax(-1)


def _measured(before: Tensor, after: Tensor, ids_BT: Tensor) -> np.ndarray:
    """Sums over tokens of both losses in nats, divergence, and agreement of the first and the first five."""
    target = ids_BT[:, 1:, None]
    ours, theirs = after[:, :-1], before[:, :-1]
    losses = [-float(x.gather(-1, target).double().sum()) for x in (theirs, ours)]
    divergence = float((theirs.exp() * (theirs - ours)).double().sum())
    top = theirs.topk(TOP, dim=-1).indices
    found = ours.topk(TOP, dim=-1).indices
    first = float((top[..., 0] == found[..., 0]).sum())
    five = float((top[..., :, None] == found[..., None, :]).any(-1).double().mean(-1).sum())
    return np.array([*losses, divergence, first, five])


def _worst(
    model: Model, domain: str, before: Tensor, after: Tensor, ids_BT: Tensor
) -> list[tuple[float, str, str, str]]:
    """The tokens of a batch that the graft makes less probable by most, with the text in front of them."""
    target = ids_BT[:, 1:, None]
    excess_BT = (before[:, :-1].gather(-1, target) - after[:, :-1].gather(-1, target))[..., 0]
    found = []
    for place in excess_BT.flatten().topk(min(WORST, excess_BT.numel())).indices.tolist():
        row, position = divmod(place, excess_BT.shape[1])
        context = "".join(model.token_text(int(i)) for i in ids_BT[row, max(0, position - 12) : position + 1])
        found.append(
            (
                float(excess_BT[row, position]),
                domain,
                model.token_text(int(ids_BT[row, position + 1])),
                context,
            )
        )
    return found
