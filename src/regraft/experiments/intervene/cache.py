"""Strategies for keys and values, measured: what a prefix is worth in fewer bytes.

Shapes: N strategies, B texts, P tokens of the prefix, q tokens behind it, T = P + q, L blocks, G key heads, V
vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.core.signatures import TextFile
from regraft.data.corpus import text_rows
from regraft.experiments.intervene.cache_needles import DEPTHS, needles, prefix_lengths
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.systems.cache_past import KeptPast, Past
from regraft.systems.cache_peers import peer_caches
from regraft.systems.cache_run import check_caches, kept_of, pasts_of, suffix_streams
from regraft.systems.cache_strategies import DROPS, Strategy, strategy

BUDGETS = ("50%", "25%", "12.5%")
PLAIN = (
    "whole", "bf16", "fp8", "fp8_e5m2", "int8", "int4", "int4:recent=16", "int4:k=token", "int3", "int2",
    "int2:recent=16", "int2:k=token", "int4:vbits=2", "heads:merge=2", "rank:r=16", "rank:r=8",
    "share:every=2",
)  # fmt: skip
STRATEGIES = (*PLAIN, *(f"{kind}:budget={budget}" for budget in BUDGETS for kind in DROPS))
"""What is measured where nothing is named: fewer bits, fewer numbers, and fewer tokens at three budgets."""
MEASURED = ("moved", "kl", "top1", "loss", "spans", "repeat")
SPANS = 4
"""Parts of what stands behind the prefix, over which the added loss is told."""
SOURCE = (
    "Xiao et al. (2024) windows; Zhang et al. (2023) H2O; Li et al. (2024) SnapKV; Liu et al. (2024) KIVI"
)


def cache(
    model: Model,
    strategies: list[str] | None = None,
    text: TextFile = "",
    prefix: int = 96,
    suffix: int = 32,
    texts: int = 8,
    sensitivity: str = "int2:k=token",
    seed: int = 0,
) -> xr.Dataset:
    """Keep less of a prefix's keys and values, and measure what is lost behind it.

    Source: KIVI, StreamingLLM, H2O, SnapKV, PyramidKV, Scissorhands. Every strategy keeps something else of
    the same prefix; only what stands behind it is run. Bytes are those of every tensor that is held.

    Args:
        strategies: as words, such as int4:k=channel,recent=32 or h2o:budget=25%; without them, some forty.
        text: a text file; without it, the specimen's almanac or general prompts.
        prefix: tokens whose keys and values are changed.
        suffix: tokens behind them.
        texts: how many texts; their prefixes are also read twice, and facts are hidden in them.
        sensitivity: the strategy that is put into one block, and one head, at a time.
        seed: of the general passages, where no text is given.

    Raises:
        ValueError: an unknown strategy, one that keeps nothing, a model whose cache cannot be changed, or a
            text that is too short.

    Examples:
        >>> some = ["int8", "window:budget=25%"]
        >>> data = regraft.cache(model, strategies=some, prefix=48, suffix=16, texts=2)
        >>> data["kl"].attrs["units"], bool(data["kl"][0] < data["kl"][1])
        ('nats per token, from the whole cache', True)
    """
    asked = [strategy(words) for words in strategies or STRATEGIES]
    alone = strategy(sensitivity)
    if min(prefix, suffix, texts) < 2:
        raise ValueError("prefix, suffix and texts are numbers of 2 or more")
    check_caches(model)
    longest = longest_input(model.hf.config)
    if longest and max(prefix + suffix, 2 * prefix) > longest:
        raise ValueError(f"{model.name} reads {longest} tokens at most: make prefix and suffix shorter")
    read = model.record(text_rows(model, text, seed, prefix + suffix, texts), attention_mask="all")
    shorter = text_rows(model, text, seed, prefix, texts)
    again = model.record([row * 2 for row in shorter], attention_mask="all")
    told = _measured(read, again, asked, prefix)
    beside = [_needle_map(model, text, asked, prefix, texts, seed), _peers(read, prefix)]
    by_block, by_head = _sensitivity(read, alone, prefix)
    data = _dataset(model, asked, told, by_block, by_head, prefix, suffix)
    return xr.merge([data, *beside], combine_attrs="drop_conflicts").assign_attrs(
        sensitivity=alone.words, prefix=prefix, suffix=suffix, texts=texts
    )


# numbers of every strategy
# ----------------------------------------------------------------------------------------------------


def _measured(
    read: Recording, again: Recording, asked: Sequence[Strategy], length: int
) -> dict[str, list[Any]]:
    """Bytes, and what is lost on text that goes on and on text that is read again, strategy by strategy."""
    pasts, pasts_again = pasts_of(read, length), pasts_of(again, length)
    clean = _Clean(read, length)
    told: dict[str, list[Any]] = {name: [] for name in ("bytes", "ratio", *MEASURED)}
    whole = sum(kept.nbytes for kept in kept_of(strategy("whole"), pasts))
    for number, one in enumerate(asked):
        kept = kept_of(one, pasts)
        numbers = clean.against(suffix_streams(read, [kept], length)[0])
        told["bytes"].append(sum(k.nbytes for k in kept) / (read.prompts * length))
        told["ratio"].append(whole / sum(k.nbytes for k in kept))
        told["moved"].append(sum(k.moved for k in kept) / read.prompts)
        for name in ("kl", "top1", "loss", "spans"):
            told[name].append(numbers[name])
        stream = suffix_streams(again, [kept_of(one, pasts_again)], length)[0]
        told["repeat"].append(_right(again, stream, length))
        advance("strategies", number + 1, len(asked))
    return told


class _Clean:
    """The suffix with the whole cache, and how far another one is from it."""

    def __init__(self, recording: Recording, length: int):
        self.recording, self.targets = recording, recording.ids_BT[:, length + 1 :]
        self.logs = self._logs(recording.post(len(recording.model.blocks) - 1)[:, length:])

    def _logs(self, stream_BqD: Tensor) -> Tensor:
        """Log-probabilities of what comes next, but for the last position, behind which nothing is known."""
        return self.recording.head(stream_BqD[:, :-1]).float().log_softmax(-1)

    def against(self, stream_BqD: Tensor) -> dict[str, Any]:
        """Divergence, agreement and added loss, in parts of the suffix as well."""
        return self._apart(self._logs(stream_BqD))

    def of_logits(self, logits_BqV: Tensor) -> dict[str, Any]:
        """The same of what somebody else computed."""
        return self._apart(logits_BqV[:, :-1].float().log_softmax(-1))

    def _apart(self, logs: Tensor) -> dict[str, Any]:
        kl_Bq = (self.logs.exp() * (self.logs - logs)).sum(-1)
        added_Bq = -(logs - self.logs).gather(-1, self.targets[..., None])[..., 0]
        spans = [float(part.mean()) for part in added_Bq.tensor_split(SPANS, dim=1)]
        same = logs.argmax(-1) == self.logs.argmax(-1)
        return {
            "kl": float(kl_Bq.mean()),
            "top1": float(same.float().mean()),
            "loss": float(added_Bq.mean()),
            "spans": spans,
        }


def _right(again: Recording, stream_BqD: Tensor, length: int) -> float:
    """Share of the tokens that are read again which are likeliest."""
    logits = again.head(stream_BqD[:, :-1])
    return float((logits.argmax(-1) == again.ids_BT[:, length + 1 :]).float().mean())


def _needle_map(
    model: Model, text: str, asked: Sequence[Strategy], prefix: int, texts: int, seed: int
) -> xr.Dataset:
    """What is found again of a fact in the prefix, over strategy, length of the prefix and depth; nothing
    where no words can be written. Where the whole cache finds nothing, a strategy has nothing to lose: it is
    not asked."""
    if model.tokenizer is None:
        return xr.Dataset(attrs={"needles_missing": "no tokenizer to write facts with"})
    try:
        hidden = [needles(model, text, length, texts, seed) for length in prefix_lengths(prefix)]
    except ValueError as error:  # what is measured beside it needs no facts
        return xr.Dataset(attrs={"needles_missing": str(error)})
    if not hidden:
        return xr.Dataset(attrs={"needles_missing": f"a prefix of {prefix} tokens holds no fact"})
    lengths = [one.prefix for one in hidden]
    whole = np.stack([one.right(strategy("whole")) for one in hidden])
    asked_at = whole.any(1)
    hits = np.full((len(asked), *whole.shape), np.nan)
    held = np.full((len(asked), len(hidden)), np.nan)
    for at in np.flatnonzero(asked_at):
        for number, one in enumerate(asked):
            hits[number, at], held[number, at] = hidden[at].measured(one)
            advance(
                "strategies asked for a fact", int(at) * len(asked) + number + 1, len(hidden) * len(asked)
            )
    found = quantity(
        ("strategy", "needle_length", "needle_depth"), hits,
        f"share of {texts} facts that are told again, all tokens",
        "By the tokens of the prefix and where in it the fact stood: dropping loses what it dropped.",
    )  # fmt: skip
    over_all = hits[:, asked_at].mean((1, 2)) if asked_at.any() else np.full(len(asked), np.nan)
    data = {
        "needle_map": found,
        "needle_bytes": quantity(("strategy", "needle_length"), held,
                                 "bytes for each token of the prefix, everything that is held",
                                 "Of these texts: what is whole or shared counts for more in short ones."),
        "needle_whole": quantity(("needle_length", "needle_depth"), whole,
                                 "share of facts told again from the whole cache", "What there is to lose."),
        "needle_accuracy": quantity("strategy", over_all,
                                    "share of facts told again, where the whole cache finds any",
                                    "Recall: beside bytes, what a cache is for."),
    }  # fmt: skip
    return xr.Dataset(data, coords={"needle_length": lengths, "needle_depth": list(DEPTHS)})


def _peers(read: Recording, length: int) -> xr.Dataset:
    """transformers' own caches on the same texts."""
    clean, told = _Clean(read, length), {name: list[float]() for name in ("bytes", "kl", "top1", "loss")}
    peers = peer_caches(read, length)
    for peer in peers.values():
        logits_BqV = peer.logits_BqV
        numbers = {} if logits_BqV is None else clean.of_logits(logits_BqV)
        told["bytes"].append(np.nan if logits_BqV is None else peer.nbytes / (read.prompts * length))
        for name in ("kl", "top1", "loss"):
            told[name].append(numbers.get(name, np.nan))
    reading = "transformers' own, on the same texts behind the same prefix."
    data = {
        "peer_bytes": quantity("peer", told["bytes"], "bytes for each token of the prefix", reading),
        "peer_kl": quantity("peer", told["kl"], "nats per token, from the whole cache", reading),
        "peer_top1": quantity("peer", told["top1"], "share of positions with the same likeliest token",
                              reading),
        "peer_loss_added": quantity("peer", told["loss"], "nats per token, above the whole cache", reading),
    }  # fmt: skip
    missing = {name: peer.why_not for name, peer in peers.items() if peer.why_not}
    return xr.Dataset(data, coords={"peer": list(peers)}, attrs={"peers_missing": json.dumps(missing)})


