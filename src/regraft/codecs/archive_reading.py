"""What an archive holds, out again: versions, single entries, everything; tested; compared with a disk."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from regraft.codecs.archive import held
from regraft.codecs.archive_format import (
    CHUNKS,
    HASH_BYTES,
    ArchiveEntry,
    Contents,
    Packed,
    check_seals,
    read_contents,
)
from regraft.codecs.archive_paths import check_paths, selected
from regraft.codecs.frame import LARGEST_BLOCK, DamagedFileError, TooLargeError, read_block
from regraft.codecs.zpaq_worker import unpacked
from regraft.core.files import reading, whole_folder
from regraft.core.progress import advance

DAY = len("2026-11-29")
"""Letters of a date without a time."""
ALLOWED = 0o777
"""Bits of a mode that are given back: none that runs a file as somebody else."""


@dataclass(frozen=True)
class Choice:
    """Which entries: of which version (0: the last; or by its number, or the last up to a date), by which
    patterns."""

    version: int = 0
    date: str = ""
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def of(self, contents: Contents) -> list[ArchiveEntry]:
        """The entries that are meant.

        Raises:
            ValueError: there is no such version, or nothing fits.
        """
        entries = contents.at(self._number(contents)).values()
        found = selected(entries, self.only, self.without)
        if not found and (self.only or self.without):
            raise ValueError(
                f"nothing in the archive fits {' '.join((*self.only, *self.without))!r}: see --list"
            )
        return sorted(found, key=lambda entry: entry.path)

    def _number(self, contents: Contents) -> int:
        count = len(contents.versions)
        if self.date:
            until = _moment(self.date)
            found = [n for n, one in enumerate(contents.versions, 1) if _moment(one.date) <= until]
            if not found:
                first = contents.versions[0].date if count else "none"
                raise ValueError(f"there is no version up to {self.date}: the first is of {first}")
            return found[-1]
        if not 0 <= self.version <= count:
            raise ValueError(f"there is no version {self.version}: the archive has {count}")
        return self.version or count


def _moment(date: str) -> datetime:
    """A date as written in ISO 8601; a day alone means its end, and without a zone it is UTC.

    Raises:
        ValueError: it is none.
    """
    try:
        whole = f"{date}T23:59:59" if len(date) == DAY else date
        found = datetime.fromisoformat(whole)
    except ValueError as error:
        raise ValueError(f"{date!r} is no date: write 2026-11-29 or 2026-11-29T12:00:00") from error
    return found if found.tzinfo else datetime.fromisoformat(f"{whole}+00:00")


def extract(archive: Path, out: Path, choice: Choice, max_size: int | None = None) -> list[ArchiveEntry]:
    """Write entries below `out`, a new folder, which is there when all of them are whole.

    Raises:
        UnsafePathError: a path leads out of the folder; nothing is written.
        TooLargeError: it is more than `max_size` bytes.
        DamagedFileError: a chunk or a file does not fit its hash.
    """
    with held(archive, "rb") as file:
        contents = read_contents(file)
        entries = choice.of(contents)
        check_paths(entries)
        total = sum(entry.size for entry in entries)
        if max_size is not None and total > max_size:
            raise TooLargeError(
                f"it unpacks to {total:,} bytes, more than the {max_size:,} that --max-size allows: raise it"
                " if you trust the archive"
            )
        with whole_folder(out, as_stored=True) as fresh:
            _write(file, contents, entries, fresh, total)
        # a folder that is closed could not be moved to its place
        for entry in sorted(entries, key=lambda one: one.path.count("/"), reverse=True):
            if entry.kind == "folder":
                _attributes(out, entry)
    return entries


def _write(file: BinaryIO, contents: Contents, entries: list[ArchiveEntry], fresh: Path, total: int) -> None:
    """All entries below a folder but the folders' own modes and times; every block is unpacked once."""
    for entry in entries:
        place = fresh / entry.path
        (place if entry.kind == "folder" else place.parent).mkdir(parents=True, exist_ok=True)
    wanted: dict[int, list[tuple[ArchiveEntry, int]]] = {}
    for entry in entries:
        if entry.kind == "file":
            (fresh / entry.path).touch(exist_ok=False)
            places = accumulate((contents.sizes[number] for number in entry.chunks), initial=0)
            for number, place in zip(entry.chunks, places, strict=False):
                wanted.setdefault(number, []).append((entry, place))
        elif entry.kind == "link":
            (fresh / entry.path).symlink_to(entry.target)
    done = 0
    for block in contents.blocks:
        numbers = [n for n in range(block.first, block.first + block.count) if n in wanted]
        for number, chunk in _chunks(file, contents, block, numbers) if numbers else ():
            for entry, place in wanted[number]:
                with (fresh / entry.path).open("r+b") as out:
                    out.seek(place)
                    out.write(chunk)
                done += len(chunk)
            advance("bytes unpacked", done, total)
    for entry in entries:
        if entry.kind == "file":
            with (fresh / entry.path).open("rb") as source:
                if hashlib.file_digest(source, "sha256").hexdigest() != entry.sha256:
                    raise DamagedFileError(f"{entry.path} does not fit its hash: the file is damaged")
        if entry.kind != "folder":
            _attributes(fresh, entry)


