"""What the names and shapes of a block's tensors tell: width, heads and their grouping, MLP, experts, kind of
mixing.

Shapes: D width, H heads, G key/value heads, K width of a head, F neurons, E experts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Certainty = Literal["certain", "inferred", "claimed", "unknown"]
Part = tuple[str, str, tuple[int, ...], int]
HEAD_WIDTHS = (32, 64, 72, 80, 96, 112, 128, 192, 256)
"""Widths of a head that published models have; another one is not guessed from shapes alone."""
WIDTH_NAMES = ("hidden_size", "d_model", "n_embd", "dim", "n_embed", "width", "inner_dim")
HEADS_NAMES = ("num_attention_heads", "n_head", "num_heads", "n_heads")
GROUPS_NAMES = ("num_key_value_heads", "n_local_heads", "num_kv_heads", "n_kv_heads")
NORM = re.compile(r"norm|(^|\.)ln_?\w*(\.|$)", re.IGNORECASE)
PER_HEAD_NORM = re.compile(r"(^|[._])(q|k|query|key)_?(layer)?_?norm|norm_(q|k)$|(q|k)_ln", re.IGNORECASE)
MODULATION = re.compile(r"adaln|modulation|scale_shift|ada_?norm", re.IGNORECASE)
RECURRENT = re.compile(r"A_log|conv1d|dt_bias|dt_proj|ssm", re.IGNORECASE)
RELATIVE = re.compile(r"relative_attention_bias", re.IGNORECASE)
SINKS = re.compile(r"(^|\.)sinks$")
ADAPTER = re.compile(r"lora_|adapter", re.IGNORECASE)
QUANTIZED = re.compile(r"weight_packed|qweight|qzeros|absmax|weight_scale|\.scales$|\.SCB$")
EXPERTS = re.compile(r"experts?\b", re.IGNORECASE)
SCALE = re.compile(r"layer_?scale|(^|[._])(gamma|ls)_?\d*(\.|$)|layer_scalar|residual_scale", re.IGNORECASE)
NAMES_SHOWN = 4
"""Names that a reason lists at most."""


@dataclass(frozen=True)
class Fact:
    """One statement: what, its value, how sure it is, and why; for what is unknown, the values that shapes
    allow."""

    what: str
    value: Any
    how: Certainty
    why: str


def width_of(
    parts: Iterable[Part], tables: Iterable[tuple[int, ...]], config: Mapping[str, Any] | None
) -> Fact | None:
    """The width of the stream: the size that norms, matrices and a token table have in common."""
    parts = list(parts)
    vectors = [(name.removesuffix(".weight"), shape[0]) for name, _, shape, _ in parts if len(shape) == 1]
    norms = Counter(size for name, size in vectors if NORM.search(name) and not PER_HEAD_NORM.search(name))
    whole = [shape for name, _, shape, _ in parts if len(shape) == 2 and not ADAPTER.search(name)]
    sides = Counter(size for shape in whole for size in set(shape))
    if not sides:
        return None
    columns = {shape[1] for shape in tables}
    stated = _stated(config, WIDTH_NAMES)
    shared = [size for size in columns if size in norms] or [size for size in columns if size in sides]
    likely = max(shared, key=lambda size: (norms[size], sides[size]), default=0)
    best = likely or (norms.most_common(1)[0][0] if norms else sides.most_common(1)[0][0])
    if stated == best:
        return Fact("width", best, "certain", "config.json says so and the shapes bear it out")
    why = "a table's columns are the norms' size" if likely else "the size that most norms or matrices share"
    return Fact(
        "width",
        best,
        "inferred",
        why + (f"; config.json says {stated}, which no shape bears out" if stated else ""),
    )


def block_facts(parts: Iterable[Part], width: int, config: Mapping[str, Any] | None) -> tuple[Fact, ...]:
    """Attention, heads, MLP and the rest of one block."""
    parts = list(parts)
    roles: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, role, shape, each in parts:
        if len(shape) >= 2 and not NORM.search(name):
            roles.setdefault(role, (shape, each))
    named = [name for name, *_ in parts]
    return tuple(
        fact
        for fact in (
            *_attention(roles, parts, width, config),
            *_norms_and_biases(parts, width),
            *_mlp(roles, named, width),
            *_others(named),
        )
        if fact
    )


def section(config: Mapping[str, Any] | None, path: str) -> Mapping[str, Any] | None:
    """What a configuration says of one stack: the section that its path speaks of, else the text model's or
    the whole.

    Under `encoder_attention_heads` and the like only the side that the path names is meant.
    """
    if config is None:
        return None
    parts = {name.removesuffix("_config"): value for name, value in config.items() if isinstance(value, dict)}
    named = next((value for name, value in parts.items() if name in re.split(r"[._]", path)), None)
    chosen = dict(named if named is not None else parts.get("text", {}) or config)
    for side, other in (("encoder", "decoder"), ("decoder", "encoder")):
        if side in path.split("."):
            own = {n.removeprefix(f"{side}_"): v for n, v in chosen.items() if n.startswith(f"{side}_")}
            chosen = {
                **{n: v for n, v in chosen.items() if not n.startswith((f"{side}_", f"{other}_"))},
                **own,
            }
            if "attention_heads" in own:
                chosen["num_attention_heads"] = own["attention_heads"]
    return chosen


def _stated(config: Mapping[str, Any] | None, names: Iterable[str]) -> int | None:
    """What a section of a configuration says under one of these names."""
    for name in names:
        value = (config or {}).get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _outer(shape: tuple[int, ...], width: int) -> int:
    """The side of a matrix that is not the width: its outputs, whichever side they stand on; squares give the
    width."""
    return shape[-2] if shape[-1] == width else shape[-1]


def _attention(
    roles: Mapping[str, tuple[tuple[int, ...], int]],
    parts: list[Part],
    width: int,
    config: Mapping[str, Any] | None,
) -> Iterable[Fact]:
    """How queries, keys and values are kept, and how many heads there are."""
    if "q" in roles and "k" in roles:
        query, key = (_outer(roles[name][0], width) for name in "qk")
        output = _outer(roles["o"][0], width) if "o" in roles else query
        gated = query == 2 * output
        query = output if gated else query
        yield Fact(
            "attention",
            f"separate q{' with a gate as wide' if gated else ''}, k, v",
            "inferred",
            "by names and rows",
        )
    elif "qkv" in roles:
        rows = _outer(roles["qkv"][0], width)
        query = _outer(roles["o"][0], width) if "o" in roles else width
        key = (rows - query) // 2
        if key <= 0 or query + 2 * key != rows:
            yield Fact(
                "attention",
                f"packed q, k, v of {rows:,} rows",
                "inferred",
                "by names; how it divides is unknown",
            )
            return
        yield Fact(
            "attention",
            f"packed q, k, v: {query:,} + {key:,} + {key:,} rows",
            "inferred",
            "by the output matrix",
        )
    else:
        return
    yield from _heads(query, key, parts, config)


def _heads(query: int, key: int, parts: list[Part], config: Mapping[str, Any] | None) -> Iterable[Fact]:
    """Number and width of heads, where a norm, a bias or a configuration tells; else the values that are
    possible."""
    if query % key == 0 and query != key:
        yield Fact(
            "queries for each key", query // key, "inferred", f"{query:,} rows of queries, {key:,} of keys"
        )
    witness = _witness(query, key, parts)
    stated, stated_groups = _stated(config, HEADS_NAMES), _stated(config, GROUPS_NAMES)
    if witness is not None:
        heads, why = witness
        sure: Certainty = "certain" if stated == heads else "inferred"
        why = "config.json says so and the shapes bear it out" if stated == heads else why
        yield Fact("heads", heads, sure, why)
        yield Fact("width of a head", query // heads, sure, why)
        yield Fact("key/value heads", key // (query // heads), sure, why)
        return
    if (
        stated
        and query % stated == 0
        and key % (query // stated) == 0
        and stated_groups in (None, key // (query // stated))
    ):
        why = "config.json says so and the shapes allow it"
        yield Fact("heads", stated, "inferred", why)
        yield Fact("width of a head", query // stated, "inferred", why)
        yield Fact("key/value heads", key // (query // stated), "inferred", why)
        return
    possible = [size for size in HEAD_WIDTHS if query % size == 0 and key % size == 0 and query > size]
    listed = "; ".join(f"{query // size} of {size}" for size in possible)
    why = f"shapes allow {listed}" if listed else "no shape tells"
    groups = f" with {stated_groups} key/value heads" if stated_groups else ""
    denied = f"; config.json says {stated}{groups}, which the shapes cannot have" if stated else ""
    yield Fact("heads", None, "unknown", why + denied)


def _witness(query: int, key: int, parts: list[Part]) -> tuple[int, str] | None:
    """The number of heads by a tensor that has one value for each, or norms of queries and keys as wide as
    one."""
    norms = {
        name: shape[0]
        for name, _, shape, _ in parts
        if len(shape) == 1 and PER_HEAD_NORM.search(name.removesuffix(".weight"))
    }
    width = next(iter(norms.values()), 0)
    if len(set(norms.values())) == 1 and width < query and query % width == 0 and key % width == 0:
        return query // width, f"{next(iter(norms))} is as wide as one head"
    for name, _, shape, _ in parts:
        if RELATIVE.search(name) and len(shape) == 2 and query % shape[1] == 0:
            return shape[1], f"{name} has a column for each head"
        if SINKS.search(name) and len(shape) == 1 and query % shape[0] == 0:
            return shape[0], f"{name} has a number for each head"
    return None


def _norms_and_biases(parts: list[Part], width: int) -> Iterable[Fact]:
    """Norms of queries and keys, the block's own norms, biases, scales of what a branch adds, and how wide
    another stack's states are that are attended to."""
    vectors = [name for name, _, shape, _ in parts if len(shape) == 1]
    matrices = [(name, shape) for name, _, shape, _ in parts if len(shape) == 2 and not NORM.search(name)]
    plain = [name.removesuffix(".weight").removesuffix(".bias") for name in vectors]
    heads = [name for name in plain if PER_HEAD_NORM.search(name)]
    if any(role in ("q", "k", "qkv") for _, role, _, _ in parts):
        value, why = ("present", f"{heads[0]}") if heads else ("absent", "no tensor of such a name")
        yield Fact("norms of queries and keys", value, "inferred", why)
    norms = list(dict.fromkeys(n for n in plain if NORM.search(n) and not PER_HEAD_NORM.search(n)))
    if norms:
        shifted = any(f"{name}.bias" in vectors for name in norms)
        kind = "with a shift, as layer norms" if shifted else "without a shift, as root-mean-square norms"
        yield Fact("norms", f"{len(norms)}, {kind}", "inferred", ", ".join(norms[:NAMES_SHOWN]))
    biased = [name.removesuffix(".weight") for name, _ in matrices]
    biased = [name.rpartition(".")[2] for name in biased if f"{name}.bias" in vectors]
    yield Fact("biases", ", ".join(dict.fromkeys(biased)) or "none", "certain", "counted")
    scales = [name for name in vectors if SCALE.search(name)]
    if scales:
        yield Fact("scales of a branch", ", ".join(scales[:NAMES_SHOWN]), "inferred", "by names")
    memory = next((shape for name, role, shape, _ in parts if role == "cross_k" and len(shape) == 2), None)
    if memory is not None:
        same = "as wide as this stack" if memory[1] == width else "of another width"
        yield Fact(
            "width of what is attended to", memory[1], "inferred", f"columns of the keys' matrix, {same}"
        )


