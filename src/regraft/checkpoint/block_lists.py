"""Lists of numbered blocks in a checkpoint's names, and which list every tensor belongs to."""

from __future__ import annotations

import re
from collections import Counter

from regraft.checkpoint.census import owner
from regraft.checkpoint.headers import Entry
from regraft.checkpoint.roles import role_of

NUMBER = re.compile(r"[0-9]{1,6}")
ATTENDS = frozenset({"q", "k", "v", "qkv", "cross_q", "cross_qkv"})
PRESENT, ALIKE = 0.6, 0.5
"""A list is one of blocks where 60% of its numbers are there and half of the names in more than one."""
Lists = dict[str, dict[int, dict[str, list[Entry]]]]
"""Tensors by list, block, and name inside the block."""


def numbered(entries: list[Entry]) -> tuple[Lists, list[Entry]]:
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


def inside(lists: Lists) -> dict[str, str]:
    """The name inside its block of every tensor of a list."""
    return {
        entry.name: name
        for blocks in lists.values()
        for block in blocks.values()
        for name, some in block.items()
        for entry in some
    }


def owners(entries: dict[str, Entry], lists: Lists, largest: str) -> dict[str, str]:
    """The stack that every tensor belongs to: its own, or the one whose path it shares most with."""
    own = {
        entry.name: path
        for path, blocks in lists.items()
        for block in blocks.values()
        for some in block.values()
        for entry in some
    }
    return {name: own.get(name) or owner(name, [*lists], largest) for name in entries}
