"""JSON as its standard has it: readable by every reader, also where a number is none.

Python writes NaN and Infinity, which are no JSON. Here what is no finite number is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

TEXTS_OF_JSON = ("options", "settings", "completions", "texts", "healing_plan", "self_check")
"""Attributes of a result that hold JSON as text, because a file of arrays keeps only texts and numbers."""


def json_text(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """A value as JSON: NumPy's numbers and arrays as plain ones, what is not finite as null, anything else as
    its text.

    >>> json_text({"loss": float("nan"), "kind": (1, True)})
    '{"loss": null, "kind": [1, true]}'
    """
    return json.dumps(_plain(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def opened_attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes of a result with those that hold JSON as text opened, so that they need not be read
    twice."""
    return {
        str(name): _opened(value) if name in TEXTS_OF_JSON else value for name, value in attributes.items()
    }


def _opened(value: Any) -> Any:
    """What a text of JSON says; an experiment of another package may keep something else under such a
    name."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def numbers_again(dataset: xr.Dataset) -> xr.Dataset:
    """A result that was read from such JSON: null among numbers is NaN again."""

    def again(values: xr.DataArray) -> xr.DataArray:
        plain = values.dtype == object and all(
            one is None or isinstance(one, (int, float)) for one in values.values.ravel()
        )
        return values.astype(float) if plain else values

    return dataset.map(again, keep_attrs=True)


def _plain(value: Any) -> Any:
    import numpy as np

    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
