"""`ulz`: matches in a window, byte-aligned tokens, made to be unpacked fast (METHODS.md, section 8).

The tokens are told in `ulz_kernels`. Levels 1 (the last place alone) to 8 look at ever longer chains; level 9
finds the parse of fewest bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.codecs.block_stream import Prepared, UnpackBlock, prepared_blocks
from regraft.codecs.frame import DamagedFileError
from regraft.codecs.ulz_kernels import SLACK, decoded, encoded_best, encoded_fast, encoded_lazy

BLOCK = 1 << 22
"""Bytes of a block."""
BEST = 9
"""The level that looks for the parse of fewest bytes."""
LEVEL = 5
"""Unless another is asked for."""
WINDOW, WIDE_WINDOW = 17, 22
"""Two to this power is the largest distance, unless another is asked for: at levels up to 8, and at 9, where
it is a whole block."""
WINDOWS = (10, 24)
"""The smallest and the largest."""
DEPTHS = {2: 2, 3: 4, 4: 8, 5: 16, 6: 32, 7: 64, 8: 256, 9: 64}
"""How many places of a chain a level looks at."""
_BITS = (8, 17)
"""Of a hash: the fewest, and the most. More are slower to reach than they are of use."""
_FAST_BITS = 14
"""The most at level 1, whose table then stays in the first cache."""


def prepared(
    level: int = LEVEL, window: int | None = None, block_size: int | None = None, workers: int | None = None
) -> Prepared:
    """The codec with its options.

    Raises:
        ValueError: one is not possible.
    """
    if not 1 <= level <= BEST:
        raise ValueError(f"--level {level} of ulz is no number from 1 to 9")
    if window is not None and not WINDOWS[0] <= window <= WINDOWS[1]:
        raise ValueError(f"--window {window} is no power from {WINDOWS[0]} to {WINDOWS[1]}")
    return prepared_blocks(pack_block, BLOCK, block_size, workers, level=level, window=window)


def opened(_parameters: dict[str, Any]) -> UnpackBlock:
    """What unpacks blocks: they need no parameters."""
    return unpack_block


def pack_block(raw: bytes, level: int = LEVEL, window: int | None = None) -> bytes:
    """A block packed, at worst a little longer than it was."""
    window = window or (WINDOW if level < BEST else WIDE_WINDOW)
    length = len(raw)
    data = np.zeros(length + SLACK, np.uint8)
    data[:length] = np.frombuffer(raw, np.uint8)
    out = np.empty(length + (length >> 6) + 64, np.uint8)
    bits = min(_FAST_BITS if level == 1 else _BITS[1], max(_BITS[0], length.bit_length()))
    if level == 1:
        written = encoded_fast(data, length, bits, 1 << window, out)
    elif level < BEST:
        written = encoded_lazy(data, length, bits, 1 << window, DEPTHS[level], out)
    else:
        written = encoded_best(data, length, bits, 1 << window, DEPTHS[level], out)
    return out[:written].tobytes()


def unpack_block(stored: bytes, raw: int) -> bytes:
    """A block of `raw` bytes.

    Raises:
        DamagedFileError: it is none.
    """
    out = np.empty(raw + SLACK, np.uint8)
    if not decoded(np.frombuffer(stored + b"\0" * 8, np.uint8), out):
        raise DamagedFileError("a block's tokens do not make up its length: the file is damaged")
    return out[:raw].tobytes()
