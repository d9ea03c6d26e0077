"""A measured quantity as results hold it: values with their unit, a sentence on how to read them, and where
the definition comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNITS, READING, SOURCE = "units", "how_to_read", "source"
"""What is said of a quantity, by the names of its attributes."""


def quantity(
    dims: str | Sequence[str], values: Any, units: str, reading: str, source: str = "", correlate: str = ""
) -> tuple[Any, Any, dict[str, str]]:
    """Dimensions, values and attributes of one variable of a result, as `xarray.Dataset` takes them.

    Args:
        units: what one unit of the values is.
        reading: a sentence on how to read a figure or a table of it.
        source: whose definition it is, where it is not the experiment's own.
        correlate: the name under which the correlation of all experiments shows it; nothing leaves it out.
    """
    told = {UNITS: units, READING: reading, SOURCE: source, "correlate": correlate}
    return dims, values, {name: text for name, text in told.items() if text}
