"""The anatomy of a checkpoint from its headers alone: parts, repeated blocks, widths, heads, tables,
parameters, what is odd.

What is counted is certain, what follows from names and shapes is inferred, and what shapes cannot tell is
unknown, with the values that they allow. A config.json, where there is one, is a witness: what it says and
the shapes bear out is certain.
Shapes: D width, H heads, G key/value heads, K width of a head, F neurons, V vocabulary, E experts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from regraft.checkpoint.headers import Entry, Headers, read_headers
from regraft.checkpoint.roles import role_of
from regraft.checkpoint.shapes import Fact, block_facts, section, width_of

Use = Literal["token table", "position table", "type table", "norm", "head", "other"]
TABLE = re.compile(r"emb|wte|wpe|shared|codebook", re.IGNORECASE)
NO_TABLE = re.compile(r"time|patch|proj|linear|\.\d+$", re.IGNORECASE)
POSITION = re.compile(r"pos|wpe", re.IGNORECASE)
TYPE = re.compile(r"type", re.IGNORECASE)
NUMBER = re.compile(r"[0-9]{1,6}")
NORM = re.compile(r"norm|(^|\.)ln_?\w*(\.|$)", re.IGNORECASE)
HEAD = re.compile(r"lm_head|output|head|decoder$|classifier|unembed|embed_out", re.IGNORECASE)
ATTENDS = frozenset({"q", "k", "v", "qkv", "cross_q", "cross_qkv"})
PRESENT, ALIKE, RARE, LEAST_ROWS = 0.6, 0.5, 0.15, 8
"""A list is one of blocks where 60% of its numbers are there and half of the names in more than one; a kind
of block is an exception where at most 15% are of it; a matrix of up to 8 rows is a small one."""


@dataclass(frozen=True)
class Tensors:
    """Alike tensors of a block: the name with numbers inside it as #, how many each block has, shape and
    dtype."""

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    each: int


@dataclass(frozen=True)
class Kind:
    """Blocks of one stack that hold the same tensors."""

    blocks: tuple[int, ...]
    tensors: tuple[Tensors, ...]
    parameters: int
    bytes: int
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class StackFound:
    """A list of numbered blocks."""

    path: str
    count: int
    kinds: tuple[Kind, ...]
    parameters: int
    bytes: int
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Outside:
    """A tensor outside the stacks, and what it is taken for."""

    name: str
    use: Use
    shape: tuple[int, ...]
    dtype: str
    parameters: int


@dataclass(frozen=True)
class Component:
    """One folder of weights: its stacks, what stands outside them, facts, totals, and what is odd."""

    name: str
    stacks: tuple[StackFound, ...]
    outside: tuple[Outside, ...]
    facts: tuple[Fact, ...]
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    odd: tuple[str, ...] = field(default=())


def dissect(source: str) -> list[Component]:
    """The anatomy of a folder, specimen or hub id, one component for each folder that holds weights.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    return [component(headers) for headers in read_headers(source)]


def component(headers: Headers) -> Component:
    """The anatomy of one set of headers."""
    entries, odd = headers.entries, list(headers.notes)
    lists, rest = numbered(list(entries.values()))
    tables = [e for e in rest if _use(e).endswith("table")]
    stacks = tuple(
        _stack(path, blocks, tables, headers.config, odd) for path, blocks in sorted(lists.items())
    )
    outside = tuple(
        Outside(e.name, _use(e), e.shape, e.dtype, e.count) for e in sorted(rest, key=lambda e: e.name)
    )
    for entry in entries.values():
        if entry.count == 0:
            odd.append(f"{entry.name} is empty, {_shape(entry.shape)}")
    dtypes = Counter()
    for entry in entries.values():
        dtypes[entry.dtype] += entry.count
    facts = (
        *_totals(entries, stacks),
        *_tying(outside, stacks, headers.config),
        *_vocabulary(outside, stacks),
    )
    size = sum(entry.bytes for entry in entries.values())
    return Component(headers.part, stacks, outside, facts, facts[0].value, size, dict(dtypes), tuple(odd))


