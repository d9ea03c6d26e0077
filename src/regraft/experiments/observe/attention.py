"""Attention surveyed: what mixes tokens in every block, what it keeps and costs, and what its heads look at.

Shapes: L blocks, H heads, T positions, n tokens of a random text that is read twice.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.quantities import quantity
from regraft.data.evaluation import evaluation_or_texts
from regraft.experiments.observe.attention_beside import beside_dataset
from regraft.experiments.observe.attention_refresh import refresh_dataset
from regraft.experiments.observe.head_patterns import (
    MEASURES,
    forms_patterns,
    mean_over_queries,
    measured_patterns,
    twice,
)
from regraft.experiments.observe.recall_tasks import recall_dataset
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.systems.kernel_bench import KEYS, kernel_dataset
from regraft.systems.kernels import AttentionShape
from regraft.systems.mixer_work import decode_macs, expert_macs, linear_macs, prefill_macs
from regraft.systems.state_bytes import BlockState, block_states, length_as_heavy, weight_bytes

LENGTHS = (2048, 8192, 32_768, 131_072)
"""Tokens at which state and work are told."""
AGAIN, TEXTS = 24, 4
"""Tokens of a random text that is read twice, and how many there are: short enough for every model."""
DRAWN = 24
"""Tokens of a pattern that is drawn, so that they can be read."""
ON_TEXT = ("entropy", "distance", "first", "previous")
ON_REPEATED = ("duplicate", "induction")
"""What is measured on text, and on random tokens that are read twice, where nothing but the repetition
tells."""
SOURCE = "Olsson et al., In-context Learning and Induction Heads (2022)"


def attention(
    model: Model,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    lengths: list[int] | None = None,
    heads: list[str] | None = None,
    recall: bool = False,
    bench: bool = False,
    keys: list[int] | None = None,
    beside: list[str] | None = None,
    refresh: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Survey what mixes tokens: kinds, state in bytes by formula and counted, work, and what heads look at.

    Source: Olsson et al. (2022) for induction heads. Every block's kind is told by its structure; its state
        is a + b·min(T, w) bytes by formula, and counted in the cache that the model itself makes.

    Args:
        prompts: texts to complete and read; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        lengths: tokens at which state and work are told; without them, 2,048 to 131,072.
        heads: heads whose pattern on the first text is kept and drawn, as BLOCK.HEAD; without them, the one
            that does most of each.
        recall: also ask for what stood in the context: random tokens again, pairs, a pair far back.
        bench: also time the kernels of attention on this model's heads, each beside eager in float64.
        keys: of the kernels' calls; without them, 128, 512 and 1,024.
        beside: other models (specimens, folders, hub ids) whose state and work stand beside this one's.
        refresh: also empty recurrent states, and hide keys, in the middle of texts.
        seed: of the random tokens of the tasks, and of the texts of refresh.

    Raises:
        ValueError: nothing in the model mixes tokens, it has no attention and heads are named, or a head does
            not exist.

    Examples:
        >>> data = regraft.attention(model, count=2, tokens=4)
        >>> dict(data["induction"].sizes), data["state_per_token"].attrs["units"]
        ({'block': 12, 'head': 6}, 'bytes for each token, by formula')
    """
    states, why_not_counted = block_states(model)
    if not any(state.mixers for state in states):
        raise ValueError(
            f"nothing was found in {model.name} that mixes tokens: there is no attention to survey"
        )
    at = [int(length) for length in lengths or LENGTHS]
    if any(length < 1 for length in at):
        raise ValueError("a length of less than one token has no state: give lengths of 1 or more")
    shape = _shape(states, keys or list(KEYS)) if bench or keys else None
    named = _named_heads(model, heads)
    found = [_survey(model, states, at)]
    told: dict[str, Any] = {"not_counted": why_not_counted, "weights_bytes": weight_bytes(model)}
    if forms_patterns(model):
        text = evaluation_or_texts(model, prompts, count, tokens)
        part, notes = _heads(model, list(text.recordings), named, seed)
        found.append(part)
        told |= {**text.attributes, "no_pattern": json.dumps(notes)}
    if recall:
        found.append(recall_dataset(model, seed))
    if shape is not None:
        found.append(kernel_dataset(shape, keys or list(KEYS), model.dtype, model.device))
    if refresh:
        found.append(refresh_dataset(model, seed))
    if beside:
        found.append(beside_dataset(model, states, beside, at))
    return xr.merge(found, combine_attrs="drop_conflicts").assign_attrs(**told)


