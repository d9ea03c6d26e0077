"""Where a stream is cut by what it holds, so that an insertion moves no later cut; and what kind of bytes a
block holds.

A rolling sum over the last 64 bytes decides; it takes a number for every byte value, which are the first
bytes of hashes, so they are the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

import numba
import numpy as np

from regraft.codecs.unaligned import Array

SMALLEST, LARGEST = 1 << 11, 1 << 17
"""Bytes of the smallest and the largest chunk."""
MEAN_BITS = 14
"""Two to this power is how many bytes pass between cuts, on the mean."""
READ = 1 << 22
"""Bytes that are read at once."""
_NUMBERS = np.array(
    [int.from_bytes(hashlib.sha256(bytes([value])).digest()[:8], "little") for value in range(256)], np.uint64
)
_ONE = np.uint64(1)
SPACE, MOVE = 32, 139
"""Bytes: what stands between words, and x86's move between registers."""
SPACES, MOVES, FEW = 3, 5, 1000
"""Letters behind which a space was last seen, from which on it is text; bytes behind which a move was, from
which on it is code; one control character in so many bytes makes it no text."""
_LETTERS = np.array([char in ",." or (char.isascii() and char.isalnum()) for char in map(chr, range(256))])
_CONTROL = np.array(
    [
        char.isascii() and not char.isprintable() and char not in "\t\n\v\f\r\x1b"
        for char in map(chr, range(256))
    ]
)


@numba.njit(cache=True, nogil=True)
def next_cut(data: Array, start: int, numbers: Array) -> int:
    """Where the chunk that begins at `start` ends; at the end of `data` where nothing cuts it before."""
    end = min(data.shape[0], start + LARGEST)
    total = np.uint64(0)
    mask = np.uint64(((1 << MEAN_BITS) - 1) << (64 - MEAN_BITS))
    for at in range(start, end):
        total = (total << _ONE) + numbers[data[at]]
        if at - start >= SMALLEST and not total & mask:
            return at + 1
    return end


def chunks(source: BinaryIO) -> Iterator[bytes]:
    """A stream in chunks."""
    rest = b""
    while piece := source.read(READ):
        rest += piece
        data = np.frombuffer(rest, np.uint8)
        start = 0
        while len(rest) - start >= LARGEST:
            stop = next_cut(data, start, _NUMBERS)
            yield rest[start:stop]
            start = stop
        rest = rest[start:]
    data, start = np.frombuffer(rest, np.uint8), 0
    while start < len(rest):
        stop = next_cut(data, start, _NUMBERS)
        yield rest[start:stop]
        start = stop


@numba.njit(cache=True, nogil=True)
def kind_of(data: Array) -> tuple[int, bool, bool]:
    """How well bytes are told by the one before (0 to 255), whether it is text, whether it is machine code:
    what ZPAQ's levels choose their model by.

    Text: a space is what was last seen behind several letters, and no control characters. Code of x86: the
    byte 139, which moves between registers, is what was last seen behind several others.
    """
    last = np.zeros(256, np.int64)
    hits = control = 0
    before = 0
    for at in range(data.shape[0]):
        value = numba.int64(data[at])
        hits += last[before] == value
        last[before] = value
        control += _CONTROL[value]
        before = value
    spaces = moves = 0
    for value in range(256):
        spaces += _LETTERS[value] and last[value] == SPACE
        moves += last[value] == MOVE
    share = hits * 255 // max(data.shape[0], 1)
    return share, spaces >= SPACES and control * FEW < data.shape[0], moves >= MOVES
