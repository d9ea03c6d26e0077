"""The frame: lengths, checksums, limits; what is cut, changed or a lie is refused with a sentence."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import pytest

import regraft
from codec_cases import text
from regraft.codecs import frame
from regraft.codecs.block_stream import unpack_stream
from regraft.codecs.frame import DamagedFileError, TooLargeError

DATA = text(9000)
PACKED = regraft.codec("ulz").compress(DATA, block_size=2048)


def unpacked(content, **options):
    return regraft.codec("ulz").decompress(content, **options)


def test_every_changed_byte_is_noticed():
    for at in range(len(PACKED)):
        changed = bytearray(PACKED)
        changed[at] ^= 1 << at % 8
        with pytest.raises((DamagedFileError, ValueError)):
            unpacked(bytes(changed))


def test_every_cut_is_noticed():
    for end in range(len(PACKED)):
        with pytest.raises((DamagedFileError, ValueError)):
            unpacked(PACKED[:end])


def test_what_stands_behind_the_end_is_noticed():
    with pytest.raises(DamagedFileError, match="behind the end"):
        unpacked(PACKED + b"x")


def test_the_whole_has_a_checksum_of_its_own():
    """Blocks that are whole but stand in another order fit their own checksums and not the file's."""
    source = io.BytesIO(PACKED)
    number, parameters = frame.read_header(source)
    blocks = list(frame.read_blocks(source, frame.LARGEST_BLOCK))
    assert len(blocks) == 6
    again = frame.header(number, parameters) + b"".join(
        frame.block(one.kind, one.raw, one.stored) for one in (blocks[1], blocks[0], *blocks[2:-1])
    )
    with pytest.raises(DamagedFileError, match="does not fit the file's checksum"):
        unpacked(again + frame.end(blocks[-1].raw, blocks[-1].digest))


def test_nothing_is_decoded_before_its_checksum_is_looked_at():
    source = io.BytesIO(PACKED)
    frame.read_header(source)
    changed = bytearray(PACKED)
    changed[source.tell() + 20] ^= 1
    rest = io.BytesIO(changed[source.tell() :])

    def never(stored, raw):
        raise AssertionError("a damaged block was decoded")

    with pytest.raises(DamagedFileError, match="block 0 does not fit its checksum"):
        unpack_stream(rest, io.BytesIO(), never, frame.LARGEST_BLOCK, 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_header_that_lies_takes_no_memory(workers):
    """Lengths up to 2³² in a block and 2⁶³ of the whole, with checksums that fit."""
    begin = frame.header(2, {})
    front = struct.pack("<BII", frame.PACKED, 2**32 - 1, 2**32 - 1)
    lies = [
        begin + front + struct.pack("<I", zlib.crc32(front)),
        begin + frame.block(frame.PACKED, frame.LARGEST_BLOCK, b"\0"),
        begin + frame.end(2**63, bytes(32)),
        frame.MAGIC + struct.pack("<BBI", 1, 2, 2**32 - 1),
    ]
    for lie in lies:
        tracemalloc.start()
        with pytest.raises((DamagedFileError, ValueError)):
            unpacked(lie, max_size=1 << 20, workers=workers)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20


def test_a_block_is_no_larger_than_any_that_is_written():
    lie = frame.header(2, {}) + frame.block(frame.PACKED, frame.LARGEST_BLOCK + 1, b"\0")
    with pytest.raises(DamagedFileError, match="a block has at most"):
        unpacked(lie)


def test_a_bomb_of_zeros_stops_at_the_size_that_is_allowed():
    """It stops before the block that would pass the limit is unpacked."""
    bomb = regraft.codec("ulz").compress(bytes(8 << 20), block_size=1 << 20)
    assert len(bomb) < 1000
    out = io.BytesIO()
    with pytest.raises(TooLargeError, match="3,000,000 bytes that --max-size allows"):
        regraft.codec("ulz").unpack(io.BytesIO(bomb), out, 3_000_000, workers=2)
    assert len(out.getvalue()) <= 3_000_000
    assert unpacked(bomb, max_size=8 << 20) == bytes(8 << 20)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty, so it is no packed file"),
        (b"plain text", "does not begin as a packed file does"),
        (frame.MAGIC[:4], "does not begin"),
        (frame.header(99, {}) + frame.end(0, bytes(32)), "codec 99, which this version"),
    ],
)
def test_what_is_no_packed_file_is_told(content, said):
    with pytest.raises(ValueError, match=said):
        unpacked(content)


def test_a_later_version_is_told(monkeypatch):
    monkeypatch.setattr(frame, "VERSION", 7)
    later = frame.header(2, {}) + frame.end(0, bytes(32))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 7 of the format, and this program reads 1"):
        unpacked(later)
