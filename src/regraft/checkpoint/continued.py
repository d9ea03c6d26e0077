"""Specimens that are another one trained further: only the tensors that changed are shipped, and the whole is
put together in the cache when it is first asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regraft.checkpoint.checksums import CHECKSUMS, digest, unlike_sums
from regraft.core.caching import cache_folder, cache_is_kept
from regraft.core.files import whole_file

TRAINED, WHOLE = "trained.safetensors", "model.safetensors"


def put_together(own: Path, base: Path, header_of: Callable[[Path], dict[str, Any]]) -> Path:
    """The folder of the whole model: files of `base`, with the tensors of `own` in the place of its own.

    It is in the cache, under a name that follows from everything that was shipped, and is put together anew
    where it is not what was written; with a cache that is off or closed, in a folder for this process alone.
    """
    small = [
        file for file in sorted(base.iterdir()) if file.is_file() and file.name not in (WHOLE, CHECKSUMS)
    ]
    shipped = digest([own / TRAINED, base / WHOLE, *small])
    if cache_is_kept():
        try:
            return _written(
                cache_folder() / "specimens" / shipped[:16] / own.name, own, base, small, header_of
            )
        except OSError:  # a cache that cannot be written to is none
            pass
    return _written(Path(_temporary().name) / shipped[:16] / own.name, own, base, small, header_of)


def _written(
    folder: Path, own: Path, base: Path, small: list[Path], header_of: Callable[[Path], dict[str, Any]]
) -> Path:
    """The folder, written where it is not whole: its list of checksums is the last file."""
    if (folder / CHECKSUMS).is_file() and not unlike_sums(folder):
        return folder
    for file in small:
        with whole_file(folder / file.name) as part:
            shutil.copyfile(file, part)
    with whole_file(folder / WHOLE) as part:
        shutil.copyfile(base / WHOLE, part)
        _overwrite(part, header_of(base / WHOLE), own / TRAINED, header_of(own / TRAINED))
    lines = [f"{digest([folder / name])} {name}" for name in (*(file.name for file in small), WHOLE)]
    with whole_file(folder / CHECKSUMS) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@cache
def _temporary() -> TemporaryDirectory[str]:
    """A folder that goes with the process."""
    return TemporaryDirectory(prefix="regraft-specimens-")


def _overwrite(whole: Path, places: dict[str, Any], trained: Path, own: dict[str, Any]) -> None:
    """Write every tensor of one file over the same tensor of another; both lie as their headers say."""
    with whole.open("r+b") as target, trained.open("rb") as source:
        starts = [_data_start(stream.read(8)) for stream in (target, source)]
        for name, entry in own.items():
            place = places[name]
            assert (place["dtype"], place["shape"]) == (entry["dtype"], entry["shape"]), name
            first, last = entry["data_offsets"]
            source.seek(starts[1] + first)
            target.seek(starts[0] + place["data_offsets"][0])
            target.write(source.read(last - first))


def _data_start(first: bytes) -> int:
    """Where the tensors begin: behind the header's length and the header."""
    return 8 + int.from_bytes(first, "little")