def numbered(entries: list[Entry]) -> tuple[dict[str, dict[int, dict[str, list[Entry]]]], list[Entry]]:
    """Tensors by list, block and name inside the block; and those in no list.

    The outermost numbers that count blocks make a list: 0, 1, 2 and so on without many gaps, most blocks with
    tensors of the same names. Numbers inside a block (experts, sublayers) become #.
    """
    left, lists = entries, {}
    for depth in range(4):
        found: dict[str, dict[int, dict[str, list[Entry]]]] = {}
        for entry in left:
            words = entry.name.split(".")
            places = [i for i, word in enumerate(words) if NUMBER.fullmatch(word)]
            if len(places) > depth and places[depth] + 1 < len(words):
                at = places[depth]
                inner = re.sub(r"(?<=\.)\d+(?=\.)", "#", "." + ".".join(words[at + 1 :]))[1:]
                block = found.setdefault(".".join(words[:at]), {}).setdefault(int(words[at]), {})
                block.setdefault(inner, []).append(entry)
        real = {path: blocks for path, blocks in found.items() if _is_list(blocks)}
        lists |= real
        taken = {
            e.name
            for blocks in real.values()
            for block in blocks.values()
            for group in block.values()
            for e in group
        }
        left = [entry for entry in left if entry.name not in taken]
    return lists, left


def _is_list(blocks: dict[int, dict[str, list[Entry]]]) -> bool:
    """Whether numbered groups are blocks: most numbers from 0 on are there, and they hold matrices of
    blocks."""
    highest = max(blocks)
    if len(blocks) < PRESENT * (highest + 1) or (0 not in blocks and 1 not in blocks):
        return False
    names = Counter(name for block in blocks.values() for name in block)
    roles = {role_of(name.removesuffix(".weight")) for name in names}
    if len(blocks) == 1:
        return bool(roles & ATTENDS) and len(names) > 3
    alike = sum(count > 1 for count in names.values()) / len(names)
    return alike >= ALIKE and sum(len(block) for block in blocks.values()) > 2 * len(blocks)


def _stack(
    path: str,
    blocks: dict[int, dict[str, list[Entry]]],
    tables: list[Entry],
    config: dict[str, Any] | None,
    odd: list[str],
) -> StackFound:
    """One list of blocks, its blocks grouped by the tensors that they hold."""
    missing = sorted(set(range(max(blocks) + 1)) - set(blocks))
    if missing:
        odd.append(
            f"{path or 'the list'} has no block {', '.join(map(str, missing[:6]))}, though there is a block"
            f" {max(blocks)}"
        )
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number in sorted(blocks):
        template = tuple(
            sorted(
                (name, group[0].shape, group[0].dtype, len(group)) for name, group in blocks[number].items()
            )
        )
        groups.setdefault(template, []).append(number)
        for name, group in blocks[number].items():
            if len({entry.shape for entry in group}) > 1:
                odd.append(f"{path}.{number}.{name}: alike names with unlike shapes")
    own = section(config, path)
    kinds = tuple(_kind(template, numbers, blocks, tables, own) for template, numbers in groups.items())
    kinds = tuple(_with_heads_of(kind, kinds) for kind in kinds)
    _rare(path, kinds, odd)
    everything = [entry for block in blocks.values() for group in block.values() for entry in group]
    counted = Fact("blocks", len(blocks), "certain", "counted")
    kind_facts = (
        (Fact("kinds of blocks", len(kinds), "certain", "by the tensors that they hold"),)
        if len(kinds) > 1
        else ()
    )
    parameters, size = sum(entry.count for entry in everything), sum(entry.bytes for entry in everything)
    return StackFound(path, len(blocks), kinds, parameters, size, (counted, *kind_facts))


def _kind(
    template: tuple[Any, ...],
    numbers: list[int],
    blocks: dict[int, dict[str, list[Entry]]],
    tables: list[Entry],
    config: Mapping[str, Any] | None,
) -> Kind:
    tensors = tuple(
        Tensors(name, role_of(name.removesuffix(".weight")), shape, dtype, each)
        for name, shape, dtype, each in template
    )
    first = [entry for group in blocks[numbers[0]].values() for entry in group]
    parts = [(t.name, t.role, t.shape, t.each) for t in tensors]
    width = width_of(parts, [table.shape for table in tables], config)
    facts = (width, *block_facts(parts, width.value, config)) if width is not None else ()
    return Kind(tuple(numbers), tensors, sum(e.count for e in first), sum(e.bytes for e in first), facts)


