"""The inner loops of `bpez`, compiled by numba (kept between runs); `tests/` has them in plain Python.

Pairs are counted once a block and kept counted: a replacement changes the pairs around it alone.
"""

from __future__ import annotations

import numba
import numpy as np

from regraft.codecs.unaligned import Array, load8, store8

FEWEST = 3
"""How often a pair must occur to be replaced: its header takes three bytes."""
SLACK = 8
"""Bytes behind the text that `expanded` may write to: it writes words."""


@numba.njit(cache=True, nogil=True)
def most_frequent(counts: Array) -> int:
    """The pair that occurs most often, the smallest of several; -1 where none occurs often enough."""
    best, found = FEWEST - 1, -1
    for pair in range(65536):
        if counts[pair] > best:
            best, found = counts[pair], pair
    return found


@numba.njit(cache=True, nogil=True)
def unused_byte(used: Array) -> int:
    """The smallest byte value that does not occur; -1 where all do."""
    for value in range(256):
        if used[value] == 0:
            return value
    return -1


@numba.njit(cache=True, nogil=True)
def replaced(data: Array, length: int, pair: int, fresh: int, counts: Array, used: Array) -> int:
    """Put `fresh` in the place of a pair, from left to right, in `data` itself; the new length.

    `counts` of adjacent pairs (65,536) and `used` of byte values (256) are kept true.
    """
    high, low = pair >> 8, pair & 255
    read = write = 0
    while read < length:
        value = data[read]
        if value == high and read + 1 < length and data[read + 1] == low:
            counts[pair] -= 1
            if write:
                before = numba.int64(data[write - 1]) << 8
                counts[before | high] -= 1
                counts[before | fresh] += 1
            if read + 2 < length:
                after = numba.int64(data[read + 2])
                counts[(low << 8) | after] -= 1
                counts[(fresh << 8) | after] += 1
            used[high] -= 1
            used[low] -= 1
            used[fresh] += 1
            data[write] = fresh
            read += 2
        else:
            data[write] = value
            read += 1
        write += 1
    return write


@numba.njit(cache=True, nogil=True)
def merged(data: Array, cycles: int, headers: Array) -> tuple[int, int]:
    """Replace pairs in `data` itself, up to `cycles` times; new length and how many were replaced.

    `headers` takes three bytes for each: high, low, what stands for them.
    """
    length = data.shape[0]
    counts = np.zeros(65536, np.int32)
    used = np.zeros(256, np.int32)
    for i in range(length):
        used[data[i]] += 1
    for i in range(length - 1):
        counts[(numba.int64(data[i]) << 8) | data[i + 1]] += 1
    for cycle in range(cycles):
        fresh = unused_byte(used)
        pair = most_frequent(counts)
        if fresh < 0 or pair < 0:
            return length, cycle
        length = replaced(data, length, pair, fresh, counts, used)
        headers[3 * cycle] = pair >> 8
        headers[3 * cycle + 1] = pair & 255
        headers[3 * cycle + 2] = fresh
    return length, cycles


@numba.njit(cache=True, nogil=True)
def expanded(data: Array, headers: Array, out: Array) -> bool:
    """Undo replacements into `out` but its last `SLACK` bytes, in one pass; False where the length differs.

    What each byte value stands for is worked out oldest replacement first, so that a value which was used up
    and stands for another pair later means both at their times. What is longer than a word is written where
    it first occurs and copied from there, so nothing but `out` is needed, whatever the headers say.
    """
    room, cycles = out.shape[0] - SLACK, headers.shape[0] // 3
    node_of = np.arange(256)
    pairs = np.zeros((256 + cycles, 2), np.int64)
    lengths = np.ones(256 + cycles, np.int64)
    words = np.zeros(256 + cycles, np.uint64)
    for value in range(256):
        words[value] = value
    for cycle in range(cycles):
        node, high, low = 256 + cycle, node_of[headers[3 * cycle]], node_of[headers[3 * cycle + 1]]
        pairs[node, 0], pairs[node, 1] = high, low
        # longer than the whole cannot occur; cut there, sums stay small
        lengths[node] = min(lengths[high] + lengths[low], room + 1)
        if lengths[node] <= 8:
            words[node] = words[high] | (words[low] << np.uint64(8 * lengths[high]))
        node_of[headers[3 * cycle + 2]] = node
    needed = 0
    for i in range(data.shape[0]):
        needed += lengths[node_of[data[i]]]
    if needed != room:
        return False
    written = np.full(256 + cycles, -1)
    waiting = np.empty(cycles + 2, np.int64)
    write = 0
    for i in range(data.shape[0]):
        waiting[0], depth = node_of[data[i]], 1
        while depth:
            depth -= 1
            node = waiting[depth]
            length = lengths[node]
            if length <= 8:
                store8(out, write, words[node])
                write += length
            elif written[node] >= 0:
                for k in range(0, length, 8):
                    store8(out, write + k, load8(out, written[node] + k))
                write += length
            else:
                written[node] = write
                waiting[depth], waiting[depth + 1] = pairs[node, 1], pairs[node, 0]
                depth += 2
    return True
