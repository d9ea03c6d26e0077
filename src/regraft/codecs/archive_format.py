"""The file of an archive: versions behind each other, each of blocks of chunks, an index, and a seal.

    header of the frame, then for each version
    CHUNKS  blocks of chunks behind each other, packed by ZPAQ
    INDEX   what changed, as JSON, packed by zlib: chunks and their hashes, entries that are new or other,
            paths that are gone
    SEAL    how many bytes the version takes, and the SHA-256 of them

A version counts when its seal is there: what a killed add has left behind the last seal is cut off by the
next.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from regraft.codecs.frame import (
    BLOCK_FRONT,
    LARGEST_BLOCK,
    DamagedFileError,
    block,
    parsed,
    read_block,
    read_header,
)
from regraft.core.strict_json import json_text

NUMBER = 3
"""Of the codec in the frame."""
CHUNKS, INDEX, SEAL = 3, 4, 5
"""Kinds of blocks."""
HASH_BYTES = 20
"""Of a chunk's SHA-256 that are kept; a whole file has all 32."""
LEAST_INDEX, INDEX_SHARE = 4 << 20, 100
"""Bytes that all indexes of an archive may unpack to, beside so many for each byte of the file: hashes do not
become smaller, so ours have a small part of that."""
ALL_MODES = 0o7777
"""Bits of a mode."""
MOST_REPEATS = 1 << 16
"""How often one file repeats all chunks of an archive, at most."""
LATEST = 1 << 63
"""Nanoseconds since 1970 that no file has."""
KINDS = ("file", "folder", "link")
"""What an entry can be."""
_SEAL = struct.Struct("<Q32s")


@dataclass(frozen=True)
class ArchiveEntry:
    """One file, folder or link as it was added; times in nanoseconds since 1970."""

    path: str
    kind: str
    mode: int
    time: int
    size: int = 0
    sha256: str = ""
    chunks: tuple[int, ...] = ()
    target: str = ""


@dataclass(frozen=True)
class Packed:
    """Where a block of chunks lies: place in the file, and the first of its chunks and their number."""

    place: int
    first: int
    count: int


@dataclass
class Version:
    """What one add changed: date (ISO, UTC), entries that are new or other, paths that are gone, bytes."""

    date: str
    entries: list[ArchiveEntry] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    bytes: int = 0


@dataclass
class Contents:
    """Everything that an archive's indexes tell, and where its last seal ends."""

    versions: list[Version] = field(default_factory=list)
    blocks: list[Packed] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    end: int = 0
    left_over: int = 0
    """Bytes behind the last seal: of an add that did not end."""
    read: int = 0
    """Bytes of all indexes."""

    def at(self, version: int) -> dict[str, ArchiveEntry]:
        """The entries by path as they were after version `version`, counted from 1."""
        found: dict[str, ArchiveEntry] = {}
        for one in self.versions[:version]:
            for path in one.gone:
                found.pop(path, None)
            found.update({entry.path: entry for entry in one.entries})
        return found


def index_of(
    version: Version, sizes: Sequence[int], hashes: Sequence[str], counts: Sequence[int]
) -> Iterator[bytes]:
    """The INDEX blocks of a version with its own chunks, `counts` of them in each of its blocks."""
    entries = [
        {key: value for key, value in {**asdict(entry), "chunks": _runs_of(entry.chunks)}.items() if value}
        for entry in version.entries
    ]
    told = {
        "date": version.date,
        "entries": entries,
        "gone": version.gone,
        "sizes": list(sizes),
        "hashes": "".join(hashes),
        "blocks": list(counts),
    }
    raw = json_text(told).encode()
    for start in range(0, len(raw), LARGEST_BLOCK):
        piece = raw[start : start + LARGEST_BLOCK]
        yield block(INDEX, len(piece), zlib.compress(piece, 9))


def _runs_of(chunks: Sequence[int]) -> list[int]:
    """Numbers as first and count of each run: a file that is added whole has one."""
    found: list[int] = []
    for number in chunks:
        if found and number == found[-2] + found[-1]:
            found[-1] += 1
        else:
            found += [number, 1]
    return found


def seal(written: int, digest: bytes) -> bytes:
    """The SEAL block behind so many bytes with this SHA-256."""
    return block(SEAL, 0, _SEAL.pack(written, digest))


def read_contents(source: BinaryIO) -> Contents:
    """All indexes of an archive, without unpacking what it holds.

    Raises:
        ValueError: it is no archive.
        DamagedFileError: something in front of the last seal is changed, or an index makes no sense.
    """
    number, _ = read_header(source)
    if number != NUMBER:
        raise ValueError("it is a packed file, but no archive")
    found = Contents(end=source.tell())
    size = os.fstat(source.fileno()).st_size if source.seekable() else 0
    while source.tell() < size:
        try:
            _read_version(source, found, size)
        except CutError:
            break
    found.left_over = size - found.end
    return found


class CutError(Exception):
    """The file ends inside a version."""


