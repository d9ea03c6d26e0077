"""Checksums of files, and the list of them that a folder may hold beside its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

CHECKSUMS = "SHA256SUMS"


def digest(files: Sequence[Path]) -> str:
    """SHA-256 over the bytes of some files, one behind the other."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                found.update(chunk)
    return found.hexdigest()


def unlike_sums(folder: Path) -> str:
    """What of a folder is not what its list of checksums says; nothing where all is, or there is no list."""
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return ""
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        wanted, _, name = line.strip().partition(" ")
        name = name.strip().lstrip("*")
        if wanted and not (folder / name).is_file():
            return f"{CHECKSUMS} names {name or line}, which is not in {folder.name}"
        if wanted and digest([folder / name]) != wanted:
            return f"{name} differs from the checksum in {CHECKSUMS}: the file is damaged, fetch it again"
    return ""
