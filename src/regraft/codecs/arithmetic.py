"""Arithmetic coding of symbols under any probabilities, compiled by numba; `tests/` has it in plain Python.

A range coder without carries: 64 bits, of which whole bytes go out as soon as they are settled. Probabilities
become whole numbers of a total near `TOTAL`, at least one for every symbol that may occur, so both sides see
the same integers wherever they saw the same probabilities.

Shapes: B streams, V symbols.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from regraft.codecs.unaligned import Array

TOTAL = 1 << 24
"""What the whole numbers of one distribution come to, but for rounding: large beside any vocabulary, small
beside the coder's 2⁴⁸."""
_TOP = np.uint64(1 << 56)
_BOTTOM = np.uint64(1 << 48)
_BYTE = np.uint64(8)
_FIRST = np.uint64(56)


@numba.njit(cache=True, nogil=True, inline="always")
def _weight(probability: Any, room: Any) -> Any:
    """A probability as a whole number of at least one."""
    return numba.uint64(numba.int64(probability * room) + 1)


@numba.njit(cache=True, nogil=True)
def encode_step(
    weights_BV: Array,
    may_V: Array,
    symbols_B: Array,
    state: Array,
    out: Array,
    write: int,
) -> int:
    """One symbol of every stream, -1 for none, under its row of probabilities; where `out` ends then.

    `state` is two numbers, what is below and how wide it is: (0, 2⁶⁴ - 1) at the beginning.
    """
    streams, symbols = weights_BV.shape
    room = np.float64(TOTAL - symbols)
    below, wide = state[0], state[1]
    for stream in range(streams):
        if symbols_B[stream] < 0:
            continue
        total = start = own = np.uint64(0)
        for symbol in range(symbols):
            if may_V[symbol]:
                if symbol == symbols_B[stream]:
                    start = total
                    own = _weight(weights_BV[stream, symbol], room)
                total += _weight(weights_BV[stream, symbol], room)
        part = wide // total
        below += part * start
        wide = part * own
        while (below ^ (below + wide)) < _TOP or wide < _BOTTOM:
            if (below ^ (below + wide)) >= _TOP:
                # it is narrow across a border between bytes: cut at the border, so the byte is settled
                wide = (np.uint64(0) - below) & (_BOTTOM - np.uint64(1))
            out[write] = below >> _FIRST
            write += 1
            below <<= _BYTE
            wide <<= _BYTE
    state[0], state[1] = below, wide
    return write


@numba.njit(cache=True, nogil=True)
def encode_end(state: Array, out: Array, write: int) -> int:
    """The bytes that settle the last symbols; where `out` ends then."""
    below = state[0]
    for _ in range(8):
        out[write] = below >> _FIRST
        write += 1
        below <<= _BYTE
    return write


@numba.njit(cache=True, nogil=True)
def decode_start(data: Array, state: Array) -> int:
    """Take the first eight bytes into `state` (three numbers: below, wide, code); where reading goes on."""
    state[0], state[1], state[2] = 0, np.uint64(0) - np.uint64(1), 0
    for at in range(8):
        state[2] = state[2] << _BYTE | np.uint64(data[at] if at < data.shape[0] else 0)
    return 8


@numba.njit(cache=True, nogil=True)
def decode_step(
    weights_BV: Array,
    may_V: Array,
    symbols_B: Array,
    state: Array,
    data: Array,
    read: int,
) -> int:
    """One symbol of every stream whose entry is not negative, put there; where reading goes on, or -1 where
    no symbol fits, which damaged bytes alone can bring about."""
    streams, symbols = weights_BV.shape
    room = np.float64(TOTAL - symbols)
    below, wide, code = state[0], state[1], state[2]
    for stream in range(streams):
        if symbols_B[stream] < 0:
            continue
        total = np.uint64(0)
        for symbol in range(symbols):
            if may_V[symbol]:
                total += _weight(weights_BV[stream, symbol], room)
        part = wide // total
        place = (code - below) // part
        if place >= total:
            return -1
        start = own = np.uint64(0)
        for symbol in range(symbols):
            if may_V[symbol]:
                own = _weight(weights_BV[stream, symbol], room)
                if place < start + own:
                    symbols_B[stream] = symbol
                    break
                start += own
        below += part * start
        wide = part * own
        while (below ^ (below + wide)) < _TOP or wide < _BOTTOM:
            if (below ^ (below + wide)) >= _TOP:
                wide = (np.uint64(0) - below) & (_BOTTOM - np.uint64(1))
            code = code << _BYTE | np.uint64(data[read] if read < data.shape[0] else 0)
            read += 1
            below <<= _BYTE
            wide <<= _BYTE
    state[0], state[1], state[2] = below, wide, code
    return read