def _read_version(source: BinaryIO, found: Contents, size: int) -> None:
    """One version, if its seal is there.

    Raises:
        CutError: the file ends before that.
    """
    start, places, index = found.end, [], b""
    while True:
        place = source.tell()
        front = source.read(BLOCK_FRONT)
        length = int.from_bytes(front[5:9], "little")
        if (
            len(front) < BLOCK_FRONT
            or place + BLOCK_FRONT + length > size
            or _only_zeros(source, start, size)
        ):
            raise CutError
        if front[0] == CHUNKS and not index:
            places.append(place)
            source.seek(place + BLOCK_FRONT + length)
            continue
        source.seek(place + 1)
        what = f"the {'seal' if front[0] == SEAL else 'index'} of version {len(found.versions) + 1}"
        told = read_block(source, front[0], what, (INDEX, SEAL) if index else (INDEX,), LARGEST_BLOCK)
        if front[0] == INDEX:
            found.read += told.raw
            if found.read > LEAST_INDEX + INDEX_SHARE * size:
                raise DamagedFileError(f"{what} is larger than a file of this size has: the file is damaged")
            index += opened_index(told.stored, told.raw)
            continue
        if len(told.stored) != _SEAL.size or _SEAL.unpack(told.stored)[0] != place - start:
            raise DamagedFileError(f"{what} does not fit its version: the file is damaged")
        _enter(found, parsed(index), places)
        found.end = source.tell()
        found.versions[-1].bytes = found.end - start
        return


def _only_zeros(source: BinaryIO, start: int, size: int) -> bool:
    """Whether there is nothing but zeros from a place on: what a loss of power leaves of an add."""
    here = source.tell()
    source.seek(start)
    first = source.read(BLOCK_FRONT)
    zeros = not any(first) and not any(any(piece) for piece in _pieces(source, size - source.tell()))
    source.seek(here)
    return zeros


def opened_index(stored: bytes, raw: int) -> bytes:
    """What an INDEX block holds.

    Raises:
        DamagedFileError: it is none.
    """
    opened = zlib.decompressobj()
    try:
        content = opened.decompress(stored, raw + 1)
    except zlib.error as error:
        raise DamagedFileError(f"an index is no zlib stream ({error}): the file is damaged") from error
    if len(content) != raw or not opened.eof:
        raise DamagedFileError("an index does not unpack to its length: the file is damaged")
    return content


def _enter(found: Contents, index: dict[str, Any], places: list[int]) -> None:
    """Take a version's index into what is known, if it makes sense."""
    try:
        sizes, counts, hashes = index["sizes"], index["blocks"], index["hashes"]
        gone, date = index["gone"], index["date"]
        known = len(found.sizes) + len(sizes)
        entries = [_entry(told, MOST_REPEATS + 64 * known) for told in index["entries"]]
        whole = [type(one) is int and 0 < one <= LARGEST_BLOCK for one in (*sizes, *counts)]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError("an index does not tell what an index tells: the file is damaged") from error
    width = 2 * HASH_BYTES
    if not (
        all(whole)
        and len(counts) == len(places)
        and sum(counts) == len(sizes)
        and isinstance(hashes, str)
        and len(hashes) == width * len(sizes)
        and isinstance(date, str)
        and isinstance(gone, list)
        and all(isinstance(path, str) for path in gone)
        and all(0 <= one < known for entry in entries for one in entry.chunks)
    ):
        raise DamagedFileError("an index does not fit its version: the file is damaged")
    first = len(found.sizes)
    for place, count in zip(places, counts, strict=True):
        found.blocks.append(Packed(place, first, count))
        first += count
    found.sizes += sizes
    found.hashes += [hashes[at : at + width] for at in range(0, len(hashes), width)]
    for entry in entries:
        if entry.kind == "file" and sum(found.sizes[one] for one in entry.chunks) != entry.size:
            raise DamagedFileError(
                f"the chunks of {entry.path!r} do not make up its size: the file is damaged"
            )
    found.versions.append(Version(date, entries, list(gone)))


def _entry(told: Any, known: int) -> ArchiveEntry:
    """An entry as an index tells it, of no more than so many chunks.

    Raises:
        ValueError: it has other fields, or values of another kind.
    """
    if not isinstance(told, dict):
        raise ValueError("no entry")
    runs = told.get("chunks", ())
    texts = (told["path"], told["kind"], told.get("sha256", ""), told.get("target", ""))
    numbers = (told.get("mode", 0), told.get("time", 0), told.get("size", 0), *runs)
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(type(number) is int and -LATEST < number < LATEST for number in numbers)
        or texts[1] not in KINDS
        or min(numbers[0], *numbers[2:]) < 0
        or numbers[0] > ALL_MODES
        or len(runs) % 2
        or sum(runs[1::2]) > known
    ):
        raise ValueError("no entry")
    for text in texts:
        os.fsencode(text)  # a lone surrogate is no name: UnicodeEncodeError is a ValueError
    pairs = zip(runs[::2], runs[1::2], strict=True)
    chunks = tuple(number for first, count in pairs for number in range(first, first + count))
    return ArchiveEntry(texts[0], texts[1], *numbers[:3], texts[2], chunks, texts[3])


def check_seals(source: BinaryIO, contents: Contents) -> None:
    """Make sure that every version's bytes are what its seal tells.

    Raises:
        DamagedFileError: they are not.
    """
    source.seek(0)
    read_header(source)
    for number, version in enumerate(contents.versions, 1):
        digest, left = hashlib.sha256(), version.bytes - BLOCK_FRONT - _SEAL.size
        for piece in _pieces(source, left):
            digest.update(piece)
        told = read_block(source, source.read(1)[0], f"the seal of version {number}", (SEAL,), LARGEST_BLOCK)
        if _SEAL.unpack(told.stored)[1] != digest.digest():
            raise DamagedFileError(f"version {number} does not fit its seal: the file is damaged")


def _pieces(source: BinaryIO, length: int) -> Iterator[bytes]:
    while length and (piece := source.read(min(length, 1 << 20))):
        length -= len(piece)
        yield piece
