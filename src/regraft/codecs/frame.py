"""The frame that every packed file has: what it is, blocks with lengths and checksums, a sum over the whole.

    magic 8 | version 1 | codec 1 | parameters' length 4 | parameters (JSON) | CRC-32 of all this 4
    block:  kind 1 (1 packed, 2 stored as it is) | raw length 4 | stored length 4 | CRC-32 4 | stored bytes
    end:    kind 1 (0) | raw length of the whole 8 | SHA-256 of the whole 32 | CRC-32 4

Numbers are little-endian. A block's CRC-32 is of its kind, lengths and stored bytes, and is looked at before
anything is decoded. Nothing is reserved for what a header claims: stored bytes are read as they come, and a
raw length above the codec's largest block is refused.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from regraft.core.strict_json import json_text

MAGIC = b"\x89RGK\r\n\x1a\n"
"""How every packed file begins; the line ends show what a transfer as text does to it."""
VERSION = 1
"""The version of the frame."""
LARGEST_BLOCK = 1 << 26
"""Raw bytes of the largest block that any codec writes."""
LARGEST_PARAMETERS = 1 << 20
"""Bytes of the longest parameters."""
READ_AT_ONCE = 1 << 20
"""Bytes that are asked of a stream at once, so that a length that is a lie reserves nothing."""
END, PACKED, STORED = 0, 1, 2
"""Kinds of what stands behind the header."""
_HEAD = struct.Struct("<8sBBI")
_BLOCK = struct.Struct("<BIII")
BLOCK_FRONT = _BLOCK.size
"""Bytes in front of a block's stored bytes."""
_LAST = struct.Struct("<BQ32sI")
_SUM = struct.Struct("<I")


class DamagedFileError(RuntimeError):
    """A packed file that is not whole; the message says where it parts."""


class TooLargeError(ValueError):
    """What would be unpacked is larger than was allowed."""


@dataclass(frozen=True)
class StoredBlock:
    """One block as it is stored: whether it is packed, raw length and stored bytes."""

    kind: int
    raw: int
    stored: bytes


@dataclass(frozen=True)
class End:
    """What stands behind the last block: raw length and SHA-256 of the whole."""

    raw: int
    digest: bytes


def header(number: int, parameters: dict[str, Any]) -> bytes:
    """The bytes in front of the first block of codec `number`."""
    told = json_text(parameters, sort_keys=True).encode() if parameters else b""
    if len(told) > LARGEST_PARAMETERS:
        raise ValueError(
            f"the parameters of a packed file take {len(told):,} bytes, of {LARGEST_PARAMETERS:,}"
        )
    front = _HEAD.pack(MAGIC, VERSION, number, len(told)) + told
    return front + _SUM.pack(zlib.crc32(front))


def block(kind: int, raw: int, stored: bytes) -> bytes:
    """A block's bytes."""
    front = struct.pack("<BII", kind, raw, len(stored))
    return front + _SUM.pack(zlib.crc32(stored, zlib.crc32(front))) + stored


def end(raw: int, digest: bytes) -> bytes:
    """The bytes behind the last block."""
    front = struct.pack("<BQ32s", END, raw, digest)
    return front + _SUM.pack(zlib.crc32(front))


def is_packed(begin: bytes) -> bool:
    """Whether a file that begins with these bytes has this frame."""
    return begin.startswith(MAGIC)


def read_header(source: BinaryIO) -> tuple[int, dict[str, Any]]:
    """The codec's number and its parameters.

    Raises:
        ValueError: no packed file, or one of a later version.
        DamagedFileError: its header is cut or changed.
    """
    begin = take(source, len(MAGIC), "its magic", whole=False)
    if not begin:
        raise ValueError("it is empty, so it is no packed file: pack one with `regraft pack FILE`")
    if begin != MAGIC:
        raise ValueError("it does not begin as a packed file does: `regraft pack` writes such files")
    rest = take(source, _HEAD.size - len(MAGIC), "its header")
    _, version, number, length = _HEAD.unpack(begin + rest)
    if length > LARGEST_PARAMETERS:
        raise DamagedFileError(f"its header claims parameters of {length:,} bytes: the file is damaged")
    told = take(source, length, "its parameters")
    if _SUM.unpack(take(source, 4, "its header"))[0] != zlib.crc32(begin + rest + told):
        raise DamagedFileError("its header does not fit its checksum: the file is damaged")
    if version != VERSION:
        raise ValueError(
            f"it has version {version} of the format, and this program reads {VERSION}: update it"
        )
    return number, parsed(told) if told else {}


