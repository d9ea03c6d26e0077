"""`archive`: a journaling archive on the ZPAQ algorithm (METHODS.md, section 8).

Every add appends a version that stores what changed: files are cut by what they hold (`chunking`), chunks
that are known are not stored again, and the others go through ZPAQ in bounded blocks. Nothing that an
archive says is believed before its checksum is looked at, and no path is written before all are.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import zpaq

from regraft.codecs.archive_format import (
    CHUNKS,
    HASH_BYTES,
    NUMBER,
    ArchiveEntry,
    Contents,
    Version,
    index_of,
    read_contents,
    seal,
)
from regraft.codecs.archive_paths import check_paths, selected
from regraft.codecs.chunking import chunks, kind_of
from regraft.codecs.frame import block, header
from regraft.core.files import RunFolderError, UnreadableError, reading, whole_file, writing
from regraft.core.progress import advance

LEVEL = 3
"""Of ZPAQ, unless another is asked for."""
REDUNDANCY, MOST_REDUNDANT = 2, 255
"""What ZPAQ's own program makes of a block that is told by the byte before, over our share; found on text,
markup, code and pixels; what it comes to stands in docs/codecs.md."""
LOOKED_AT = 1 << 16
"""Bytes at a file's begin that tell whether it is text."""
BLOCK_BITS = {1: 24, 2: 26, 3: 26, 4: 26, 5: 26}
"""Two to this power is how many bytes go through ZPAQ at once, as its own program has it."""


@dataclass(frozen=True)
class Added:
    """What an add did: the version's number, its entries, what is gone, bytes stored and bytes of new chunks,
    and what was left out, with the reason."""

    version: int
    entries: int
    gone: int
    stored: int
    fresh: int
    left_out: tuple[str, ...]


def add(archive: Path, paths: Sequence[Path], level: int = LEVEL, without: Sequence[str] = ()) -> Added:
    """Append a version with what changed below some paths; the archive is made where it is not there.

    Raises:
        ValueError: two paths have one name, a level is none, a path is the archive itself.
        UnreadableError: a path cannot be read.
        DamagedFileError: the archive is damaged.
        NotWrittenError: the disk is full.
    """
    if level not in BLOCK_BITS:
        raise ValueError(f"--level {level} of archive is no number from 1 to 5")
    found, left_out = _found(archive, paths, without)
    check_paths([_entry_of(name, path) for name, path in found.items()])
    if archive.exists():
        with held(archive, "r+b") as file:
            contents = read_contents(file)
            return _appended(file, contents, found, level, left_out)
    with whole_file(archive) as fresh, fresh.open("w+b") as file:
        file.write(header(NUMBER, {}))
        file.flush()
        done = _appended(file, Contents(end=file.tell()), found, level, left_out)
        if archive.exists():
            raise RunFolderError(f"another process has made {archive} meanwhile: add to it")
        return done


@contextmanager
def held(archive: Path, mode: str) -> Iterator[BinaryIO]:
    """An archive opened, for one who writes or for all who read.

    Raises:
        RunFolderError: another process writes to it.
    """
    with reading(archive, "name an archive"):
        opened = archive.open(mode)
    with opened:
        file = cast(BinaryIO, opened)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if mode == "rb" else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise RunFolderError(f"another process is using {archive}: wait for its end") from error
        yield file