def _with_heads_of(kind: Kind, kinds: tuple[Kind, ...]) -> Kind:
    """The same kind with the heads of another kind of its list, where its own shapes do not tell and queries
    are alike."""

    def queries(one: Kind) -> set[tuple[int, ...]]:
        return {t.shape for t in one.tensors if t.role in ("q", "qkv")}

    if not any(fact.what == "heads" and fact.how == "unknown" for fact in kind.facts):
        return kind
    for other in kinds:
        known = [
            f
            for f in other.facts
            if f.what in ("heads", "width of a head", "key/value heads") and f.how != "unknown"
        ]
        if known and queries(other) == queries(kind):
            told = tuple(
                Fact(f.what, f.value, "inferred", f"as in block {other.blocks[0]} of this list")
                for f in known
            )
            at = next(place for place, fact in enumerate(kind.facts) if fact.what == "heads")
            return replace(kind, facts=(*kind.facts[:at], *told, *kind.facts[at + 1 :]))
    return kind


def _rare(path: str, kinds: tuple[Kind, ...], odd: list[str]) -> None:
    """Blocks that differ from nearly all of their stack, and in what."""
    total = sum(len(kind.blocks) for kind in kinds)
    usual = max(kinds, key=lambda kind: len(kind.blocks))
    for kind in kinds:
        if kind is usual or len(kind.blocks) > RARE * total or total < 8:
            continue
        ours = {(t.name, t.shape, t.dtype, t.each) for t in kind.tensors}
        theirs = {(t.name, t.shape, t.dtype, t.each) for t in usual.tensors}
        names = sorted({name for name, *_ in ours ^ theirs})
        odd.append(f"{path}.{kind.blocks[0]} differs from most blocks of its list in {', '.join(names[:4])}")


def _use(entry: Entry) -> Use:
    """What a tensor outside the stacks is taken for, by its name and number of dimensions."""
    name = entry.name.removesuffix(".weight").removesuffix(".bias")
    if NORM.search(name) and len(entry.shape) < 2:
        return "norm"
    if HEAD.search(name):
        return "head"
    large = len(entry.shape) == 2 and (entry.shape[0] > LEAST_ROWS or bool(TYPE.search(name)))
    if large and TABLE.search(name) and not NO_TABLE.search(name):
        return (
            "position table"
            if POSITION.search(name)
            else "type table"
            if TYPE.search(name)
            else "token table"
        )
    return "other"


def _totals(entries: dict[str, Entry], stacks: tuple[StackFound, ...]) -> tuple[Fact, ...]:
    """Numbers held as floats; those held as integers are told apart (positions, or codes of a quantized
    matrix)."""
    whole = [
        entry for entry in entries.values() if entry.dtype[0] in "IUB" and not entry.dtype.startswith("BF")
    ]
    total = sum(entry.count for entry in entries.values()) - sum(entry.count for entry in whole)
    inside = sum(stack.parameters for stack in stacks)
    found = [
        Fact("parameters", total, "certain", "counted, in floating types"),
        Fact("in blocks", inside, "certain", "counted"),
    ]
    if whole:
        named = f"{whole[0].name}{f' and {len(whole) - 1:,} more' if len(whole) > 1 else ''}"
        found.append(
            Fact("integers", sum(entry.count for entry in whole), "certain", f"in {named}: indices or codes")
        )
    return tuple(found)


def _tying(
    outside: tuple[Outside, ...], stacks: tuple[StackFound, ...], config: dict[str, Any] | None
) -> tuple[Fact, ...]:
    """Whether a head has a matrix of its own, is tied to the token table, or is not there."""
    tables = [o for o in outside if o.use == "token table"]
    heads = [
        o
        for o in outside
        if o.use == "head" and len(o.shape) == 2 and any(o.shape == t.shape for t in tables)
    ]
    stated = config.get("tie_word_embeddings") if config else None
    if not tables or not stacks:
        return ()
    if heads:
        return (
            Fact("head", f"a matrix of its own, {heads[0].name}", "certain", "of the token table's shape"),
        )
    if stated is True:
        return (
            Fact(
                "head",
                "tied to the token table",
                "certain",
                "config.json says so, and there is no other matrix",
            ),
        )
    return (
        Fact(
            "head",
            "tied to the token table, or missing",
            "inferred",
            "no second matrix of the token table's shape",
        ),
    )


def _vocabulary(outside: tuple[Outside, ...], stacks: tuple[StackFound, ...]) -> tuple[Fact, ...]:
    """Rows of every token table."""
    tables = [o for o in outside if o.use == "token table"] if stacks else []
    return tuple(Fact(f"rows of {o.name}", o.shape[0], "certain", f"each of {o.shape[1]:,}") for o in tables)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape) or "one number"
