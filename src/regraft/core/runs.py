"""Run folders: `run.json`, `run.yaml`, `result.zarr` and figures. Nothing heavy is imported before a result
is read or written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.core.files import RunFolderError, check_place, place_of, whole_file
from regraft.core.files import whole_folder as whole_folder  # the report takes it from here
from regraft.core.strict_json import json_text, opened_attributes

if TYPE_CHECKING:
    import xarray as xr

OUR_MARK, SETTINGS = "run.json", "run.yaml"
FINISHED, IDENTITY = "finished", "identity"


def check_writable(
    out: Path, experiment: str, weights_sha256: str | None, version: str, force: bool = False
) -> None:
    """Make sure, before any work, that a run may be written to `out`; the model is not asked for where its
    hash is None.

    Args:
        out: the folder.
        experiment: whose run it is.
        weights_sha256: of the model.
        version: of regraft.
        force: whatever run is there, it is to be replaced.

    Raises:
        RunFolderError: the folder cannot be written to, holds something else, or a run of another experiment,
            model or version.
    """
    check_place(out, "--out")
    place = place_of(out)
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not (place / OUR_MARK).is_file():
        raise RunFolderError(
            f"the folder {out} is not empty and is no run of regraft: choose another with --out"
        )
    there = read_mark(out)
    for key, mine, noun in (
        ("experiment", experiment, "of the experiment"),
        ("weights_sha256", weights_sha256, "of another model: weights"),
        ("regraft", version, "of another version of regraft:"),
    ):
        if not force and mine is not None and there.get(key) != mine:
            raise RunFolderError(
                f"the folder {out} holds a run {noun} {str(there.get(key))[:12]}, this one has {mine[:12]}:"
                " choose another folder with --out, or replace it with --force"
            )


def read_mark(out: Path) -> dict[str, Any]:
    """The `run.json` of a run folder.

    Raises:
        RunFolderError: there is none, or it cannot be read.
    """
    try:
        mark = json.loads((place_of(out) / OUR_MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"the folder {out} is no run of regraft: its {OUR_MARK} cannot be read"
        ) from error
    if not isinstance(mark, dict):
        raise RunFolderError(f"the folder {out} is no run of regraft: its {OUR_MARK} is no table")
    return mark


def check_version(out: Path, mark: Mapping[str, Any]) -> None:
    """Make sure that a run is not of a newer version than this one, whose results it may tell otherwise.

    Raises:
        RunFolderError: it is.
    """
    from packaging.version import InvalidVersion, Version

    mine = version("regraft")
    try:
        newer = Version(str(mark.get("regraft", mine))) > Version(mine)
    except InvalidVersion as error:
        raise RunFolderError(
            f"the folder {out} is of version {mark['regraft']!r} of regraft: {error}"
        ) from error
    if newer:
        raise RunFolderError(
            f"the folder {out} is a run of regraft {mark['regraft']}, this is {mine}: take that version"
        )


def read_settings(out: Path) -> dict[str, Any]:
    """The options that a run folder keeps; nothing where it keeps none."""
    import yaml

    file = place_of(out) / SETTINGS
    found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def write_whole(path: Path, text: str) -> None:
    """A file that takes the place of `path` in one step, so that a reader finds the old one or the new
    one."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def store(dataset: xr.Dataset, folder: Path, begun: Mapping[str, Any] | None = None) -> None:
    """Write a result's `run.json` and `result.zarr` into a folder; `begun` is what tells the run from another
    one, where it was begun."""
    attributes = {key: _plain(value) for key, value in dataset.attrs.items()}
    storable = dataset.assign_attrs(attributes)
    storable.to_zarr(folder / "result.zarr", mode="w", zarr_format=2, consolidated=False)
    (folder / OUR_MARK).write_text(
        json_text({**opened_attributes(attributes), **(begun or {})}, indent=1, sort_keys=True) + "\n",
        encoding="utf-8",
    )


def store_settings(settings: Mapping[str, Any], folder: Path) -> None:
    """Write the options that make a run again, as `--config` reads them."""
    import yaml

    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    (folder / SETTINGS).write_text(text, encoding="utf-8")


def open_run(out: Path | str) -> xr.Dataset:
    """The result in a run folder; of a run that did not end, what was measured of its sweeps, NaN elsewhere.

    Returns:
        The dataset as the experiment returned it.

    Raises:
        RunFolderError: it is no run folder, or one of a newer version.

    Examples:
        >>> page, missing = regraft.report(model, "pages", chapters=["knockout"])
        >>> regraft.open_run(page.parent / "knockout").loss.attrs["units"]
        'nats per token'
    """
    import xarray as xr

    from regraft.core.later import later
    from regraft.core.results import as_result

    mark = read_mark(Path(out))
    check_version(Path(out), mark)
    if mark.get(FINISHED) is False:
        return as_result(later("unfinished_run")(place_of(out), mark))
    return as_result(xr.open_zarr(place_of(out) / "result.zarr", consolidated=False).load())


def _plain(value: Any) -> Any:
    import numpy as np

    return value.item() if isinstance(value, np.generic) else value
