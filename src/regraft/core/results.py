"""What every result is given on its way out: blocks that are found by number and by address, and
`dataset.regraft` for figures and tables.

This imports xarray, so whoever must not load it imports this when a result is there.
"""

from __future__ import annotations

from functools import cache
from numbers import Integral
from typing import Any

import xarray as xr
from xarray.indexes import PandasIndex

from regraft.core.later import later

BLOCK = "block"


class BlockIndex(PandasIndex):
    """Addresses of blocks, which are also found by their number: `sel(block=2)` and `sel(block="2")`."""

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
        """What xarray asks for; numbers are read as addresses."""
        return super().sel({name: _address(label) for name, label in labels.items()}, method, tolerance)


def _address(label: Any) -> Any:
    if isinstance(label, slice):
        return slice(_address(label.start), _address(label.stop), label.step)
    if isinstance(label, (xr.DataArray, xr.Variable)):
        return label if label.dtype.kind not in "iu" else label.astype(str)
    if isinstance(label, Integral) and not isinstance(label, bool):
        return str(int(label))
    if isinstance(label, (str, bytes)) or not hasattr(label, "__iter__"):
        return label
    return [_address(one) for one in label]


def as_result(dataset: xr.Dataset) -> xr.Dataset:
    """The result with its blocks addressed both ways; `dataset.regraft` is there from the first one on."""
    offer_figures()
    if BLOCK not in dataset.dims or BLOCK not in dataset.coords:
        return dataset
    if dataset[BLOCK].dtype.kind not in "UO":
        return dataset
    return dataset.drop_indexes(BLOCK).set_xindex(BLOCK, BlockIndex)


@cache
def offer_figures() -> type:
    """Make `dataset.regraft` an accessor: until then the name is that of an attribute, the version."""
    return xr.register_dataset_accessor("regraft")(Drawn)


class Drawn:
    """What `dataset.regraft` offers."""

    def __init__(self, dataset: xr.Dataset):
        self.dataset = dataset

    def figure(self, number: int = 0) -> Any:
        """One of the result's figures, drawn by plotly; see `regraft.reporting.notebook.figure`."""
        return later("figure")(self.dataset, number)

    def table(self) -> Any:
        """The numbers as a pandas table; see `regraft.reporting.notebook.table`."""
        return later("table")(self.dataset)
