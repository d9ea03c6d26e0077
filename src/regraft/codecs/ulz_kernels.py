"""The inner loops of `ulz`, compiled by numba (kept between runs); `tests/` has them in plain Python.

A sequence: token | more of the run | literals | distance 2 or 3 bytes | more of the length.
The token's bits: RRR literals (7: more follow), F whether the distance takes a third byte, LLLL length of the
match less 4 (15: more follow). More of a number: seven bits a byte, lowest first. Distances are written less
one. The last sequence has literals alone.
"""

from __future__ import annotations

import numba
import numpy as np

from regraft.codecs.unaligned import Array, load8, store8
from regraft.codecs.varints import number_bytes, put_number, take_number

SHORTEST = 4
"""Bytes of the shortest match."""
LONG_RUN, LONG_MATCH = 7, 15
"""What a token's bits say where more of the run, and of the length less the shortest, follows."""
FAR = 1 << 16
"""The largest distance of two bytes."""
FARTHEST = 1 << 24
"""The largest distance of three bytes."""
SLACK = 16
"""Bytes behind the text that `decoded` may write to: it writes words."""
FEWEST_FAR = 6
"""Bytes of the shortest match of a far distance in the best parse."""
LONG_ENOUGH = 128
"""A match of this length is taken as it is by the best parse: to look at each shorter one gains nothing."""
_MIX = np.uint64(0x9E3779B185EBCA87)


@numba.njit(cache=True, nogil=True, inline="always")
def _hash4(data: Array, at: int, shift: np.uint64) -> int:
    """A number of few bits for four bytes."""
    return numba.int64(((load8(data, at) << np.uint64(32)) * _MIX) >> shift)


@numba.njit(cache=True, nogil=True, inline="always")
def _hash6(data: Array, at: int, shift: np.uint64) -> int:
    """A number of few bits for six bytes."""
    return numba.int64(((load8(data, at) << np.uint64(16)) * _MIX) >> shift)


@numba.njit(cache=True, nogil=True, inline="always")
def _common(data: Array, older: int, newer: int, end: int) -> int:
    """How many bytes from two places on are equal, up to `end`; `data` has eight bytes behind it."""
    length = 0
    while newer + length < end:
        differ = load8(data, older + length) ^ load8(data, newer + length)
        if differ:
            while not differ & np.uint64(255):
                differ >>= np.uint64(8)
                length += 1
            return min(length, end - newer)
        length += 8
    return end - newer


@numba.njit(cache=True, nogil=True)
def _put(data: Array, start: int, at: int, length: int, distance: int, out: Array, write: int) -> int:
    """One sequence: literals from `start` to `at`, then a match; length 0 for none. Where `out` ends."""
    run = at - start
    far = distance > FAR
    token = min(run, LONG_RUN) << 5 | (far << 4) | (min(length - SHORTEST, LONG_MATCH) if length else 0)
    out[write] = token
    write += 1
    if run >= LONG_RUN:
        write = put_number(out, write, run - LONG_RUN)
    for k in range(0, run, 8):
        store8(out, write + k, load8(data, start + k))
    write += run
    if length:
        out[write] = (distance - 1) & 255
        out[write + 1] = (distance - 1) >> 8 & 255
        write += 2
        if far:
            out[write] = (distance - 1) >> 16
            write += 1
        if length - SHORTEST >= LONG_MATCH:
            write = put_number(out, write, length - SHORTEST - LONG_MATCH)
    return write


