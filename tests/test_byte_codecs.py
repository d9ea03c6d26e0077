"""bpez and ulz: compiled loops equal plain ones to the byte, and everything comes back."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings

import regraft
from codec_cases import ANY, NAMED, noise, text
from naive_codecs import (
    bpez_expanded,
    bpez_merged,
    ulz_best,
    ulz_decoded,
    ulz_fast,
    ulz_lazy,
    zero_runs,
)
from regraft.codecs import bpez, ulz
from regraft.codecs import zero_runs as runs
from regraft.codecs.block_stream import in_order
from regraft.codecs.bpez_kernels import SLACK, expanded
from regraft.codecs.frame import DamagedFileError, TooLargeError

SHORT = {name: data for name, data in NAMED.items() if name != "far"}
BYTES = ("bpez", "ulz")


def content(packed):
    found = zlib.decompress(packed)
    made = found[0]
    headers = [tuple(found[at : at + 3]) for at in range(1, 1 + 3 * made, 3)]
    return headers[::-1], found[1 + 3 * made :]


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("cycles", [0, 1, 64, 255])
def test_bpez_replaces_the_pairs_that_plain_python_replaces(name, cycles):
    data = SHORT[name]
    packed = bpez.pack_block(data, cycles)
    assert content(packed) == (bpez_merged(data, cycles)[0], bpez_merged(data, cycles)[1])
    assert bpez.unpack_block(packed, len(data)) == data


@settings(max_examples=150, deadline=None)
@given(ANY)
def test_bpez_gives_any_bytes_back_as_plain_python_does(data):
    packed = bpez.pack_block(data)
    headers, left = content(packed)
    assert (headers, left) == bpez_merged(data, 64)
    assert bpez_expanded(headers, left) == data == bpez.unpack_block(packed, len(data))


def test_a_value_that_is_used_up_stands_for_another_pair_later():
    """Replaced backwards, the value means what it meant then; one table of meanings for all times would be
    wrong."""
    headers = [(97, 98, 1), (1, 99, 97), (97, 1, 98)]
    left = bytes([98, 97, 1, 98, 100])
    meant = bpez_expanded(headers, left)
    out = np.empty(len(meant) + SLACK, np.uint8)
    flat = np.array([value for header in headers for value in header], np.uint8)
    assert expanded(np.frombuffer(left, np.uint8), flat, out)
    assert out[: len(meant)].tobytes() == meant


@settings(max_examples=100, deadline=None)
@given(ANY)
def test_any_headers_are_undone_as_they_are_replaced_backwards(data):
    """Also such as no packer writes: chains, values that are text too, pairs with themselves."""
    made = min(len(data) // 3 // 2, 12)
    headers, left = data[: 3 * made], data[3 * made :][:20]
    triples = [tuple(headers[at : at + 3]) for at in range(0, 3 * made, 3)]
    lengths = [1] * 256
    for high, low, value in triples:
        lengths[value] = lengths[high] + lengths[low]
    total = sum(lengths[value] for value in left)
    # the naive way replaces a value that its own pair holds without end: only such headers are left out
    if total > 20_000 or any(value in (high, low) for high, low, value in triples):
        return
    out = np.empty(total + SLACK, np.uint8)
    assert expanded(np.frombuffer(left, np.uint8), np.frombuffer(headers, np.uint8), out)
    assert out[:total].tobytes() == bpez_expanded(triples, left)


def test_a_bomb_of_pairs_is_refused_before_it_takes_memory():
    """Sixty-four doublings of one byte stand for 2⁶⁴ bytes."""
    headers = b"".join(bytes([value, value, value + 1]) for value in range(64))
    newest_first = b"".join(headers[at : at + 3] for at in range(len(headers) - 3, -1, -3))
    stored = zlib.compress(bytes([64]) + newest_first + bytes([64]))
    with pytest.raises(DamagedFileError, match="do not make up its length"):
        bpez.unpack_block(stored, 1 << 20)
    with pytest.raises(TooLargeError, match="unpacks to"):
        list(bpez.unpack_bare(iter([stored]), 1 << 20))
    zeros = zlib.compress(b"\0" * (1 << 24))
    with pytest.raises(DamagedFileError, match="cut, or too long"):
        bpez.unpack_block(zeros, 1000)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("level", [1, 2, 5, 9])
def test_ulz_writes_the_bytes_that_plain_python_writes(name, level):
    data = SHORT[name]
    packed = ulz.pack_block(data, level, 17)
    bits = min(14 if level == 1 else 17, max(8, len(data).bit_length()))
    if level == 1:
        plain = ulz_fast(data, bits, 1 << 17)
    elif level < 9:
        plain = ulz_lazy(data, bits, 1 << 17, ulz.DEPTHS[level])
    else:
        plain = ulz_best(data, bits, 1 << 17, ulz.DEPTHS[level])
    assert packed == plain
    assert ulz_decoded(packed) == data == ulz.unpack_block(packed, len(data))


@settings(max_examples=150, deadline=None)
@given(ANY)
def test_ulz_gives_any_bytes_back_as_plain_python_does(data):
    for level in (1, 3, 9):
        packed = ulz.pack_block(data, level)
        assert ulz_decoded(packed) == data == ulz.unpack_block(packed, len(data))


@pytest.mark.parametrize("level", [1, 5, 9])
def test_distances_of_three_bytes_are_found_and_undone(level):
    """The window is what decides: with a small one the second text is told again."""
    data = NAMED["far"]
    wide, narrow = (ulz.pack_block(data, level, window) for window in (22, 16))
    assert ulz_decoded(wide) == data == ulz.unpack_block(wide, len(data))
    assert ulz.unpack_block(narrow, len(data)) == data
    assert len(wide) < len(narrow) - 300


@pytest.mark.parametrize("name", BYTES)
def test_everything_comes_back_around_block_borders(name):
    codec, size = regraft.codec(name), 1 << 10
    for length in {0, 1, 2, *(k * size + d for k in (1, 2, 7) for d in (-1, 0, 1))}:
        for data in (text(length), noise(length), bytes(length)):
            packed = codec.compress(data, block_size=size)
            assert codec.decompress(packed) == data
            assert codec.decompress(packed, workers=3) == data


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("case", NAMED)
def test_streams_and_bytes_and_threads_give_the_same_file(name, case):
    codec, data = regraft.codec(name), NAMED[case]
    whole = codec.compress(data, block_size=2048, workers=1)

    class Drops(io.RawIOBase):
        """A pipe that gives a few bytes at a time."""

        def __init__(self):
            self.at = 0

        def read(self, size=-1):
            self.at += (step := min(size, 700))
            return data[self.at - step : self.at]

    out = io.BytesIO()
    counted = codec.pack(Drops(), out, block_size=2048, workers=3)
    assert out.getvalue() == whole == codec.compress(data, block_size=2048, workers=4)
    assert counted == (len(data), len(whole))


def test_what_does_not_become_smaller_is_stored_as_it_is():
    for name in BYTES:
        packed = regraft.codec(name).compress(noise(5000))
        assert noise(5000) in packed
        assert len(packed) < 5000 + 150


def test_a_smaller_level_looks_at_less():
    sizes = [len(ulz.pack_block(text(40_000), level)) for level in range(1, 10)]
    assert sizes[0] > sizes[4] > sizes[8]
    assert sizes == sorted(sizes, reverse=True)


def test_never_more_than_a_few_blocks_are_held():
    """However long the stream, only a bounded number of items is taken ahead of what is used."""
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    for done, _ in enumerate(in_order(lambda number: number, items(), 3)):
        assert len(taken) <= done + 1 + 2 * 3 + 1


def test_the_bare_format_is_blocks_of_zlib_behind_each_other():
    data = text(5000)
    bare = bpez.pack_block(data[:3000]) + bpez.pack_block(data[3000:])
    for step in (1, 7, 100_000):
        pieces = (bare[at : at + step] for at in range(0, len(bare), step))
        assert b"".join(bpez.unpack_bare(pieces, 1 << 20)) == data
    with pytest.raises(DamagedFileError, match="ends inside a block"):
        list(bpez.unpack_bare(iter([bare[:-1]]), 1 << 20))
    with pytest.raises(TooLargeError, match="--block-size"):
        list(bpez.unpack_bare(iter([bare]), 100))


@settings(max_examples=150, deadline=None)
@given(ANY)
def test_runs_of_zeros_are_coded_as_plain_python_codes_them(data):
    assert runs.pack_block(data) == zero_runs(data)
    assert runs.unpack_block(runs.pack_block(data), len(data)) == data


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("bpez", {"cycles": 256}, "--cycles 256"),
        ("bpez", {"level": 3}, "level is no option of the codec bpez"),
        ("bpez", {"block_size": 5}, "--block-size 5"),
        ("ulz", {"level": 0}, "--level 0"),
        ("ulz", {"window": 25}, "--window 25"),
        ("ulz", {"workers": 0}, "--workers 0"),
        ("archive", {}, "packs files, not bytes"),
    ],
)
def test_impossible_options_are_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        regraft.codec(name).compress(b"abc", **options)


def test_a_codec_is_found_by_name_and_unpacks_its_own():
    with pytest.raises(ValueError, match="there is no codec 'zip': choose one of bpez"):
        regraft.codec("zip")
    with pytest.raises(ValueError, match="packed by ulz, not by bpez"):
        regraft.codec("bpez").decompress(regraft.codec("ulz").compress(b"abc"))
