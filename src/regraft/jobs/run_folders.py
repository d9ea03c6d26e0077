"""Run folders found, and two of them compared: what was run, on what, and how far the values lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.files import RunFolderError
from regraft.core.quantities import UNITS
from regraft.core.results import BLOCK
from regraft.core.runs import FINISHED, OUR_MARK, open_run, read_mark

DEEP = 3
"""Folders inside folders that are looked into."""
OF_THE_MOMENT = ("time", "seconds", "identity", "told", "command", "finished", "process", "host")
"""What tells one run from its repetition and nothing about how it was made."""


@dataclass(frozen=True)
class FoundRun:
    """A run folder: its path, what it is of, when it was made, and whether it came to its end."""

    folder: Path
    experiment: str
    model: str
    weights: str
    time: str
    seconds: float
    state: str


@dataclass(frozen=True)
class Difference:
    """How far one quantity lies apart in two runs.

    Attributes:
        name: the quantity's.
        units: its unit.
        largest: the largest absolute difference; NaN where shapes or labels differ.
        share: the same as a share of the largest absolute value of either.
        place: where that is, by its labels.
        reason: why there is no difference to tell.
    """

    name: str
    units: str
    largest: float
    share: float
    place: str
    reason: str = ""


def found_runs(folder: Path) -> list[FoundRun]:
    """All run folders in a folder, itself included, chapters of reports behind their report.

    Returns:
        What each run is of, in the order of the folders' names.

    Raises:
        RunFolderError: there is no such folder, or no run in it.

    Examples:
        >>> page, missing = regraft.report(model, "listed", chapters=["knockout"])
        >>> [found.experiment for found in regraft.found_runs(page.parent)]
        ['report', 'knockout']
    """
    if not folder.is_dir():
        raise RunFolderError(f"there is no folder {folder}")
    found = [_told(place) for place in _places(folder, DEEP)]
    if not found:
        raise RunFolderError(f"there is no run folder in {folder}: a run is kept with --out")
    return found


def _places(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / OUR_MARK).is_file():
        yield folder
    if depth:
        for inside in sorted(folder.iterdir()):
            if inside.is_dir() and not inside.is_symlink() and inside.suffix != ".zarr":
                yield from _places(inside, depth - 1)


def _told(folder: Path) -> FoundRun:
    try:
        mark = read_mark(folder)
    except RunFolderError:
        return FoundRun(folder, "", "", "", "", math.nan, "cannot be read")
    state = "begun" if mark.get(FINISHED) is False else "done"
    experiment, model, weights, made = (
        str(mark.get(name, "")) for name in ("experiment", "model", "weights_sha256", "time")
    )
    return FoundRun(folder, experiment, model, weights, made, float(mark.get("seconds", math.nan)), state)


@dataclass(frozen=True)
class Comparison:
    """Two runs of one experiment: what they were made with that differs, how far each quantity lies apart,
    and the quantities that one alone has."""

    provenance: dict[str, tuple[Any, Any]]
    values: list[Difference]
    alone: tuple[list[str], list[str]]


def compare_runs(one: Path, other: Path) -> Comparison:
    """What differs between two runs of one experiment.

    Returns:
        Settings that differ, and for each variable how far the two are apart, in its own unit.

    Raises:
        RunFolderError: one is no run folder, is a report, or they are of different experiments.

    Examples:
        >>> page, missing = regraft.report(model, "one", chapters=["knockout"])
        >>> page, missing = regraft.report(model, "other", chapters=["knockout"], seed=1)
        >>> compared = regraft.compare_runs(pathlib.Path("one/knockout"), pathlib.Path("other/knockout"))
        >>> compared.provenance, {one.name: one.units for one in compared.values}["loss"]
        ({'seed': (0, 1)}, 'nats per token')
    """
    marks = [read_mark(folder) for folder in (one, other)]
    kinds = [str(mark.get("experiment")) for mark in marks]
    for folder, kind in zip((one, other), kinds, strict=True):
        if kind == "report":
            raise RunFolderError(
                f"{folder} is a whole report: name one of its chapters, such as {folder}/lens"
            )
    if kinds[0] != kinds[1]:
        raise RunFolderError(
            f"{one} is a run of {kinds[0]}, {other} of {kinds[1]}: compare runs of one experiment"
        )
    first, second = open_run(one), open_run(other)
    shared = [str(name) for name in first.data_vars if name in second]
    values = [difference(first[name], second[name]) for name in shared if first[name].dtype.kind in "fiub"]
    alone = (
        [str(name) for name in first.data_vars if name not in second],
        [str(name) for name in second.data_vars if name not in first],
    )
    return Comparison(_provenance(*marks), values, alone)


def _provenance(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [name for name in sorted({*one, *other}) if name not in OF_THE_MOMENT]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def difference(one: xr.DataArray, other: xr.DataArray) -> Difference:
    """How far two quantities of one name lie apart."""
    name, units = str(one.name), one.attrs.get(UNITS, "")
    if one.dims != other.dims or one.shape != other.shape:
        shapes = " and ".join(str(dict(values.sizes)) for values in (one, other))
        where = "; regraft report --beside sets two models beside one another" if BLOCK in one.dims else ""
        return Difference(name, units, math.nan, math.nan, "", f"of other shapes, {shapes}{where}")
    for dim in one.dims:
        if (
            dim in one.coords
            and dim in other.coords
            and not np.array_equal(one[dim].values, other[dim].values)
        ):
            return Difference(name, units, math.nan, math.nan, "", f"its {dim} are called otherwise")
    a, b = one.values.astype(float), other.values.astype(float)
    gaps = np.where(np.isnan(a) & np.isnan(b) | (a == b), 0.0, np.abs(a - b))
    gaps = np.where(np.isnan(gaps), math.inf, gaps)
    if not gaps.size or not gaps.max():
        return Difference(name, units, 0.0, 0.0, "")
    place = np.unravel_index(int(gaps.argmax()), gaps.shape)
    known = [np.abs(values[np.isfinite(values)]).max(initial=0.0) for values in (a, b)]
    largest = float(gaps[place])
    return Difference(name, units, largest, largest / max(*known, 1e-300), _label(one, place))


def _label(values: xr.DataArray, place: Sequence[Any]) -> str:
    named = [
        f"{dim} {values[dim].values[at] if dim in values.coords else at}"
        for dim, at in zip(values.dims, place, strict=True)
    ]
    return ", ".join(named)
