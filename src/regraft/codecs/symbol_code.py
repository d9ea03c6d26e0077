"""Bytes by arithmetic coding under their own frequencies, which stand in front: for numbers that follow no
order, such as quantized weights."""

from __future__ import annotations

import numpy as np

from regraft.codecs.arithmetic import decode_start, decode_step, encode_end, encode_step
from regraft.codecs.frame import DamagedFileError
from regraft.codecs.varints import put_number, take_number

_ROW = 1024
"""Symbols that are coded by one call."""
_HELD = 32
"""Bytes that say which values occur."""


def pack_block(raw: bytes) -> bytes:
    """A block packed: which values occur (32 bytes), how often each does, then the code."""
    data = np.frombuffer(raw, np.uint8)
    counts = np.bincount(data, minlength=256)
    held = counts > 0
    front = np.packbits(held).tobytes() + _numbers(counts[held])
    out = np.empty(4 * len(raw) + 64, np.uint8)
    state, write = np.array([0, 2**64 - 1], np.uint64), 0
    weights = _weights(counts)
    for start in range(0, len(raw), _ROW):
        symbols = data[start : start + _ROW].astype(np.int64)
        rows = np.broadcast_to(weights, (len(symbols), 256))
        write = encode_step(rows, held, symbols, state, out, write)
    return front + out[: encode_end(state, out, write)].tobytes()


def unpack_block(stored: bytes, raw: int) -> bytes:
    """A block of `raw` bytes.

    Raises:
        DamagedFileError: it is none.
    """
    counts, start = _counts(stored)
    if int(counts.sum()) != raw:
        raise DamagedFileError("a block's frequencies do not make up its length: the file is damaged")
    data = np.frombuffer(stored, np.uint8, offset=start)
    out, state = np.empty(raw, np.uint8), np.zeros(3, np.uint64)
    read, weights = decode_start(data, state), _weights(counts)
    for at in range(0, raw, _ROW):
        symbols = np.zeros(min(_ROW, raw - at), np.int64)
        rows = np.broadcast_to(weights, (len(symbols), 256))
        read = decode_step(rows, counts > 0, symbols, state, data, read)
        if read < 0 or read > len(data) + 8:
            raise DamagedFileError("a block's code fits no bytes: the file is damaged")
        out[at : at + len(symbols)] = symbols
    return out.tobytes()


def _weights(counts: np.ndarray) -> np.ndarray:
    """Frequencies as shares: one division of whole numbers each, which is the same on every machine."""
    return counts / max(int(counts.sum()), 1)


def _numbers(counts: np.ndarray) -> bytes:
    out, write = np.empty(8 * len(counts), np.uint8), 0
    for count in counts:
        write = put_number(out, write, int(count))
    return out[:write].tobytes()


def _counts(stored: bytes) -> tuple[np.ndarray, int]:
    """How often each value occurs, and where the code begins."""
    if len(stored) < _HELD:
        raise DamagedFileError("a block ends inside its frequencies: the file is damaged")
    data, at = np.frombuffer(stored, np.uint8), _HELD
    counts = np.zeros(256, np.int64)
    for value in np.flatnonzero(np.unpackbits(data[:_HELD])):
        counts[value], at = take_number(data, at, len(data))
        if counts[value] < 0:
            raise DamagedFileError("a block ends inside its frequencies: the file is damaged")
    return counts, at