@numba.njit(cache=True, nogil=True)
def encoded_fast(data: Array, raw: int, bits: int, window: int, out: Array) -> int:
    """Level 1: the last place with the same four bytes alone, and longer steps where nothing is found."""
    shift = np.uint64(64 - bits)
    last = np.full(1 << bits, -FARTHEST - 1, np.int32)
    start = at = write = 0
    misses = 0
    while at + SHORTEST <= raw:
        slot = _hash6(data, at, shift)
        older = numba.int64(last[slot])
        last[slot] = at
        if at - older > window or (load8(data, older) ^ load8(data, at)) & np.uint64(0xFFFFFFFF):
            misses += 1
            at += 1 + (misses >> 5)
            continue
        length = _common(data, older, at, raw)
        if at - older > FAR and length <= SHORTEST:
            at += 1
            continue
        while at > start and older and data[at - 1] == data[older - 1]:
            at, older, length = at - 1, older - 1, length + 1
        write = _put(data, start, at, length, at - older, out, write)
        at += length
        start, misses = at, 0
        if at + SHORTEST <= raw:
            last[_hash6(data, at - 2, shift)] = at - 2
    return _put(data, start, raw, 0, 0, out, write)


@numba.njit(cache=True, nogil=True, inline="always")
def _longest(
    data: Array, at: int, raw: int, before: Array, first: int, window: int, depth: int, least: int
) -> tuple[int, int]:
    """The longest match at a place along its chain, and its distance; at least `least` + 1 long, else (0, 0).

    One that needs a distance of three bytes must be a byte longer to be worth it.
    """
    best, distance, older = least, 0, first
    while older >= 0 and at - older <= window and depth:
        depth -= 1
        if at + best < raw and data[older + best] == data[at + best]:
            length = _common(data, older, at, raw)
            if length - (at - older > FAR) > best - (distance > FAR):
                best, distance = length, at - older
        older = numba.int64(before[older])
    return (best, distance) if distance else (0, 0)


@numba.njit(cache=True, nogil=True)
def encoded_lazy(data: Array, raw: int, bits: int, window: int, depth: int, out: Array) -> int:
    """Levels 2 to 8: chains of places with the same hash, a step further where a longer match is there."""
    shift = np.uint64(64 - bits)
    last = np.full(1 << bits, -1, np.int32)
    before = np.empty(max(raw, 1), np.int32)
    start = at = write = entered = 0
    while at + SHORTEST <= raw:
        while entered <= at:
            slot = _hash4(data, entered, shift)
            before[entered], last[slot] = last[slot], entered
            entered += 1
        length, distance = _longest(data, at, raw, before, before[at], window, depth, SHORTEST - 1)
        if not length:
            at += 1
            continue
        while depth > 2 and at + 1 + SHORTEST <= raw:
            slot = _hash4(data, entered, shift)
            before[entered], last[slot] = last[slot], entered
            entered += 1
            longer, farther = _longest(data, at + 1, raw, before, before[at + 1], window, depth, length)
            if not longer:
                break
            at, length, distance = at + 1, longer, farther
        write = _put(data, start, at, length, distance, out, write)
        at += length
        start = at
        while entered < at and entered + SHORTEST <= raw:
            slot = _hash4(data, entered, shift)
            before[entered], last[slot] = last[slot], entered
            entered += 1
    return _put(data, start, raw, 0, 0, out, write)


@numba.njit(cache=True, nogil=True)
def encoded_best(data: Array, raw: int, bits: int, window: int, depth: int, out: Array) -> int:
    """Level 9: the parse of fewest bytes among the longest near and far match of every place.

    What is far must be longer to be worth its distance, so it is looked for along chains of six equal bytes,
    which are a small part of those of four. Forwards over the text: fewest bytes to each place, and how many
    literals stand in front of it there.
    """
    shift = np.uint64(64 - bits)
    last, last6 = np.full(1 << bits, -1, np.int32), np.full(1 << (bits + 4), -1, np.int32)
    before, before6 = np.empty(max(raw, 1), np.int32), np.empty(max(raw, 1), np.int32)
    price = np.full(raw + 1, np.int32(2**31 - 1), np.int32)
    runs, lengths, distances = (
        np.zeros(raw + 1, np.int32),
        np.zeros(raw + 1, np.int32),
        np.zeros(raw + 1, np.int32),
    )
    price[0] = 1
    skip = 0
    for at in range(raw):
        run = runs[at] + 1
        literal = price[at] + 1 + (number_bytes(run - LONG_RUN) if run >= LONG_RUN else 0)
        literal -= number_bytes(run - 1 - LONG_RUN) if run > LONG_RUN else 0
        if literal < price[at + 1]:
            price[at + 1], runs[at + 1], lengths[at + 1] = literal, run, 0
        if at + SHORTEST > raw:
            continue
        slot = _hash4(data, at, shift)
        before[at], last[slot] = last[slot], at
        slot = _hash6(data, at, shift - np.uint64(4))
        before6[at], last6[slot] = last6[slot], at
        if at < skip:
            continue
        near, distance = _longest(data, at, raw, before, before[at], min(window, FAR), depth, SHORTEST - 1)
        _offer(price, runs, lengths, distances, at, SHORTEST, near, distance)
        if window > FAR and near < LONG_ENOUGH:
            far, farther = _longest(
                data, at, raw, before6, before6[at], window, depth, max(near, FEWEST_FAR - 1)
            )
            if farther > FAR:
                _offer(price, runs, lengths, distances, at, max(near + 1, FEWEST_FAR), far, farther)
                near = max(near, far)
        if near >= LONG_ENOUGH:
            skip = at + near
    return _put_path(data, raw, lengths, distances, out)


