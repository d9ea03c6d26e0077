"""Which paths of an archive may be written, looked at before anything is."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from regraft.codecs.archive_format import ArchiveEntry
from regraft.core.files import LONGEST_NAME

DEVICES = {
    "con", "prn", "aux", "nul", "conin$", "conout$",
    *(f"{name}{n}" for name in ("com", "lpt") for n in "123456789¹²³"),
}  # fmt: skip
"""Names that are devices on Windows, with any ending."""
MOST_PARTS = 200
"""Folders of a path."""
LONGEST_PATH = 4096
"""Bytes of a whole path."""


class UnsafePathError(ValueError):
    """An archive that would write somewhere else than into its folder; the message names the path."""


def selected(
    entries: Iterable[ArchiveEntry], only: Sequence[str], without: Sequence[str]
) -> list[ArchiveEntry]:
    """The entries whose path, or a folder above it, fits a pattern of `only` (none: all) and none of
    `without`."""

    def fits(path: str, patterns: Sequence[str]) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        return any(fnmatchcase(part, pattern.rstrip("/")) for part in above for pattern in patterns)

    return [one for one in entries if (not only or fits(one.path, only)) and not fits(one.path, without)]


def check_paths(entries: Sequence[ArchiveEntry]) -> None:
    """Make sure that entries stay in one folder wherever they are unpacked.

    Raises:
        UnsafePathError: one leads out of it, is a device's name, goes through a link, or two would be one
            file where large and small letters, or spellings of accents, are the same.
    """
    folded: dict[str, str] = {}
    kinds = {entry.path: entry.kind for entry in entries}
    for entry in entries:
        reason = _why_not(entry.path)
        if reason:
            raise UnsafePathError(f"the archive has the path {entry.path!r}, {reason}: nothing is written")
        clash = next((pair for pair in _spelled(entry.path, folded) if pair[0] != pair[1]), None)
        if clash:
            other, path = clash
            raise UnsafePathError(
                f"the archive has {other!r} and {path!r}, which are one where large and small"
                " letters are the same: nothing is written; leave one out with --without"
            )
        for above in _above(entry.path):
            if kinds.get(above, "folder") != "folder":
                raise UnsafePathError(
                    f"the archive has {entry.path!r} inside of {above!r}, which is no folder: nothing is"
                    " written"
                )
        if entry.kind == "link":
            _check_link(entry)


def _spelled(path: str, folded: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The path and each folder above it, beside how it was spelled first."""
    for one in (*_above(path), path):
        yield folded.setdefault(unicodedata.normalize("NFC", one).casefold(), one), one


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _why_not(path: str) -> str:
    """Why a path may not be written; nothing where it may."""
    if path.startswith("/") or path.startswith("\\") or path[1:2] == ":":
        return "which does not begin in the folder that is unpacked to"
    if len(os.fsencode(path)) > LONGEST_PATH:
        return f"which has more than {LONGEST_PATH} bytes"
    if path.count("/") > MOST_PARTS:
        return f"which has more than {MOST_PARTS} folders"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "which leads somewhere else"
        if "\0" in part or "\\" in part:
            return "which has a character that no name may have everywhere"
        if len(os.fsencode(part)) > LONGEST_NAME:
            return f"of which a name has more than {LONGEST_NAME} bytes"
        if part.partition(".")[0].rstrip(" ").casefold() in DEVICES:
            return "which is the name of a device"
    return ""


def _check_link(entry: ArchiveEntry) -> None:
    """Make sure that a link leads to a place in the folder that is unpacked to."""
    target = entry.target
    up, down = _steps(target)
    absolute = not target or "\0" in target or target.startswith(("/", "\\")) or target[1:2] == ":"
    # behind a name, ".." would depend on where that name's own link leads
    if absolute or ".." in down or up > len(_above(entry.path)):
        raise UnsafePathError(
            f"the archive has the link {entry.path!r} to {target!r}, which leads out of the folder that is"
            " unpacked to: nothing is written; leave it out with --without"
        )


def _steps(target: str) -> tuple[int, list[str]]:
    """How many folders a relative link goes up at first, and what follows."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return up, parts[up:]