def parsed(told: bytes) -> dict[str, Any]:
    """An object of JSON from inside a file.

    Raises:
        DamagedFileError: it is none.
    """
    try:
        found = json.loads(told.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError("its parameters are no JSON: the file is damaged") from error
    if not isinstance(found, dict):
        raise DamagedFileError("its parameters are no object of JSON: the file is damaged")
    return found


def read_blocks(source: BinaryIO, largest: int) -> Iterator[StoredBlock | End]:
    """The blocks behind a header, each as soon as its checksum holds, then the end.

    Raises:
        DamagedFileError: a block is cut, changed, or larger than `largest`.
    """
    number = 0
    while True:
        what = f"block {number}"
        kind = take(source, 1, f"{what} or the end")[0]
        if kind == END:
            yield _read_end(source)
            return
        yield read_block(source, kind, what, (PACKED, STORED), largest)
        number += 1


def read_block(source: BinaryIO, kind: int, what: str, kinds: tuple[int, ...], largest: int) -> StoredBlock:
    """The block behind its first byte, its checksum looked at.

    Raises:
        DamagedFileError: it is cut, changed, of another kind than `kinds`, or larger than `largest`.
    """
    if kind not in kinds:
        raise DamagedFileError(f"{what} is of no kind that is known ({kind}): the file is damaged")
    front = bytes([kind]) + take(source, _BLOCK.size - 1, what)
    _, raw, length, told = _BLOCK.unpack(front)
    if raw > largest or length > largest + (largest >> 3) + 1024 or (kind == STORED and raw != length):
        raise DamagedFileError(
            f"{what} claims {raw:,} bytes in {length:,}, and a block has at most {largest:,}: the file is"
            " damaged"
        )
    stored = take(source, length, what)
    if zlib.crc32(stored, zlib.crc32(front[:9])) != told:
        raise DamagedFileError(f"{what} does not fit its checksum: the file is damaged")
    return StoredBlock(kind, raw, stored)


def _read_end(source: BinaryIO) -> End:
    front = bytes([END]) + take(source, _LAST.size - 1, "the end")
    _, raw, digest, told = _LAST.unpack(front)
    if zlib.crc32(front[:-4]) != told:
        raise DamagedFileError("the end does not fit its checksum: the file is damaged")
    if source.read(1):
        raise DamagedFileError("something stands behind the end: the file is damaged")
    return End(raw, digest)


def take(source: BinaryIO, length: int, what: str, whole: bool = True) -> bytes:
    """So many bytes of a stream, asked for piece by piece.

    Raises:
        DamagedFileError: it ends before that, and `whole` is asked for.
    """
    pieces: list[bytes] = []
    missing = length
    while missing:
        piece = source.read(min(missing, READ_AT_ONCE))
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    if missing and whole:
        raise DamagedFileError(f"the file ends inside {what}: it is cut or damaged")
    return b"".join(pieces)


class Digest:
    """Length and SHA-256 of what has passed, held against the end of a file."""

    def __init__(self, limit: int | None = None) -> None:
        self.raw = 0
        self.limit = limit
        self._sum = hashlib.sha256()

    def allow(self, raw: int) -> None:
        """Make sure that so many bytes more are allowed.

        Raises:
            TooLargeError: they are not.
        """
        if self.limit is not None and self.raw + raw > self.limit:
            raise TooLargeError(
                f"it unpacks to more than the {self.limit:,} bytes that --max-size allows: raise it if you"
                " trust the file"
            )

    def add(self, data: bytes | memoryview) -> None:
        """What has passed."""
        self.raw += len(data)
        self._sum.update(data)

    def end(self) -> bytes:
        """The bytes behind the last block."""
        return end(self.raw, self._sum.digest())

    def check(self, told: End) -> None:
        """Make sure that what passed is what the end tells.

        Raises:
            DamagedFileError: it is not.
        """
        if told.raw != self.raw or told.digest != self._sum.digest():
            raise DamagedFileError("what was unpacked does not fit the file's checksum: the file is damaged")
