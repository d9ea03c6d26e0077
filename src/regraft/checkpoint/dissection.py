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
from pathlib import Path
from typing import Any, Literal

from regraft.checkpoint.block_lists import inside, numbered, owners
from regraft.checkpoint.census import CensusLine, census
from regraft.checkpoint.claims import claims
from regraft.checkpoint.headers import Entry, Headers, is_pickle, read_headers
from regraft.checkpoint.locate import CheckpointError
from regraft.checkpoint.outside_blocks import outside_facts
from regraft.checkpoint.pickle_shapes import pickle_entries
from regraft.checkpoint.roles import role_of
from regraft.checkpoint.shapes import Fact, block_facts, section, width_of
from regraft.checkpoint.token_ranges import token_facts

Use = Literal["token table", "position table", "type table", "norm", "head", "other"]
TABLE = re.compile(r"emb|wte|wpe|shared|codebook", re.IGNORECASE)
NO_TABLE = re.compile(r"time|patch|proj|linear|\.\d+$", re.IGNORECASE)
POSITION = re.compile(r"pos|wpe", re.IGNORECASE)
TYPE = re.compile(r"type", re.IGNORECASE)
NORM = re.compile(r"norm|(^|\.)ln_?\w*(\.|$)", re.IGNORECASE)
HEAD = re.compile(r"lm_head|output|head|decoder$|classifier|unembed|embed_out", re.IGNORECASE)
RARE, LEAST_ROWS = 0.15, 8
"""A kind of block is an exception where at most 15% are of it; a matrix of up to 8 rows is a small one."""


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
    census: tuple[CensusLine, ...] = field(default=())
    others: dict[str, int] = field(default_factory=dict)
    """Bytes of every other file."""


def dissect(source: str, pickle_shapes: bool = False) -> list[Component]:
    """The anatomy of a folder, specimen or hub id, one component for each folder that holds weights.

    Args:
        source: where the checkpoint is.
        pickle_shapes: tell the tensors of a local folder's pickles too, one component for each; nothing in
            them is executed.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    found = read_headers(source)
    pickled = pickled_headers(source, found) if pickle_shapes else []
    return [component(headers) for headers in [*found, *pickled]]


def pickled_headers(source: str, found: list[Headers]) -> list[Headers]:
    """What the pickles beside the weights hold, one set of headers for each."""
    root = Path(source).expanduser()
    if not root.is_dir():
        raise CheckpointError(f"{source} is no folder here: --pickle-shapes reads a downloaded folder")
    files = [file for headers in found for file in headers.others if is_pickle(file)]
    note = "told by a pickle's own list, nothing of which was executed"
    return [Headers(file, pickle_entries(root / file), None, [note]) for file in files]


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
    largest = max(stacks, key=lambda stack: stack.parameters).path if stacks else ""
    belongs = owners(entries, lists, largest)
    tables = {o.name: o.shape[0] for o in outside if o.use.endswith("table")}
    experts = any(fact.what == "experts" for stack in stacks for kind in stack.kinds for fact in kind.facts)
    facts = (
        *_totals(entries, stacks),
        *_tying(outside, stacks, headers.config, belongs),
        *_vocabulary(outside, stacks),
        *outside_facts(rest, _widths(stacks), headers.config),
        *claims(headers.config, tables, experts),
        *token_facts(headers.tokenizer, _vocabulary_rows(outside)),
    )
    size = sum(entry.bytes for entry in entries.values())
    counted = census(list(entries.values()), inside(lists), belongs, {o.name: o.use for o in outside})
    assert sum(line.bytes for line in counted) == size, "every tensor stands in one line"
    others = dict(sorted(headers.others.items()))
    parameters = facts[0].value
    return Component(
        headers.part, stacks, outside, facts, parameters, size, dict(dtypes), tuple(odd), counted, others
    )


def _widths(stacks: tuple[StackFound, ...]) -> set[int]:
    """Widths of all stacks."""
    facts = [fact for stack in stacks for kind in stack.kinds for fact in kind.facts]
    return {fact.value for fact in facts if fact.what == "width"}


def _vocabulary_rows(outside: tuple[Outside, ...]) -> dict[str, int]:
    """Rows of the largest token table: the others hold codes or the like."""
    tables = [o for o in outside if o.use == "token table"]
    return {max(tables, key=lambda o: o.shape[0]).name: max(o.shape[0] for o in tables)} if tables else {}


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
    outside: tuple[Outside, ...],
    stacks: tuple[StackFound, ...],
    config: dict[str, Any] | None,
    belongs: Mapping[str, str],
) -> tuple[Fact, ...]:
    """The head of every stack that has a token table; where one alone has, it needs no name."""
    by_owner: dict[str, list[Outside]] = {}
    for one in outside:
        by_owner.setdefault(belongs[one.name], []).append(one)
    having = [path for path, some in by_owner.items() if any(o.use == "token table" for o in some)]
    if len(having) <= 1:
        return _head(outside, stacks, config)
    return tuple(
        replace(fact, what=f"head of {path}")
        for path in having
        for fact in _head(tuple(by_owner[path]), stacks, config)
    )


def _head(
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
