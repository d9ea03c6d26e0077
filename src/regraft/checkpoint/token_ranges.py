"""The ids of a folder's own tokenizer.json, without opening it as a tokenizer: ordinary, special and added
tokens by range, long runs of numbered tokens, and rows of a table that no token has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from regraft.checkpoint.shapes import Fact

NUMBERED = re.compile(r"^(.*?)(\d+)(\D*)$", re.DOTALL)
SHORTEST_RUN, SHOWN = 16, 4
"""Tokens in a row, numbered in order, that are told as one run; and how many runs are told."""


def token_facts(tokenizer: Mapping[str, Any] | None, tables: Mapping[str, int]) -> tuple[Fact, ...]:
    """Every statement about the ids; nothing where there is no tokenizer.json or its kind is not known.

    Args:
        tokenizer: what tokenizer.json holds.
        tables: rows of every token table, by name.
    """
    if tokenizer is None:
        return ()
    ordinary = _ordinary(tokenizer.get("model"))
    added = [one for one in tokenizer.get("added_tokens") or [] if isinstance(one, dict) and "id" in one]
    special = {one["id"]: str(one.get("content", "")) for one in added if one.get("special")}
    others = {one["id"]: str(one.get("content", "")) for one in added if not one.get("special")}
    every = {**ordinary, **others, **special}
    if not every:
        return ()
    plain = set(ordinary) - set(special) - set(others)
    why = "counted in tokenizer.json"
    facts = [
        Fact(f"{what} tokens", f"{len(ids):,}: {ranges(ids)}", "certain", why)
        for what, ids in (("ordinary", plain), ("special", set(special)), ("added", set(others)))
        if ids
    ]
    for count, start, first, last in _runs(every):
        told = f"{count:,}: {first} to {last}, ids {start:,} to {start + count - 1:,}"
        facts.append(Fact("numbered tokens", told, "certain", why))
    highest = max(every)
    for name, rows in tables.items():
        if rows > highest + 1:
            spare = f"{rows - highest - 1:,} of {rows:,}"
            facts.append(Fact(f"rows of {name} beyond the tokenizer", spare, "certain", why))
    return tuple(facts)


def ranges(ids: Iterable[int]) -> str:
    """Ids as ranges without gaps: `0 to 9, 12`; beyond four of them the first and the last."""
    ordered = sorted(ids)
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    told = [f"{a:,} to {b:,}" if a != b else f"{a:,}" for a, b in zip(starts, ends, strict=True)]
    if len(told) > SHOWN:
        return f"{len(told):,} ranges between {ordered[0]:,} and {ordered[-1]:,}"
    return ", ".join(told)


def _ordinary(model: Any) -> dict[int, str]:
    """Ids of the tokenizer's own model: a table of words, or a list of pieces with scores."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return {index: word for word, index in vocabulary.items() if isinstance(index, int)}
    if isinstance(vocabulary, list):
        return {
            index: str(pair[0]) for index, pair in enumerate(vocabulary) if isinstance(pair, list) and pair
        }
    return {}


def _runs(every: Mapping[int, str]) -> Iterator[tuple[int, int, str, str]]:
    """The longest runs of ids whose tokens differ in a number that grows by one: length, first id, first and
    last token."""
    runs: list[list[int]] = []
    before: tuple[int, str, int, str] | None = None
    for index in sorted(every):
        found = NUMBERED.match(every[index])
        now = (index, found[1], int(found[2]), found[3]) if found else None
        follows = (
            now is not None
            and before is not None
            and now == (before[0] + 1, before[1], before[2] + 1, before[3])
        )
        if follows:
            runs[-1].append(index)
        elif now is not None:
            runs.append([index])
        before = now
    for run in sorted(runs, key=len, reverse=True)[:SHOWN]:
        if len(run) >= SHORTEST_RUN:
            yield len(run), run[0], every[run[0]], every[run[-1]]
