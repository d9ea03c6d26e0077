"""Specimens that are another one trained further: only the tensors that changed are shipped, and the whole is
put together in the cache when it is first asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regraft.core.caching import cache_folder
from regraft.core.files import whole_file

TRAINED, WHOLE = "trained.safetensors", "model.safetensors"


def put_together(own: Path, base: Path, header_of: Callable[[Path], dict[str, Any]], digest: str) -> Path:
    """The folder of the whole model: files of `base`, with the tensors of `own` in the place of its own.

    The weights are written last, so that a folder that has them is whole; `digest` tells one version of what
    was shipped from another.

    Raises:
        NotWrittenError: the cache cannot be written to.
    """
    folder = cache_folder() / "specimens" / digest[:16] / own.name
    if (folder / WHOLE).is_file():
        return folder
    for file in base.iterdir():
        if file.is_file() and file.name not in (WHOLE, "SHA256SUMS"):
            with whole_file(folder / file.name) as part:
                shutil.copyfile(file, part)
    with whole_file(folder / WHOLE) as part:
        shutil.copyfile(base / WHOLE, part)
        _overwrite(part, header_of(base / WHOLE), own / TRAINED, header_of(own / TRAINED))
    return folder


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
