"""The published way of `bpez`, written anew in plain Python: pairs counted afresh in every cycle."""

from __future__ import annotations

import zlib
from collections import Counter
from itertools import pairwise

CYCLES, BLOCK, FEWEST = 64, 1 << 20, 3


def pack_block(data: bytes) -> bytes:
    """Replace the most frequent pair until none occurs three times or no value is unused, then zlib."""
    headers = b""
    for made in range(CYCLES + 1):
        counts = Counter(pairwise(data))
        unused = set(range(256)) - set(data)
        (pair, count), *_ = counts.most_common(1) or [((0, 0), 0)]
        if made == CYCLES or count < FEWEST or not unused:
            break
        fresh = bytes([min(unused)])
        data = data.replace(bytes(pair), fresh)
        headers = bytes(pair) + fresh + headers
    return zlib.compress(bytes([len(headers) // 3]) + headers + data, 9)


def compress(data: bytes) -> list[bytes]:
    """All blocks packed."""
    return [pack_block(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
