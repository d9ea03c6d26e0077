"""What `regraft pack` and `regraft unpack` do with streams and archives: packed, listed, tested, unpacked."""

from __future__ import annotations

import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from regraft.codecs import archive_format, font
from regraft.codecs.archive import opened_archive
from regraft.codecs.archive_reading import Choice, check_archive, differences, extract
from regraft.codecs.block_stream import Prepared, in_order, pack_stream, pieces
from regraft.codecs.bpez import pack_block, unpack_bare
from regraft.codecs.codec_table import Codec, codec, codec_of
from regraft.codecs.frame import LARGEST_BLOCK, DamagedFileError, Digest, read_header
from regraft.codecs.pack_options import ENDINGS
from regraft.core.files import UnreadableError, expanded, place_of, reading, whole_file
from regraft.core.sizes import bytes_of

MODES = {"file": stat.S_IFREG, "folder": stat.S_IFDIR, "link": stat.S_IFLNK}
"""How systems mark kinds of entries."""
PIPE = "-"
"""The name of standard input and output."""


@dataclass(frozen=True)
class Outcome:
    """What was made: where, bytes of the plain and of the packed (0: not known), seconds, which way."""

    place: str
    raw: int
    stored: int
    seconds: float
    unpacked: bool = False

    def __str__(self) -> str:
        share = f", {8 * self.stored / self.raw:.3f} bits per byte" if self.raw and self.stored else ""
        sizes = [f"{size:,}" for size in (self.raw, self.stored) if size]
        words = " -> ".join(reversed(sizes) if self.unpacked else sizes) or "0"
        return f"{self.place}: {words} bytes{share}, {self.seconds:.2f} s"