@numba.njit(cache=True, nogil=True, inline="always")
def _offer(
    price: Array,
    runs: Array,
    lengths: Array,
    distances: Array,
    at: int,
    shortest: int,
    longest: int,
    distance: int,
) -> None:
    """Prices of the places behind a match, for each length that it may be cut to."""
    if longest >= LONG_ENOUGH:
        shortest = longest
    for length in range(shortest, longest + 1):
        more = length - SHORTEST - LONG_MATCH
        # a match ends a sequence, so a token is due for the next
        cost = price[at] + 3 + (distance > FAR) + (number_bytes(more) if more >= 0 else 0)
        if cost < price[at + length]:
            price[at + length], runs[at + length] = cost, 0
            lengths[at + length], distances[at + length] = length, distance


@numba.njit(cache=True, nogil=True)
def _put_path(data: Array, raw: int, lengths: Array, distances: Array, out: Array) -> int:
    """The sequences of a parse that is known by what leads to each place."""
    ahead = np.zeros(raw + 1, np.int32)
    at = raw
    while at > 0:
        step = max(numba.int64(lengths[at]), 1)
        ahead[at - step] = at
        at -= step
    start = at = write = 0
    while at < raw:
        after = ahead[at]
        if lengths[after]:
            write = _put(data, start, at, after - at, distances[after], out, write)
            start = after
        at = after
    return _put(data, start, raw, 0, 0, out, write)


@numba.njit(cache=True, nogil=True)
def decoded(data: Array, out: Array) -> bool:
    """Undo it into `out` but its last `SLACK` bytes; False where the bytes are no such block.

    `data` has eight bytes behind what was stored. No place outside either is touched, whatever they say.
    """
    end, room = data.shape[0] - 8, out.shape[0] - SLACK
    read = write = 0
    while read < end:
        token = numba.int64(data[read])
        read += 1
        run = token >> 5
        if run == LONG_RUN:
            more, read = take_number(data, read, end)
            if more < 0:
                return False
            run += more
        if run > end - read or run > room - write:
            return False
        for k in range(0, run, 8):
            store8(out, write + k, load8(data, read + k))
        read += run
        write += run
        if write == room:
            return read == end and not token & 31
        far = token >> 4 & 1
        if read + 2 + far > end:
            return False
        distance = 1 + (numba.int64(data[read]) | numba.int64(data[read + 1]) << 8)
        read += 2
        if far:
            distance += numba.int64(data[read]) << 16
            read += 1
        length = (token & LONG_MATCH) + SHORTEST
        if length == LONG_MATCH + SHORTEST:
            more, read = take_number(data, read, end)
            if more < 0:
                return False
            length += more
        if distance > write or length > room - write:
            return False
        older = write - distance
        if distance >= 8:
            for k in range(0, length, 8):
                store8(out, write + k, load8(out, older + k))
        else:
            for k in range(length):
                out[write + k] = out[older + k]
        write += length
    return False
