"""Sizes of memory as people write and read them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def bytes_of(text: str | int) -> int:
    """How many bytes a size means: `3GiB`, `800 MiB`, `12G`, or a number of bytes.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is no size of memory: write 3GiB, 800MiB or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def in_words(count: int) -> str:
    """A number of bytes as people read it."""
    for unit in ("TiB", "GiB", "MiB"):
        size = 1 << {"TiB": 40, "GiB": 30, "MiB": 20}[unit]
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,} bytes"
