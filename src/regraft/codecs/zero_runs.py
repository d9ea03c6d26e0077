"""Runs of zero bytes as a zero and their length (1 to 255), every other byte as it is; compiled by numba."""

from __future__ import annotations

import numba
import numpy as np

from regraft.codecs.frame import DamagedFileError
from regraft.codecs.unaligned import Array

LONGEST = 255
"""Zeros of one run."""


@numba.njit(cache=True, nogil=True)
def _encoded(data: Array, out: Array) -> int:
    read = write = 0
    while read < data.shape[0]:
        out[write] = data[read]
        write += 1
        if data[read]:
            read += 1
            continue
        start = read
        while read < data.shape[0] and data[read] == 0 and read - start < LONGEST:
            read += 1
        out[write] = read - start
        write += 1
    return write


@numba.njit(cache=True, nogil=True)
def _decoded(data: Array, out: Array) -> bool:
    read = write = 0
    while read < data.shape[0]:
        value = data[read]
        read += 1
        run = 1
        if value == 0:
            if read == data.shape[0] or data[read] == 0:
                return False
            run = numba.int64(data[read])
            read += 1
        if run > out.shape[0] - write:
            return False
        for k in range(run):
            out[write + k] = value
        write += run
    return write == out.shape[0]


def pack_block(raw: bytes) -> bytes:
    """A block packed: at worst twice as long."""
    out = np.empty(2 * len(raw) + 2, np.uint8)
    return out[: _encoded(np.frombuffer(raw, np.uint8), out)].tobytes()


def unpack_block(stored: bytes, raw: int) -> bytes:
    """A block of `raw` bytes.

    Raises:
        DamagedFileError: it is none.
    """
    out = np.empty(raw, np.uint8)
    if not _decoded(np.frombuffer(stored, np.uint8), out):
        raise DamagedFileError("a block's runs do not make up its length: the file is damaged")
    return out.tobytes()
