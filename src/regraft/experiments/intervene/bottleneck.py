"""Causal bottleneck: is the block whose restoration helps most the one whose loss hurts most?

Shapes: P pairs of prompts, L blocks, K kinds of pairs, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.core.signatures import TextFile
from regraft.data.generation import is_specimen, prompt_ids
from regraft.data.minimal_pairs import GENERAL, KINDS, SPECIMEN, MinimalPair
from regraft.data.own_texts import check_sayable
from regraft.data.text_files import read_pairs
from regraft.experiments.observe.paired import FEWEST, rank_correlation
from regraft.model.model import Model
from regraft.sweeps.metrics import log_probability, logit_difference
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Replace, Variant

KNOWN = 1.0
"""Logits by which the two prompts must differ in the right direction: the effect is a share of this
difference, and of a smaller one it is noise."""
QUESTION = "asked, not answered, in the knockout study of Qwen3-4B (hivaze/dl-experiments)"


@dataclass(frozen=True)
class Parting:
    """A pair as token ids: both prompts, with what the answers share, and the tokens at which they part."""

    pair: MinimalPair
    clean: list[int]
    corrupt: list[int]
    answer: int
    wrong: int


@dataclass
class Restored:
    """What one pair gave: effect of each block's clean update, loss of the answer without each block (L)."""

    pair: MinimalPair
    effect: np.ndarray
    delta: np.ndarray
    results: tuple[SweepResult, ...]


def bottleneck(model: Model, pairs: TextFile = "", count: int = 0) -> xr.Dataset:
    """Put one block's clean update back into a corrupted run, skip it in the clean one, and compare the two.

    Of two prompts that differ in one thing, read where their answers part, restored effect: (m_restored -
    m_corrupt) / (m_clean - m_corrupt), m the logit of the answer minus the wrong one's, where what one block
    adds to the stream is the clean run's at every position and all else is the corrupted run's. Beside it
    what skipping the block in the clean run adds to -log p of the answer. (Restoring the whole stream behind
    a block at every position would give 1 for each of them.)

    Args:
        pairs: a JSON list of pairs of your own, each with kind, clean, corrupt, answer, wrong.
        count: how many pairs of each kind, the first ones; 0 for all.

    Raises:
        ValueError: no pair that this tokenizer can say and this model knows, or a model that predicts no next
            token.

    Examples:
        >>> data = regraft.bottleneck(model, count=1)
        >>> dict(data["restored_effect"].sizes), data["restored_effect"].attrs["units"]
        ({'kind': 3, 'block': 12}, 'share of the difference between the runs')
    """
    if not model.causal or model.parts.head is None:
        raise ValueError(f"{model.name} predicts no next token, so there is no answer to restore")
    if count < 0:
        raise ValueError(f"{count} is no number of pairs: write 1 or more, or 0 for all")
    given, left_out = _sayable(model, _given(model, pairs))
    found: list[Restored] = []
    for number, one in enumerate(given):
        if not count or sum(other.pair.kind == one.pair.kind for other in found) < count:
            made = _restored(model, one)
            if made is None:
                left_out.append(f"“{one.pair.clean}” is not known")
            else:
                found.append(made)
        advance("pairs", number + 1, len(given))
    if not found:
        raise ValueError(
            f"{model.name} knows none of {len(given)} pairs: it does not prefer the answer on the one prompt"
            " and the wrong one on the other; give pairs of your own with --pairs"
        )
    return _dataset(model, found, left_out)


def _given(model: Model, file: str) -> Sequence[MinimalPair]:
    if file:
        return read_pairs(
            Path(file), MinimalPair, "write a list of objects with kind, clean, corrupt, answer, wrong"
        )
    suited = SPECIMEN if is_specimen(model) else GENERAL
    check_sayable(model, [p.clean + p.answer for p in suited], "the English pairs that ship with regraft")
    return suited


def _sayable(model: Model, pairs: Sequence[MinimalPair]) -> tuple[list[Parting], list[str]]:
    """The pairs whose prompts are equally long and whose answers part somewhere, as ids up to there; and why
    others are not."""
    kept, left_out = [], []
    for pair in pairs:
        clean, corrupt = prompt_ids(model, pair.clean), prompt_ids(model, pair.corrupt)
        answer, wrong = model.continuation(pair.answer), model.continuation(pair.wrong)
        same = next((i for i, (a, b) in enumerate(zip(answer, wrong, strict=False)) if a != b), None)
        if len(clean) != len(corrupt):
            left_out.append(f"“{pair.clean}” is not as long as the other prompt")
        elif same is None or (same and model.two_stacks):
            left_out.append(f"the answers of “{pair.clean}” do not part at a token that can be read")
        else:
            shared = answer[:same]
            kept.append(Parting(pair, clean + shared, corrupt + shared, answer[same], wrong[same]))
    if not kept:
        raise ValueError(f"there is no pair that this tokenizer can say: {left_out[0]}")
    return kept, left_out


