"""A landmark beside what a result says at its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from regraft.landmarks.study import Landmark, Value

MEAN = "mean"


@dataclass(frozen=True)
class Beside:
    """A step's landmark, and the result's value at that place or why there is none."""

    step: str
    landmark: Landmark
    value: Value | None
    unit: str = ""
    reason: str = ""

    @property
    def ratio(self) -> float:
        """The result in times of the landmark; not a number where either is a range, missing or 0."""
        here, there = self.value, self.landmark.value
        if isinstance(here, tuple) or isinstance(there, tuple) or here is None or not there:
            return math.nan
        return here / there


def beside(step: str, landmark: Landmark, result: xr.Dataset) -> Beside:
    """What a result says at a landmark's place."""
    if landmark.variable not in result:
        return Beside(step, landmark, None, reason=f"the result has no {landmark.variable}")
    values = result[landmark.variable]
    try:
        chosen = _chosen(values, landmark)
    except KeyError as error:
        return Beside(step, landmark, None, reason=str(error.args[0]))
    numbers = chosen.values.astype(float).ravel()
    numbers = numbers[np.isfinite(numbers)]
    unit = str(values.attrs.get("units", ""))
    if not len(numbers):
        return Beside(step, landmark, None, unit, "no finite number stands there")
    if isinstance(landmark.value, tuple):
        return Beside(step, landmark, (float(numbers.min()), float(numbers.max())), unit)
    if len(numbers) > 1:
        return Beside(step, landmark, None, unit, f"{len(numbers)} numbers stand there: name one")
    return Beside(step, landmark, float(numbers[0]), unit)


def _chosen(values: xr.DataArray, landmark: Landmark) -> xr.DataArray:
    """The part of a variable that a landmark is of.

    Raises:
        KeyError: the variable has no such dimension or label.
    """
    means = [name for name, chosen in landmark.at.items() if chosen == MEAN]
    for name, chosen in landmark.at.items():
        if name not in values.coords and name not in values.dims:
            raise KeyError(f"{landmark.variable} has no {name}")
        if chosen == MEAN:
            continue
        labels = values[name]
        mask = _wanted(labels.values, chosen)
        if not mask.any():
            raise KeyError(f"{landmark.variable} has no {name} {chosen}")
        (dimension,) = labels.dims
        values = values.isel({dimension: np.flatnonzero(mask)})
    return values.mean(means) if means else values


def _wanted(labels: np.ndarray, chosen: Any) -> np.ndarray:
    """Which labels are meant; a range is of numbers, or of labels that are written as numbers."""
    if isinstance(chosen, (list, tuple)):
        numbers = labels.astype(float)
        return (numbers >= float(chosen[0])) & (numbers <= float(chosen[1]))
    if labels.dtype.kind in "US":
        return labels == str(chosen)
    return np.isclose(labels.astype(float), float(chosen))


def in_words(value: Value | None) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    numbers = value if isinstance(value, tuple) else (value,)
    return " to ".join(f"{one:,.0f}" if one == round(one) else f"{one:.4g}" for one in numbers)
