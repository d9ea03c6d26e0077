"""Questions and answers of JSONL and of rows, without what reads them as tokens.

A line has `conversations` (objects with `value`) or `messages` (objects with `content`), the question first
and the answer second, and perhaps a `domain`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPENS, CLOSES = "<think>", "</think>"
"""What a reasoning trace stands between; a complete one has both, in this order."""
ROUNDING = 1e-6
"""By how much shares written as decimals may miss 1."""


@dataclass(frozen=True)
class Exchange:
    """A question, the answer to it, and the domain that the line names ("" for none)."""

    question: str
    answer: str
    domain: str


def is_chat_file(file: Path) -> bool:
    """Whether the first line of a file is an exchange."""
    if file.suffix != ".jsonl":
        return False
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.strip():
                try:
                    found = json.loads(line)
                except ValueError:
                    return False
                return isinstance(found, dict) and is_exchange(found)
    return False


def is_exchange(row: Mapping[str, Any]) -> bool:
    """Whether an object, or a data set's row, has turns."""
    return bool({"conversations", "messages"} & set(row))


def exchanges_in(file: Path) -> Iterator[Exchange]:
    """Every line's question and answer.

    Raises:
        ValueError: a line is no JSON, or has not two turns with text.
    """
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"line {number} of {file}"
                try:
                    found = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{where} is no JSON: {error}") from error
                yield exchange_of(found, where)


def exchange_of(found: Any, where: str) -> Exchange:
    """The question and the answer of an object.

    Raises:
        ValueError: it has not two turns with text; the sentence says where it stands.
    """
    turns = found.get("conversations", found.get("messages")) if isinstance(found, dict) else None
    if not isinstance(turns, list) or len(turns) < 2:
        raise ValueError(
            f"{where} has no question and answer: write conversations or messages with two turns"
        )
    texts = [turn.get("value", turn.get("content")) if isinstance(turn, dict) else None for turn in turns[:2]]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{where} has a turn without text")
    return Exchange(str(texts[0]), str(texts[1]), str(found.get("domain", "")))


def check_shares(shares: Mapping[str, float]) -> None:
    """Make sure that shares of domains, where there are any, make up the whole.

    Raises:
        ValueError: they do not sum to 1, or one is not above 0.
    """
    if shares and (abs(sum(shares.values()) - 1) > ROUNDING or min(shares.values()) <= 0):
        raise ValueError(f"the shares of the domains sum to {sum(shares.values()):g}: they must sum to 1")
