"""Whole numbers in seven bits a byte, lowest first, each byte but the last marked; compiled by numba."""

from __future__ import annotations

import numba

from regraft.codecs.unaligned import Array

MARK = 128
"""What is added to every byte but the last."""
LONGEST_SHIFT = 35
"""Bits at which a number ends: five bytes, more than any length here needs."""


@numba.njit(cache=True, nogil=True, inline="always")
def put_number(out: Array, write: int, number: int) -> int:
    """Write a number; where `out` ends then."""
    while number >= MARK:
        out[write] = (number & (MARK - 1)) | MARK
        number >>= 7
        write += 1
    out[write] = number
    return write + 1


@numba.njit(cache=True, nogil=True, inline="always")
def number_bytes(number: int) -> int:
    """Bytes that `put_number` writes."""
    return 1 + (number >= 1 << 7) + (number >= 1 << 14) + (number >= 1 << 21) + (number >= 1 << 28)


@numba.njit(cache=True, nogil=True, inline="always")
def take_number(data: Array, read: int, end: int) -> tuple[int, int]:
    """A number and where it ends; (-1, place) where it is cut or too long."""
    number = 0
    for shift in range(0, LONGEST_SHIFT, 7):
        if read >= end:
            break
        value = numba.int64(data[read])
        read += 1
        number |= (value & (MARK - 1)) << shift
        if value < MARK:
            return number, read
    return -1, read