def _sensitivity(read: Recording, alone: Strategy, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Divergence where one block's cache is changed (L), and where one head's is (L, G)."""
    pasts, clean = pasts_of(read, length), _Clean(read, length)
    changed, whole = kept_of(alone, pasts), kept_of(strategy("whole"), pasts)
    groups = max(past.keys_BGPK.shape[1] for past in pasts)
    by_block, by_head = np.zeros(len(pasts)), np.full((len(pasts), groups), np.nan)
    for block, past in enumerate(pasts):
        rows = [[*whole[:block], changed[block], *whole[block + 1 :]]]
        heads = past.keys_BGPK.shape[1]
        rows += [
            [*whole[:block], _of_head(past, changed[block], g), *whole[block + 1 :]] for g in range(heads)
        ]
        found = [clean.against(stream)["kl"] for stream in suffix_streams(read, rows, length)]
        by_block[block], by_head[block, :heads] = found[0], found[1:]
        advance("blocks", block + 1, len(pasts))
    return by_block, by_head


def _of_head(past: Past, changed: KeptPast, head: int) -> KeptPast:
    """What a strategy keeps of one head, the others whole."""
    keys, values = past.keys_BGPK.clone(), past.values_BGPK.clone()
    keys[:, head], values[:, head] = changed.keys_BGPK[:, head], changed.values_BGPK[:, head]
    stays = changed.stays_BGP
    if stays is not None:
        some = torch.ones_like(stays)
        some[:, head] = stays[:, head]
        stays = some
    return KeptPast(keys, values, stays, ())


def _dataset(
    model: Model,
    asked: Sequence[Strategy],
    told: dict[str, list[Any]],
    by_block: np.ndarray,
    by_head: np.ndarray,
    prefix: int,
    suffix: int,
) -> xr.Dataset:
    edges = np.linspace(0, suffix - 1, SPANS + 1)
    data = {
        "bytes": quantity("strategy", told["bytes"],
                          "bytes for each token of the prefix, everything that is held",
                          "Codes, scales, places: what must be stored."),
        "ratio": quantity("strategy", told["ratio"], "times less than the whole cache",
                          "1 is the whole cache."),
        "moved": quantity("strategy", told["moved"], "bytes moved for each token that is written",
                          "What is kept elsewhere must come back every time."),
        "kl": quantity("strategy", told["kl"], "nats per token, from the whole cache",
                       "How much the next token's distribution changes behind the prefix."),
        "top1_agreement": quantity("strategy", told["top1"],
                                   "share of positions with the same likeliest token",
                                   "1: greedy text stays the same."),
        "loss_added": quantity("strategy", told["loss"], "nats per token, above the whole cache",
                               "What forgetting costs on the text that follows."),
        "loss_added_by_distance": quantity(("strategy", "distance"), told["spans"],
                                           "nats per token, above the whole cache",
                                           "Falls where the text itself tells again what was lost."),
        "repeat_accuracy": quantity("strategy", told["repeat"],
                                    "share of tokens right where the prefix is read again",
                                    "Of a model that copies, recall: dropping tokens loses just these."),
        "sensitivity_block": quantity("block", by_block, "nats per token, one block's cache changed",
                                      "Which blocks need keys and values exactly.", correlate="cache"),
        "sensitivity_head": quantity(("block", "key_head"), by_head,
                                     "nats per token, one head's cache changed", "Which heads do."),
    }  # fmt: skip
    return xr.Dataset(
        data,
        coords={
            "strategy": [one.words for one in asked],
            "kind": ("strategy", [one.kind for one in asked]),
            "distance": [round(float((a + b) / 2) + 1) for a, b in pairwise(edges)],
            "block": [block.address for block in model.blocks],
            "key_head": np.arange(by_head.shape[1]),
        },
    )