def _mlp(roles: Mapping[str, tuple[tuple[int, ...], int]], names: list[str], width: int) -> Iterable[Fact]:
    """Neurons, gate, experts."""
    experts = [name for name in names if EXPERTS.search(name)]
    down = roles.get("down")
    gated = "gate" in roles or "gate_up" in roles
    if down is None:
        return
    shape, each = down
    count = shape[0] if len(shape) == 3 else each
    neurons = _outer(shape, width)
    if experts and count > 1:
        yield Fact("experts", count, "certain", "counted")
    yield Fact("neurons", neurons, "inferred", "the other side of the MLP's last matrix")
    yield Fact(
        "MLP",
        "gated" if gated else "plain",
        "inferred",
        "a gate's matrix stands beside" if gated else "no gate's matrix",
    )


def _others(names: list[str]) -> Iterable[Fact]:
    """What else the names speak of."""
    for what, pattern, why in (
        ("modulation", MODULATION, "a condition shifts and scales the norms, as in diffusion transformers"),
        ("recurrent mixer", RECURRENT, "decay and convolution of a state-space or linear-attention block"),
        ("quantized", QUANTIZED, "codes and scales in place of weights: the shapes are those of the codes"),
        ("adapters", ADAPTER, "low-rank matrices beside the weights"),
    ):
        found = next((name for name in names if pattern.search(name)), "")
        if found:
            yield Fact(what, found, "inferred", why)
    if any(
        "cross" in name.lower() or "encdec" in name.lower() or "encoder_attn" in name.lower()
        for name in names
    ):
        yield Fact("cross-attention", "to another stack", "inferred", "by names")
