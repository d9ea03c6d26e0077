"""Words for what numbers say: the one that stands out, where one does, and counts with their nouns.

A sentence names the largest or the smallest of several only where there are several that differ, and never a
number that is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST_LOSS = 5e-4
"""A clean loss below this is written as zero, and a multiple of it says nothing."""
NAMED = 4
"""Names in a sentence before the rest is counted."""


def counted(number: int, noun: str, several: str = "") -> str:
    """1 block, 3 blocks, no blocks."""
    return f"{'no' if number == 0 else f'{number:,}'} {noun if number == 1 else several or noun + 's'}"


def listed(names: Sequence[Any], most: int = NAMED) -> str:
    """a; a and b; a, b and c; of more than `most` the first ones and how many others."""
    words = [str(name) for name in names]
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} others"]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def named_blocks(names: Sequence[Any]) -> str:
    """block a; blocks a and b."""
    return f"block{'s' if len(names) > 1 else ''} {listed(names)}"


def capital(sentence: str) -> str:
    """A sentence with its first letter large."""
    return sentence[:1].upper() + sentence[1:]


def signed(value: float, digits: int = 3) -> str:
    """A change with its sign; one that is written as zero has the sign that zero has."""
    return f"{round(float(value), digits) + 0.0:+.{digits}f}"


def highest(values: Any) -> list[int]:
    """The places of the largest finite value; several where they tie, none where nothing is finite."""
    row = np.asarray(values, dtype=float)
    return np.flatnonzero(row == row[np.isfinite(row)].max()).tolist() if np.isfinite(row).any() else []


def lowest(values: Any) -> list[int]:
    """The places of the smallest finite value; several where they tie, none where nothing is finite."""
    return highest(-np.asarray(values, dtype=float))


def differ(values: Any) -> bool:
    """Whether there are two finite values that are not the same."""
    row = np.asarray(values, dtype=float)
    row = row[np.isfinite(row)]
    return len(row) > 1 and bool(row.min() < row.max())


def not_finite(values: Any, names: Sequence[Any], what: str = "the loss") -> str:
    """A sentence about the blocks without which a number is none; nothing where there are none."""
    broken = [
        name
        for name, value in zip(names, np.asarray(values, dtype=float), strict=True)
        if not np.isfinite(value)
    ]
    return f" With {named_blocks(broken)} {what} is not a finite number." if broken else ""