def _found(archive: Path, paths: Sequence[Path], without: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Every file, folder and link below the paths by its name in the archive, and what is left out.

    A path is known by its last name; links below it are kept as links.
    """
    found: dict[str, Path] = {}
    left_out = []
    for path in paths:
        name = path.resolve().name if path.name in ("", ".", "..") else path.name
        if name in found:
            raise ValueError(f"two of the paths are called {name!r}: add them to archives of their own")
        with reading(path, "name files and folders that are there"):
            path.lstat()
            if archive.exists() and path.exists() and path.samefile(archive):
                raise ValueError(f"{path} is the archive itself: name what is to go into it")
        # what was named is meant itself, be it a link; links below it stay links
        top = path.resolve() if path.is_symlink() else path
        for each in [top, *_below(top)]:
            inside = "/".join([name, *each.relative_to(top).parts])
            mode = each.lstat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
                if not archive.exists() or not each.exists() or not each.samefile(archive):
                    found[inside] = each
            else:
                left_out.append(f"{inside} is no file, folder or link")
    entries = [ArchiveEntry(path, "folder", 0, 0) for path in found]
    kept = {entry.path for entry in selected(entries, (), without)}
    return {name: path for name, path in found.items() if name in kept}, left_out


def _below(path: Path) -> Iterator[Path]:
    """Everything below a folder, links not followed."""
    if path.is_symlink() or not path.is_dir():
        return

    def refuse(error: OSError) -> None:
        raise UnreadableError(
            f"{error.filename} cannot be read ({error.strerror}): make it readable, or leave it out"
        )

    for folder, folders, files in os.walk(path, onerror=refuse):
        folders.sort()
        for name in [*folders, *sorted(files)]:
            yield Path(folder, name)


def _entry_of(name: str, path: Path) -> ArchiveEntry:
    """What the system tells of a path."""
    with reading(path, "it was there a moment ago: add once more"):
        told = path.lstat()
        target = os.readlink(path) if stat.S_ISLNK(told.st_mode) else ""
    mode, time = stat.S_IMODE(told.st_mode), told.st_mtime_ns
    if stat.S_ISLNK(told.st_mode):
        return ArchiveEntry(name, "link", mode, time, target=target)
    if stat.S_ISDIR(told.st_mode):
        return ArchiveEntry(name, "folder", mode, time)
    return ArchiveEntry(name, "file", mode, time, told.st_size)


class _Writer:
    """New chunks gathered to blocks, each written as soon as it is full."""

    def __init__(self, file: BinaryIO, contents: Contents, level: int):
        self.file, self.level = file, level
        self.first = len(contents.hashes)
        self.known = {digest: number for number, digest in enumerate(contents.hashes)}
        self.sizes: list[int] = []
        self.hashes: list[str] = []
        self.counts: list[int] = []
        self.waiting: list[bytes] = []
        self.waits = self.fresh = 0
        self.text = False
        self.digest = hashlib.sha256()
        self.written = 0

    def add(self, chunk: bytes) -> int:
        """The number of a chunk, which is kept if it is new."""
        digest = hashlib.sha256(chunk).digest()[:HASH_BYTES].hex()
        if digest not in self.known:
            if self.waits + len(chunk) > 1 << BLOCK_BITS[self.level]:
                self.flush()
            self.known[digest] = self.first + len(self.hashes)
            self.waiting.append(chunk)
            self.waits += len(chunk)
            self.sizes.append(len(chunk))
            self.hashes.append(digest)
        return self.known[digest]

    def flush(self) -> None:
        """Write the block that is gathered."""
        if self.waiting:
            raw = b"".join(self.waiting)
            self.put(
                block(CHUNKS, len(raw), zpaq.compress(raw, method=method_of(raw, self.level), threads=1))
            )
            self.counts.append(len(self.waiting))
            self.fresh += len(raw)
            self.waiting, self.waits = [], 0

    def put(self, content: bytes) -> None:
        """Write bytes of this version."""
        self.file.write(content)
        self.digest.update(content)
        self.written += len(content)


def method_of(raw: bytes, level: int) -> str:
    """ZPAQ's name for a level and a block of this kind: level and block size, how well bytes are told by the
    one before, 1 for text and 2 for code."""
    share, text, code = kind_of(np.frombuffer(raw, np.uint8))
    redundancy = min(MOST_REDUNDANT, REDUNDANCY * share)
    return f"{level}{BLOCK_BITS[level] - 20},{redundancy},{int(text) + 2 * int(code)}"


def _appended(
    file: BinaryIO,
    contents: Contents,
    found: dict[str, Path],
    level: int,
    left_out: list[str],
) -> Added:
    """The version behind the last seal; if anything goes wrong the file ends there again."""
    with writing(file.name):
        try:
            return _version(file, contents, found, level, left_out)
        except BaseException:
            file.truncate(contents.end)
            raise


def _version(
    file: BinaryIO, contents: Contents, found: dict[str, Path], level: int, left_out: list[str]
) -> Added:
    before = contents.at(len(contents.versions))
    roots = {name.split("/")[0] for name in found}
    gone = [path for path in before if path.split("/")[0] in roots and path not in found]
    file.seek(contents.end)
    file.truncate()
    writer = _Writer(file, contents, level)
    entries: list[ArchiveEntry] = []
    # what looks alike stands together, so that a block has one kind of bytes
    kinds = {name: _is_text(path) for name, path in found.items()}
    for at, name in enumerate(sorted(found, key=lambda one: (kinds[one], Path(one).suffix, one))):
        if kinds[name] and not writer.text:
            writer.flush()
            writer.text = True
        entry = _entry_of(name, found[name])
        old = before.get(name)
        if old is None or entry != replace(old, sha256="", chunks=()):
            entries.append(_stored(entry, found[name], writer) if entry.kind == "file" else entry)
        advance("files added", at + 1, len(found))
    number = len(contents.versions) + 1
    if not entries and not gone and contents.versions:
        return Added(number - 1, 0, 0, 0, 0, tuple(left_out))
    writer.flush()
    version = Version(datetime.now(UTC).isoformat(timespec="seconds"), entries, gone)
    for told in index_of(version, writer.sizes, writer.hashes, writer.counts):
        writer.put(told)
    file.write(seal(writer.written, writer.digest.digest()))
    file.flush()
    os.fsync(file.fileno())
    return Added(number, len(entries), len(gone), writer.written, writer.fresh, tuple(left_out))


def _is_text(path: Path) -> bool:
    """Whether a file begins as text does: ZPAQ models it in another way."""
    if path.is_symlink() or not path.is_file():
        return False
    with reading(path, "make it readable, or leave it out with --without"), path.open("rb") as source:
        return bool(kind_of(np.frombuffer(source.read(LOOKED_AT), np.uint8))[1])


def _stored(entry: ArchiveEntry, path: Path, writer: _Writer) -> ArchiveEntry:
    """A file's chunks into the archive; its entry with what was really read."""
    digest, size, numbers = hashlib.sha256(), 0, []
    with reading(path, "make it readable, or leave it out with --without"), path.open("rb") as source:
        for chunk in chunks(source):
            digest.update(chunk)
            size += len(chunk)
            numbers.append(writer.add(chunk))
    return replace(entry, size=size, sha256=digest.hexdigest(), chunks=tuple(numbers))


def opened_archive(archive: Path) -> Contents:
    """What an archive holds, from its indexes.

    Raises:
        ValueError: it is none.
        DamagedFileError: it is damaged.
    """
    with held(archive, "rb") as file:
        return read_contents(file)
