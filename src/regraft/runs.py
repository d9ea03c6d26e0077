"""Run folders: `run.json`, `result.zarr` and figures, written whole or not at all.

A folder is written beside its place under another name and moved there in one step, so a run that is killed leaves what was
there before.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

OUR_MARK = "run.json"


class RunFolderError(ValueError):
    """A folder that cannot hold this run; the message says why."""


def check_writable(out: Path, experiment: str, weights_sha256: str, version: str) -> None:
    """Make sure, before any work, that a run may be written to `out`.

    Raises:
        RunFolderError: the folder cannot be written to, holds something else, or a run of another experiment, model or
            version.
    """
    check_place(out, "--out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / OUR_MARK).is_file():
        raise RunFolderError(f"the folder {out} is not empty and is no run of regraft: choose another with --out")
    there = read_mark(out)
    for key, mine, noun in (
        ("experiment", experiment, "of the experiment"),
        ("weights_sha256", weights_sha256, "of another model: weights"),
        ("regraft", version, "of another version of regraft:"),
    ):
        if there.get(key) != mine:
            raise RunFolderError(
                f"the folder {out} holds a run {noun} {str(there.get(key))[:12]}, this one has {mine[:12]}: choose another "
                "folder with --out"
            )


def read_mark(out: Path) -> dict[str, Any]:
    """The `run.json` of a run folder.

    Raises:
        RunFolderError: there is none, or it cannot be read.
    """
    try:
        return json.loads((out / OUR_MARK).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RunFolderError(f"the folder {out} is no run of regraft: its {OUR_MARK} cannot be read") from error


def check_empty(folder: Path, option: str) -> None:
    """Make sure that nothing is where a new folder is to be written.

    Raises:
        RunFolderError: a file is there, or a folder that holds something.
    """
    check_place(folder, option)
    if folder.exists() and any(folder.iterdir()):
        raise RunFolderError(f"the folder {folder} is not empty: choose another with {option}")


def check_place(folder: Path, option: str, inside: bool = False) -> None:
    """Make sure that a folder can be put in a place, or with `inside` that one that is there can be written to.

    Raises:
        RunFolderError: it cannot.
    """
    parent = folder.absolute() if inside else folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if (folder.exists() and not folder.is_dir()) or not os.access(parent, os.W_OK) or not parent.is_dir():
        raise RunFolderError(f"the folder {folder} cannot be written to: choose another with {option}")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `out` when the block ends well, and vanishes when it does not."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        for path in fresh.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        old = out.with_name(f".{out.name}.{os.getpid()}.old")
        if out.exists():
            out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def store(dataset: xr.Dataset, folder: Path) -> None:
    """Write a result's `run.json` and `result.zarr` into a folder."""
    attributes = {key: _plain(value) for key, value in dataset.attrs.items()}
    storable = dataset.assign_attrs(attributes)
    storable.to_zarr(folder / "result.zarr", mode="w", zarr_format=2, consolidated=False)
    (folder / OUR_MARK).write_text(json.dumps(attributes, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def open_run(out: Path | str) -> xr.Dataset:
    """The result in a run folder.

    Raises:
        RunFolderError: it is no run folder.
    """
    read_mark(Path(out))
    return xr.open_zarr(Path(out) / "result.zarr", consolidated=False).load()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