def _restored(model: Model, one: Parting) -> Restored | None:
    """Both measurements of one pair; None where the model does not know it."""
    clean, corrupt = model.record([one.clean]), model.record([one.corrupt])
    blocks, total = model.main_blocks, len(model.blocks)
    metric = logit_difference(one.answer, one.wrong)
    every = list(range(clean.positions_of(blocks[0].index)))
    variants = []
    for block in blocks:
        update_TD = (clean.post(block.index) - clean.pre(block.index))[0]
        put_TD = corrupt.pre(block.index)[0] + update_TD
        variants.append(Variant([Replace(f"{block.address}.resid_post", put_TD, position=every)]))
    best = float(sweep(clean, [], metric).clean[metric.kind])
    result = sweep(corrupt, variants, metric)
    worst = float(result.clean[metric.kind])
    if not (best > 0 > worst and best - worst >= KNOWN):
        return None
    skips = [Variant(route=Route.skip(total, {block.index})) for block in blocks]
    without = sweep(clean, skips, log_probability(one.answer))
    effect = (result.values[metric.kind][:, 0].numpy() - worst) / (best - worst)
    name = "log_probability"
    delta = float(without.clean[name][0]) - without.values[name][:, 0].numpy()
    return Restored(one.pair, effect, delta, (result, without))


def _dataset(model: Model, found: Sequence[Restored], left_out: Sequence[str]) -> xr.Dataset:
    kinds = [kind for kind in KINDS if any(one.pair.kind == kind for one in found)]
    kinds += sorted({one.pair.kind for one in found} - set(kinds))
    addresses = [block.address for block in model.main_blocks]
    effect, delta = (np.stack([getattr(one, name) for one in found]) for name in ("effect", "delta"))
    of_kind = np.array([kinds.index(one.pair.kind) for one in found])
    mean_effect, mean_delta = (
        np.stack([table[of_kind == k].mean(0) for k in range(len(kinds))]) for table in (effect, delta)
    )
    most_helped, most_hurt = mean_effect.argmax(1), mean_delta.argmax(1)
    agreement = [
        rank_correlation(a, b) if len(addresses) >= FEWEST else float("nan")
        for a, b in zip(mean_effect, mean_delta, strict=True)
    ]
    names = np.array(addresses)
    share, nats = "share of the difference between the runs", "nats: what skipping the block adds to -log p"
    reads = {
        "effect": "Near 1: what this block adds is enough to bring the clean answer back.",
        "delta": "How much the answer needs the block, whatever it does.",
        "block": "The two differ where a block that carries the difference is not the one all answers need.",
    }
    return xr.Dataset(
        {
            "restored_effect": quantity(("kind", "block"), mean_effect, share, reads["effect"], QUESTION,
            correlate="restored effect",
        ),
            "knockout_delta": quantity(("kind", "block"), mean_delta, nats, reads["delta"], QUESTION),
            "pair_effect": quantity(("pair", "block"), effect, share, reads["effect"]),
            "pair_delta": quantity(("pair", "block"), delta, nats, reads["delta"]),
            "bottleneck_block": quantity(
                "kind", names[most_helped], "block with the largest restored effect", reads["block"], QUESTION
            ),
            "critical_block": quantity(
                "kind", names[most_hurt], "block whose skipping hurts most", reads["block"], QUESTION
            ),
            "same_block": quantity("kind", most_helped == most_hurt, "whether both are one", reads["block"]),
            "agreement": quantity(
                "kind", agreement, "Spearman's rank correlation of the two over blocks",
                "Near 1: blocks that restore are blocks that are needed.",
            ),
            "pairs_of_kind": quantity("kind", np.bincount(of_kind), "pairs", "Pairs behind each row."),
        },
        coords={
            "kind": kinds,
            "block": addresses,
            "pair_kind": ("pair", [one.pair.kind for one in found]),
            "clean": ("pair", [one.pair.clean for one in found]),
            "corrupt": ("pair", [one.pair.corrupt for one in found]),
        },
        attrs={
            **sweep_attributes(*(result for one in found for result in one.results)),
            "pairs": len(found),
            "left_out": "; ".join(left_out),
        },
    )  # fmt: skip