def _shape(states: list[BlockState], keys: list[int]) -> AttentionShape:
    """The heads of the model's softmax attention, one text.

    Raises:
        ValueError: it has none, or a number of keys is none.
    """
    if min(keys) < 1:
        raise ValueError("a call of attention has one key at least: give numbers of keys of 1 or more")
    mixers = [m for state in states for m in state.mixers if m.heads and m.key_heads and not m.inner]
    if not mixers:
        raise ValueError("the kernels are those of softmax attention, and this model has none: drop --bench")
    widest = max(mixers, key=lambda m: m.heads * m.head_width)
    return AttentionShape(1, widest.heads, widest.key_heads, widest.head_width, max(keys))


def _named_heads(model: Model, heads: list[str] | None) -> list[tuple[int, int]]:
    """Block and head of addresses such as 5.2.

    Raises:
        ValueError: it is none, or the model has no such head.
    """
    found = []
    for one in heads or []:
        block, _, head = one.rpartition(".")
        if not head.isdigit():
            raise ValueError(f"{one!r} is no head: write BLOCK.HEAD, for example 5.2")
        site = model.site(f"{block}.head.{head}")
        assert site.block is not None
        found.append((site.block, int(head)))
    return found


# the survey
# ----------------------------------------------------------------------------------------------------


def _survey(model: Model, states: list[BlockState], at: list[int]) -> xr.Dataset:
    """Kinds, state and work of every block."""
    none = float("nan")
    widest = [max(state.mixers, key=lambda m: m.heads, default=None) for state in states]
    windows = [min([m.window for m in state.mixers if m.window] or [none]) for state in states]
    counted = np.array([state.counted or [none] * len(state.counted_at) for state in states], float)
    formula = np.array([[state.bytes_at(t) for t in state.counted_at] for state in states], float)
    held = np.array([[state.bytes_at(t) for t in at] for state in states], float)
    full = np.array([[_as_full(state, t) for t in at] for state in states], float)
    mixing = np.array([[prefill_macs(s.mixers, t, s.writes) for t in at] for s in states], float)
    writing = np.array([[decode_macs(s.mixers, t) if s.writes else none for t in at] for s in states], float)
    whole = sum(linear_macs(block.module) + expert_macs(block.module, model) for block in model.main_blocks)
    inside = sum(linear_macs(m.module) for state in states for m in state.mixers)
    matrices = np.array(at, float) * (whole - inside)
    longest = longest_input(model.hf.config)
    data = {
        "state_fixed": quantity("block", [s.bytes_at(0) for s in states],
                                "bytes whatever the length, by formula",
                                "What a recurrence carries on; 0 where only keys and values are kept."),
        "state_per_token": quantity("block", [s.bytes_at(1) - s.bytes_at(0) for s in states],
                                    "bytes for each token, by formula",
                                    "Keys and values; 0 where a state of fixed size is all.",
                                    correlate="state bytes"),
        "window": quantity("block", windows, "tokens, the query's own among them",
                           "How far a query reads; none: all the way."),
        "query_heads": quantity("block", [m.heads if m else 0 for m in widest], "heads", "Heads that ask."),
        "key_heads": quantity("block", [m.key_heads if m else 0 for m in widest], "heads",
                              "Heads that are kept: fewer than ask, where several share keys and values."),
        "head_width": quantity("block", [m.head_width if m else 0 for m in widest], "numbers", "Of a key."),
        "counted_state": quantity(("block", "counted_length"), counted,
                                  "bytes of the model's own cache, counted",
                                  "Must equal the formula, byte by byte."),
        "formula_state": quantity(("block", "counted_length"), formula, "bytes, by formula",
                                  "What is counted beside it."),
        "state": quantity(("block", "length"), held, "bytes of one text, by formula",
                          "What one user's text holds."),
        "state_if_full": quantity(("block", "length"), full,
                                  "bytes if every head kept its own keys and values",
                                  "What sharing, windows and recurrences save is the difference."),
        "prefill_work": quantity(("block", "length"), mixing, "multiply-adds of mixing a whole text",
                                 "Grows with the square of the length where all keys are read."),
        "decode_work": quantity(("block", "length"), writing, "multiply-adds of mixing for one token more",
                                "Grows with the length where all keys are read."),
        "mixing_share": quantity("length", mixing.sum(0) / (mixing.sum(0) + matrices),
                                 "share of all multiply-adds of the blocks, reading a whole text",
                                 "What is not mixing is matrices of MLPs, alike for every token."),
    }  # fmt: skip
    coords = {
        "block": [block.address for block in model.main_blocks],
        "kind": ("block", [state.kind for state in states]),
        "length": at,
        "counted_length": list(states[0].counted_at),
    }
    passes = length_as_heavy(states, weight_bytes(model))
    attrs = {"passes_weights": passes, "longest": longest or 0,
             "agrees": int(sum(s.agrees for s in states)), "blocks": len(states)}  # fmt: skip
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _as_full(state: BlockState, length: int) -> int:
    """Bytes of keys and values of all query heads, of all tokens; `pair` counts the numbers of both."""
    numbers = sum(m.pair or 2 * m.heads * m.head_width for m in state.mixers)
    return numbers * length * state.itemsize if state.writes else 0


