"""`bpez`: the most frequent pairs of bytes replaced by values that do not occur, then zlib (METHODS.md,
section 8).

A packed block is one zlib stream (level 9) of: how many replacements (one byte), their headers, newest first,
each high, low, value, then the bytes that are left. Blocks behind each other without our frame are the bare
format that `--raw` writes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from regraft.codecs.block_stream import Prepared, UnpackBlock, prepared_blocks
from regraft.codecs.bpez_kernels import SLACK, expanded, merged
from regraft.codecs.frame import DamagedFileError, TooLargeError

BLOCK = 1 << 20
"""Bytes of a block."""
CYCLES = 64
"""Replacements of a block, at most."""
MOST_CYCLES = 255
"""More have no place in the byte that counts them, and there are no more values."""
LEVEL = 9
"""Of zlib."""
_FRONT = 1 + 3 * MOST_CYCLES
"""Bytes that headers take at most."""


def prepared(cycles: int = CYCLES, block_size: int | None = None, workers: int | None = None) -> Prepared:
    """The codec with its options.

    Raises:
        ValueError: one is not possible.
    """
    if not 0 <= cycles <= MOST_CYCLES:
        raise ValueError(f"--cycles {cycles} is no number from 0 to {MOST_CYCLES}")
    return prepared_blocks(pack_block, BLOCK, block_size, workers, cycles=cycles)


def opened(_parameters: dict[str, Any]) -> UnpackBlock:
    """What unpacks blocks: they need no parameters."""
    return unpack_block


def pack_block(raw: bytes, cycles: int = CYCLES) -> bytes:
    """A block packed."""
    data = np.frombuffer(raw, np.uint8).copy()
    headers = np.zeros(3 * MOST_CYCLES, np.uint8)
    length, made = merged(data, cycles, headers)
    newest_first = headers[: 3 * made].reshape(made, 3)[::-1]
    return zlib.compress(bytes([made]) + newest_first.tobytes() + data[:length].tobytes(), LEVEL)


def unpack_block(stored: bytes, raw: int) -> bytes:
    """A block of `raw` bytes.

    Raises:
        DamagedFileError: it is none.
    """
    opened = zlib.decompressobj()
    try:
        content = opened.decompress(stored, raw + _FRONT + 1)
    except zlib.error as error:
        raise DamagedFileError(f"a block is no zlib stream ({error}): the file is damaged") from error
    if not opened.eof or opened.unused_data or len(content) > raw + _FRONT:
        raise DamagedFileError("a block's zlib stream is cut, or too long: the file is damaged")
    return _expanded(content, raw)


def _expanded(content: bytes, raw: int) -> bytes:
    made = content[0] if content else 0
    if len(content) < 1 + 3 * made:
        raise DamagedFileError("a block ends inside its headers: the file is damaged")
    headers = np.frombuffer(content, np.uint8, 3 * made, 1).reshape(made, 3)[::-1].reshape(-1)
    out = np.empty(raw + SLACK, np.uint8)
    if not expanded(
        np.frombuffer(content, np.uint8, offset=1 + 3 * made), np.ascontiguousarray(headers), out
    ):
        raise DamagedFileError("a block's headers do not make up its length: the file is damaged")
    return out[:raw].tobytes()


def length_of(content: bytes) -> int:
    """Bytes that a block's content stands for: what the bare format does not tell.

    Raises:
        DamagedFileError: it ends inside its headers.
    """
    made = content[0] if content else 0
    if not content or len(content) < 1 + 3 * made:
        raise DamagedFileError("a block ends inside its headers: the file is damaged")
    lengths = [1] * 256
    for at in range(1 + 3 * (made - 1), 0, -3):
        high, low, fresh = content[at : at + 3]
        lengths[fresh] = lengths[high] + lengths[low]
    counts = np.bincount(np.frombuffer(content, np.uint8, offset=1 + 3 * made), minlength=256)
    return sum(int(count) * length for count, length in zip(counts, lengths, strict=True))


def unpack_bare(pieces: Iterator[bytes], largest: int) -> Iterator[bytes]:
    """The blocks of a bare file, given piece by piece.

    The bare format has no checksum of its own and tells no lengths: zlib's are looked at, and a block that
    would be larger than `largest` bytes is refused.

    Raises:
        DamagedFileError: a block is none, or the file is cut.
        TooLargeError: a block is larger.
    """
    rest = b""
    opened, content = zlib.decompressobj(), b""
    # a stream that was given anything is open until its end: also where nothing came out of it yet
    fed, blocks = False, 0
    for piece in pieces:
        rest += piece
        fed = fed or bool(rest)
        while rest:
            try:
                content += opened.decompress(rest, largest + _FRONT - len(content) + 1)
            except zlib.error as error:
                raise DamagedFileError(f"this is no bare file of bpez ({error})") from error
            if len(content) > largest + _FRONT:
                raise TooLargeError(f"a block holds more than {largest:,} bytes: raise --block-size")
            rest = opened.unused_data if opened.eof else opened.unconsumed_tail
            if opened.eof:
                raw = length_of(content)
                if raw > largest:
                    raise TooLargeError(
                        f"a block unpacks to {raw:,} bytes, of {largest:,}: raise --block-size"
                    )
                yield _expanded(content, raw)
                opened, content = zlib.decompressobj(), b""
                fed, blocks = bool(rest), blocks + 1
    if fed or not blocks:
        raise DamagedFileError("the file ends inside a block: it is cut or damaged")