def _attributes(root: Path, entry: ArchiveEntry) -> None:
    """Give an entry its time and mode back."""
    place, link = root / entry.path, entry.kind == "link"
    if not link:
        place.chmod(entry.mode & ALLOWED)
    with suppress(NotImplementedError):
        os.utime(place, ns=(entry.time, entry.time), follow_symlinks=not link)


def _chunks(
    file: BinaryIO, contents: Contents, block: Packed, numbers: Sequence[int]
) -> Iterator[tuple[int, bytes]]:
    """Chunks of a block by number, each held to its hash.

    Raises:
        DamagedFileError: one does not fit it.
    """
    file.seek(block.place)
    kind = file.read(1)[0]
    found = read_block(file, kind, f"the block of chunk {block.first}", (CHUNKS,), LARGEST_BLOCK)
    sizes = contents.sizes[block.first : block.first + block.count]
    if sum(sizes) != found.raw:
        raise DamagedFileError(f"the block of chunk {block.first} has another length: the file is damaged")
    raw, starts = unpacked(found.stored, found.raw), [0, *accumulate(sizes)]
    for number in numbers:
        at = number - block.first
        chunk = raw[starts[at] : starts[at + 1]]
        if hashlib.sha256(chunk).digest()[:HASH_BYTES].hex() != contents.hashes[number]:
            raise DamagedFileError(f"chunk {number} does not fit its hash: the file is damaged")
        yield number, chunk


def check_archive(archive: Path) -> tuple[int, int]:
    """Look at all seals, blocks and chunks, and at the paths of every version; how many files and bytes.

    Raises:
        DamagedFileError: something does not fit its checksum.
        UnsafePathError: a version could not be unpacked.
    """
    with held(archive, "rb") as file:
        contents = read_contents(file)
        check_seals(file, contents)
        for number in range(1, len(contents.versions) + 1):
            check_paths(list(contents.at(number).values()))
        for done, block in enumerate(contents.blocks, 1):
            for _ in _chunks(file, contents, block, range(block.first, block.first + block.count)):
                pass
            advance("blocks tested", done, len(contents.blocks))
    files = [entry for version in contents.versions for entry in version.entries if entry.kind == "file"]
    return len(files), sum(entry.size for entry in files)


def differences(archive: Path, beside: Path, choice: Choice) -> Iterator[tuple[str, str]]:
    """How what stands below `beside` differs from a version: what and path, in the order of paths.

    `missing`: in the archive alone; `kind`, `content`, `target`, `mode`, `time` differ; `new`: below one of
    the archive's folders and not in it.
    """
    with held(archive, "rb") as file:
        entries = {entry.path: entry for entry in choice.of(read_contents(file))}
        check_paths(list(entries.values()))
    for path, entry in entries.items():
        yield from ((what, path) for what in _differs(beside / path, entry))
    for root in sorted({path.split("/")[0] for path in entries}):
        if (beside / root).is_dir() and not (beside / root).is_symlink():
            for folder, folders, files in os.walk(beside / root):
                folders.sort()
                for name in sorted([*folders, *files]):
                    path = Path(folder, name).relative_to(beside).as_posix()
                    if path not in entries and selected(
                        [ArchiveEntry(path, "file", 0, 0)], choice.only, choice.without
                    ):
                        yield "new", path


def _differs(place: Path, entry: ArchiveEntry) -> list[str]:
    """What differs between a place and an entry."""
    try:
        told = place.lstat()
    except OSError:
        return ["missing"]
    kinds = {"file": stat.S_ISREG, "folder": stat.S_ISDIR, "link": stat.S_ISLNK}
    if not kinds[entry.kind](told.st_mode):
        return ["kind"]
    if entry.kind == "link":
        return ["target"] if os.readlink(place) != entry.target else []
    found = []
    if entry.kind == "file":
        with reading(place, "make it readable"), place.open("rb") as source:
            if (
                told.st_size != entry.size
                or hashlib.file_digest(source, "sha256").hexdigest() != entry.sha256
            ):
                found.append("content")
        if told.st_mtime_ns != entry.time:
            found.append("time")
    if stat.S_IMODE(told.st_mode) & ALLOWED != entry.mode & ALLOWED:
        found.append("mode")
    return found
