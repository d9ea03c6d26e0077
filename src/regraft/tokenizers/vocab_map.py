"""Which token of one vocabulary is which of another: by the same bytes, and special tokens by their role.

Shapes: V new tokens.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.core.progress import advance
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.tokenizer_folder import ROLES

KIN = {
    "bos_token": ("bos_token", "cls_token", "eos_token"),
    "eos_token": ("eos_token", "sep_token", "bos_token"),
    "pad_token": ("pad_token", "eos_token", "sep_token"),
    "unk_token": ("unk_token", "mask_token"),
    "sep_token": ("sep_token", "eos_token"),
    "cls_token": ("cls_token", "bos_token"),
    "mask_token": ("mask_token", "unk_token"),
}
"""For each role of a special token, the roles whose row it takes over, the first that the old tokenizer
has."""


@dataclass(frozen=True)
class Matching:
    """For every new id the old id whose rows it takes over, or -1; and the new ids of text that need rows of
    their own."""

    source_V: np.ndarray
    missing: np.ndarray

    @property
    def shared(self) -> int:
        """Tokens that take rows over."""
        return int((self.source_V >= 0).sum())


def match(old: ByteIds, new: ByteIds) -> Matching:
    """Match two vocabularies. Of several old tokens with a token's bytes the one of the same name comes
    first.

    New special tokens without a counterpart, by role or by name, get no old row and are not text: they get
    the mean row.
    """
    named = _names(old)
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for number, (content, kind) in enumerate(zip(old.table.bytes_V, old.table.kind_V, strict=True)):
        if kind == "text":
            by_content[content].append(number)
    roles = _by_role(old, new)
    source_V = np.full(len(new.table), -1, np.int64)
    missing: list[int] = []
    for number, name in _names(new, by_number=True).items():
        if number % 4096 == 0:
            advance("matching tokens", number, len(new.table))
        kind, content = new.table.kind_V[number], new.table.bytes_V[number]
        if kind == "special":
            same = named.get(name, -1)
            source_V[number] = (
                same if same >= 0 and old.table.kind_V[same] == "special" else roles.get(number, -1)
            )
        elif found := by_content.get(content):
            source_V[number] = named[name] if named.get(name) in found else found[0]
        else:
            missing.append(number)
    return Matching(source_V, np.array(missing, np.int64))


def _names(reader: ByteIds, by_number: bool = False) -> dict[Any, Any]:
    vocabulary = reader.tokenizer.get_vocab()
    return (
        {number: name for name, number in sorted(vocabulary.items(), key=lambda one: one[1])}
        if by_number
        else vocabulary
    )


def _by_role(old: ByteIds, new: ByteIds) -> dict[int, int]:
    """Old ids of the new special tokens that have a role; where one token has several roles the first
    counts."""
    found: dict[int, int] = {}
    for role in ROLES:
        number = getattr(new.tokenizer, f"{role}_id")
        if number is None or number in found:
            continue
        for kin in KIN[role]:
            if (theirs := getattr(old.tokenizer, f"{kin}_id")) is not None:
                found[number] = theirs
                break
    return found