@contextmanager
def source_of(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file to read, or standard input, and its length (0 where that is not known).

    Raises:
        UnreadableError: it cannot be read, or is a folder.
    """
    if name == PIPE:
        yield sys.stdin.buffer, 0
        return
    place = expanded(name)
    if place.is_dir():
        raise UnreadableError(f"{name} is a folder: pack folders with --codec archive")
    with reading(name, "name a file"):
        source = place.open("rb")
    with source:
        yield source, place.stat().st_size


@contextmanager
def destination(name: str) -> Iterator[BinaryIO]:
    """A file that is there when the block ends well, or standard output."""
    if name == PIPE:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with whole_file(name) as part, part.open("w+b") as out:
        yield out


def check_out(name: str, force: bool, *sources: str) -> None:
    """Make sure that a file may be written.

    Raises:
        ValueError: one is there, and `force` is not said; or it is what is read.
    """
    if name == PIPE:
        return
    place = expanded(name)
    if place.exists() and not place.is_file():
        kind = "a folder" if place.is_dir() else "no file"
        raise ValueError(f"{name} is {kind}: name a file with --out")
    there = [expanded(one) for one in sources if one != PIPE and expanded(one).exists()]
    if place.exists() and any(place.samefile(one) for one in there):
        raise ValueError(f"{name} is what is read: name another file with --out")
    if place.exists() and not force:
        raise ValueError(f"{name} is there already: choose another with --out, or replace it with --force")


def check_outs(files: Sequence[str], outs: Sequence[str], force: bool) -> None:
    """Make sure that every file can be read, and every output written, before any work.

    Raises:
        ValueError: two outputs are one, one is read or there already.
        UnreadableError: a file cannot be read.
    """
    if len({PIPE if out == PIPE else str(place_of(out)) for out in outs}) < len(outs):
        raise ValueError("two of the files would be written to one place: pack them one after the other")
    for file, out in zip(files, outs, strict=True):
        if not is_pipe(file):
            with source_of(file):
                pass
        check_out(out, force, *files)


def is_pipe(name: str) -> bool:
    """Whether a name is read once: standard input, or what is there and no file."""
    return name == PIPE or (expanded(name).exists() and not expanded(name).is_file())


def unpacked_name(name: str, kind: str) -> str:
    """Where an unpacked file goes by default."""
    if is_pipe(name):
        return PIPE
    ending = ENDINGS[kind]
    if kind in ("image", "font"):
        return (name.removesuffix(ending) if name.endswith(ending) else name) + ".png"
    return name.removesuffix(ending) if name.endswith(ending) and name != ending else name + ".unpacked"


def pack_file(kind: str, name: str, out: str, options: dict[str, Any]) -> Outcome:
    """One stream through a codec of streams; `raw` and `verify` among the options are ours.

    Raises:
        ValueError: an option has no such value.
        UnreadableError: the file cannot be read.
        NotWrittenError: the disk is full.
    """
    chosen = codec(kind)
    bare, verify = options.pop("raw", False), options.pop("verify", False)
    if verify and out == PIPE:
        raise ValueError("--verify reads again what was written: name a file with --out")
    if "block_size" in options:
        options["block_size"] = bytes_of(options["block_size"])
    ready = chosen.prepared(**options)
    began = time.perf_counter()
    with source_of(name) as (source, total), destination(out) as written:
        if bare:
            raw, stored = _pack_bare(source, written, ready)
        else:
            raw, stored = pack_stream(source, written, chosen.number, ready, total)
        if verify:
            _verify(chosen, written, bare, raw, {"model": options["model"]} if "model" in options else {})
    return Outcome(out, raw, stored, time.perf_counter() - began)


def _pack_bare(source: BinaryIO, out: BinaryIO, ready: Prepared) -> tuple[int, int]:
    """Blocks of bpez behind each other without our frame; bytes read and written."""
    raw = stored = 0

    def work(piece: bytes) -> tuple[int, bytes]:
        return len(piece), ready.pack_block(piece)

    for length, packed in in_order(work, pieces(source, ready.block_size), ready.workers):
        raw, stored = raw + length, stored + out.write(packed)
    if not raw:
        stored += out.write(pack_block(b""))
    return raw, stored


def _verify(chosen: Codec, written: BinaryIO, bare: bool, raw: int, options: dict[str, Any]) -> None:
    """Unpack what was written; its checksums are looked at on the way."""
    written.flush()
    written.seek(0)
    with Path("/dev/null").open("wb") as nowhere:
        if bare:
            found = sum(map(len, unpack_bare(pieces(written, 1 << 20), LARGEST_BLOCK)))
        else:
            found = chosen.unpack(written, nowhere, **options)
    if found != raw:
        raise RuntimeError("what was written does not unpack to what was packed: nothing is kept")


def header_of(name: str) -> tuple[str, dict[str, Any]]:
    """Which codec packed a file, and the parameters in its header.

    Raises:
        ValueError: it is no packed file, or a pipe.
    """
    if is_pipe(name):
        raise ValueError(f"{name} is read once, and this looks at several places: name a file")
    with told(name), source_of(name) as (source, _):
        number, parameters = read_header(source)
    return codec_of(number).name, parameters


@contextmanager
def told(name: str) -> Iterator[None]:
    """While inside, what is wrong with a packed file is said with its name."""
    try:
        yield
    except UnreadableError:
        raise
    except UnicodeError as error:
        raise DamagedFileError(f"{name}: it has a name that no file can have: the file is damaged") from error
    except (DamagedFileError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def unpack_file(name: str, out: str, max_size: str = "", bare: bool = False, **opening: Any) -> Outcome:
    """One packed file into another file; `opening` has the model where a language model's is needed.

    Raises:
        ValueError: it is no packed file, or unpacks to more than `max_size`.
        DamagedFileError: it is cut or changed; nothing is written.
    """
    limit = bytes_of(max_size) if max_size else None
    began = time.perf_counter()
    with told(name), source_of(name) as (source, length):
        if bare:
            with destination(out) as written:
                raw = _unpack_bare(source, written, limit)
            return Outcome(out, raw, length, time.perf_counter() - began, unpacked=True)
        number, parameters = read_header(source)
        kind = codec_of(number).name
        if opening and kind != "lm":
            raise ValueError(f"it was packed by {kind}, which takes no --model")
        if kind == "archive":
            raise ValueError("an archive is read at many places: unpack it from a file")
        if kind == "image":
            from regraft.codecs import image  # PyTorch is imported for pictures alone

            shown: Any = image.shown(image.image_behind(parameters, source, limit))
        elif kind == "font":
            shown = font.picture(font.unpack_font(parameters, source, limit))
        else:
            with destination(out) as written:
                raw = codec_of(number).unpack_rest(parameters, source, written, limit, **opening)
            return Outcome(out, raw, length, time.perf_counter() - began, unpacked=True)
    with destination(out) as written:
        shown.save(written, "PNG")
        raw = written.tell() if out != PIPE else 0
    return Outcome(out, raw, length, time.perf_counter() - began, unpacked=True)


def _unpack_bare(source: BinaryIO, out: BinaryIO, limit: int | None) -> int:
    digest = Digest(limit)
    for piece in unpack_bare(pieces(source, 1 << 20), LARGEST_BLOCK):
        digest.allow(len(piece))
        digest.add(piece)
        out.write(piece)
    return digest.raw


def check_packed(name: str, **opening: Any) -> str:
    """Unpack a file to nowhere; what was found, in words.

    Raises:
        DamagedFileError: it is cut or changed.
    """
    kind, _ = header_of(name)
    with told(name):
        if opening and kind != "lm":
            raise ValueError(f"it was packed by {kind}, which takes no --model")
        if kind == "archive":
            files, size = check_archive(expanded(name))
            return f"{name}: whole, {files:,} files of all versions, {size:,} bytes"
        with source_of(name) as (source, _), Path("/dev/null").open("wb") as nowhere:
            if kind == "image":
                from regraft.codecs import image

                found = image.read_image(source)
                return f"{name}: whole, {found.width} × {found.height} pixels"
            _, parameters = read_header(source)
            if kind == "font":
                grid = font.unpack_font(parameters, source).grid
                return f"{name}: whole, {grid.count} cells of {grid.cell[0]} × {grid.cell[1]} pixels"
            raw = codec(kind).unpack_rest(parameters, source, nowhere, None, **opening)
    return f"{name}: whole, {raw:,} bytes"


def unpack_archive(name: str, out: str, choice: Choice, max_size: str = "") -> int:
    """Entries of an archive below a new folder; how many.

    Raises:
        UnsafePathError: an entry would be written elsewhere; nothing is written.
        DamagedFileError: it is damaged; nothing is written.
    """
    limit = bytes_of(max_size) if max_size else None
    with told(name):
        return len(extract(expanded(name), expanded(out), choice, limit))


def left_over(contents: archive_format.Contents) -> str:
    """What is said of an add that did not end; nothing where all did."""
    if not contents.left_over:
        return ""
    return f"{contents.left_over:,} bytes behind the last whole version are of an add that did not end"


@dataclass(frozen=True)
class Told:
    """What is said of a file: as lines, and as JSON."""

    lines: list[str]
    as_json: dict[str, Any]


def listed(name: str, options: dict[str, Any]) -> Told:
    """What a packed file holds: of an archive its versions and entries, of others what the header tells.

    Raises:
        ValueError: it is no packed file, or nothing fits.
        DamagedFileError: it is damaged.
    """
    kind, parameters = header_of(name)
    if kind != "archive":
        if options:
            raise ValueError(f"{name} is no archive, so it has no versions and entries to choose of")
        size = expanded(name).stat().st_size
        words = ", ".join(
            f"{key} {value}" for key, value in parameters.items() if not isinstance(value, list)
        )
        return Told([f"{name}: {kind}, {size:,} bytes; {words}"], {"codec": kind, "parameters": parameters})
    with told(name):
        contents = opened_archive(expanded(name))
        entries = choice_of(options).of(contents)
    lines = [
        f"version {number}  {one.date}  {len(one.entries):,} new or changed, {len(one.gone):,} gone,"
        f" {one.bytes:,} bytes"
        for number, one in enumerate(contents.versions, 1)
    ]
    lines += [_line(entry) for entry in entries]
    lines += [f"note: {note}"] if (note := left_over(contents)) else []
    versions = [
        {"date": v.date, "entries": len(v.entries), "gone": v.gone, "bytes": v.bytes}
        for v in contents.versions
    ]
    kept = ("path", "kind", "mode", "time", "size", "sha256", "target")
    rows = [{key: getattr(entry, key) for key in kept} for entry in entries]
    return Told(lines, {"codec": kind, "versions": versions, "entries": rows, "note": left_over(contents)})


def _line(entry: archive_format.ArchiveEntry) -> str:
    date = datetime.fromtimestamp(entry.time / 1e9, UTC).isoformat(sep=" ", timespec="seconds")
    link = f" -> {printed(entry.target)}" if entry.target else ""
    mode = stat.filemode(entry.mode | MODES[entry.kind])
    return f"{mode}  {entry.size:>13,}  {date[:19]}  {printed(entry.path)}{link}"


def printed(path: str) -> str:
    """A path as it may be shown: no control characters, and bytes that are no text as their numbers."""

    def shown(char: str) -> str:
        return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()

    return "".join(map(shown, path))


def choice_of(options: dict[str, Any]) -> Choice:
    """Which entries of an archive are meant."""
    patterns = {name: tuple(options.get(name, ())) for name in ("only", "without")}
    return Choice(options.get("version", 0), options.get("date", ""), **patterns)


def parted(name: str, options: dict[str, Any], beside: str) -> Told:
    """How what stands below a folder differs from an archive.

    Raises:
        ValueError: it is no archive.
        DamagedFileError: it is damaged.
    """
    with told(name):
        found = list(differences(expanded(name), expanded(beside), choice_of(options)))
    lines = [f"{what:<8}{printed(path)}" for what, path in found] or [f"{name}: nothing differs"]
    return Told(lines, {"differences": [{"what": what, "path": path} for what, path in found]})