# the heads
# ----------------------------------------------------------------------------------------------------


def _heads(
    model: Model, recordings: list[Recording], named: list[tuple[int, int]], seed: int
) -> tuple[xr.Dataset, dict[str, str]]:
    """What heads look at, on text and on random tokens that are read twice."""
    length = min(AGAIN, max(2, (longest_input(model.hf.config) or 2 * AGAIN) // 2))
    again = (
        model.record(twice(model, length, TEXTS, seed), attention_mask="all")
        if not model.two_stacks
        else None
    )
    sums: np.ndarray | None = None
    counts, notes = 0, {}
    for recording in recordings:
        found, _, notes = measured_patterns(recording, {name: MEASURES[name] for name in ON_TEXT})
        counted_BT = recording.mask_BT.cpu().numpy().copy()
        counted_BT[:, 0] = False  # the first token can read itself alone
        means = np.stack([mean_over_queries(found[name], counted_BT) for name in ON_TEXT])
        sums = means * counted_BT.sum() + (0 if sums is None else sums)
        counts += int(counted_BT.sum())
    assert sums is not None
    values: dict[str, np.ndarray] = dict(zip(ON_TEXT, sums / counts, strict=True))
    if again is not None:
        found, _, _ = measured_patterns(again, {name: MEASURES[name] for name in ON_REPEATED})
        second_BT = np.zeros(again.ids_BT.shape, bool)
        second_BT[:, length:] = True
        values |= {name: mean_over_queries(found[name], second_BT) for name in ON_REPEATED}
    chosen = named or _strongest(model, values)
    return _heads_dataset(model, values, recordings[0], chosen), notes


def _strongest(model: Model, values: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """The head that does most of each, each once."""
    first_block = model.main_blocks[0].index
    found: list[tuple[int, int]] = []
    for name in ("induction", "duplicate", "previous", "first", "distance"):
        table = values.get(name)
        if table is None or np.isnan(table).all():
            continue
        block, head = np.unravel_index(int(np.nanargmax(table)), table.shape)
        if (place := (first_block + int(block), int(head))) not in found:
            found.append(place)
    return found


READ = {
    "entropy": ("nats, mean over queries", "0: one key is read; high: many alike.", "head entropy"),
    "distance": ("tokens, mean over queries", "How far back a head reads.", "head distance"),
    "first": ("share of attention on the first token", "A head that rests: it has nothing to bring.",
              "rests on first"),
    "previous": ("share of attention on the token before", "Tells each token what stands before it.",
                 "reads previous"),
    "duplicate": ("share on the same token earlier, in random tokens read twice", "Finds repetitions.", ""),
    "induction": ("share on what followed the same token earlier, in random tokens read twice",
                  "Copies what came next last time.", "induction"),
}  # fmt: skip
"""Every measure of a head: its unit, how to read it, and its name among correlations."""


def _heads_dataset(
    model: Model, values: dict[str, np.ndarray], text: Recording, chosen: list[tuple[int, int]]
) -> xr.Dataset:
    asked = {block: {h for b, h in chosen if b == block} for block, _ in chosen}
    _, patterns, _ = measured_patterns(text, {"entropy": MEASURES["entropy"]}, whole=asked)
    shown = min(DRAWN, int(text.mask_BT[0].sum()))
    drawn = [place for place in chosen if place in patterns]
    addresses = {block.index: block.address for block in model.blocks}
    stacked = np.array([patterns[place][:shown, :shown] for place in drawn]).reshape(len(drawn), shown, shown)
    words = [model.token_text(i) for i in text.ids_BT[0, :shown].tolist()]
    data: dict[str, Any] = {
        name: quantity(("block", "head"), table, READ[name][0], READ[name][1], SOURCE)
        for name, table in values.items()
    }
    data["pattern"] = quantity(
        ("chosen", "query", "key"), stacked, "share of attention", "Each row is a query, and adds up to 1."
    )
    head_count = next(iter(values.values())).shape[1]
    coords = {
        "block": [block.address for block in model.main_blocks],
        "head": np.arange(head_count),
        "chosen": [f"{addresses[block]}.{head}" for block, head in drawn],
        "query": np.arange(shown),
        "key": np.arange(shown),
        "word": ("query", words),
    }
    return xr.Dataset(data, coords=coords)
