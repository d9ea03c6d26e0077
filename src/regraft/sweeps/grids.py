"""Variants that stand on a grid: one for each combination of coordinates; a result with these dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.model.model import Model
from regraft.sweeps.provenance import provenance, sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Edit, Variant

if TYPE_CHECKING:
    import xarray as xr

MOST = 10_000_000
"""Cells that a grid may have: more are a slip, and no sweep would end."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Variants in the order of their coordinates, the last one going round fastest."""

    coordinates: Mapping[str, tuple[Any, ...]]
    make: Callable[..., Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each coordinate has."""
        return tuple(map(len, self.coordinates.values()))

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def __iter__(self) -> Iterator[Variant]:
        return (self._made(values) for values in product(*self.coordinates.values()))

    def _made(self, values: Sequence[Any]) -> Variant:
        found = self.make(**dict(zip(self.coordinates, values, strict=True)))
        if isinstance(found, Variant):
            return found
        return Variant(route=found) if isinstance(found, Route) else Variant(found)


def grid(edit: Callable[..., Variant | Edit | Route | Sequence[Edit]], **coordinates: Iterable[Any]) -> Grid:
    """Variants for all combinations of coordinates; a sweep of them gives an `xarray.Dataset` with these
    dimensions.

    Args:
        edit: what is done at a cell: a function of the coordinates, by their names, that returns an edit,
            several, a route or a `Variant`.
        coordinates: the values of each dimension.

    Returns:
        The cells, for `sweep`, which answers with a dataset over these dimensions.

    Raises:
        ValueError: no function, no coordinates, one without values, or one whose name the result needs.

    Examples:
        >>> zero = lambda block, at: regraft.Zero(f"{block}.mlp_out", at)
        >>> cells = regraft.grid(zero, block=range(12), at=[0, -1])
        >>> data = regraft.sweep(model.record("The capital of France is", " Paris"), cells, regraft.loss())
        >>> dict(data.loss.sizes), data.loss.attrs["units"]
        ({'block': 12, 'at': 2}, 'nats per token')
    """
    if not callable(edit):
        what = type(edit).__name__
        raise ValueError(f"edit= is a function of the coordinates that returns an edit, not a {what}")
    listed = {name: tuple(values) for name, values in coordinates.items()}
    if not listed or not all(listed.values()):
        empty = next((name for name, values in listed.items() if not values), "")
        raise ValueError(
            f"{empty} has no values" if empty else "a grid needs coordinates: grid(edit, block=range(12))"
        )
    if "prompt" in listed:
        raise ValueError("prompt is the result's own dimension: choose another name")
    doubled = next((name for name, values in listed.items() if len(set(map(str, values))) < len(values)), "")
    if doubled:
        raise ValueError(f"{doubled} has a value twice")
    found = Grid(listed, edit)
    if len(found) > MOST:
        raise ValueError(f"the grid has {len(found):,} cells, more than {MOST:,}: choose fewer values")
    return found


def as_dataset(model: Model, cells: Grid, result: SweepResult) -> xr.Dataset:
    """What a sweep measured, in the shape of its grid: each metric's mean, and its value for every prompt."""
    import xarray as xr

    from regraft.core.results import as_result

    dims = tuple(cells.coordinates)
    data: dict[str, Any] = {}
    for name, unit in result.units.items():
        data[name] = (dims, result.mean(name).numpy().reshape(cells.shape), {"units": unit})
        values = result.values[name].numpy()
        data[f"{name}_by_prompt"] = ((*dims, "prompt"), values.reshape(*cells.shape, -1), {"units": unit})
        data[f"clean_{name}"] = ("prompt", result.clean[name].numpy(), {"units": unit})
    for address, activations in result.reads.items():
        shape = (*cells.shape, *activations.shape[1:])
        inner = [f"{address} head"] if activations.dim() == 5 else []
        named = (*dims, "prompt", f"{address} position", *inner, f"{address} feature")
        data[address] = (named, activations.numpy().reshape(shape), {"units": "activation"})
    named_coordinates = {name: _labels(name, values) for name, values in cells.coordinates.items()}
    attrs = {**provenance(model), "experiment": "sweep", **sweep_attributes(result)}
    return as_result(xr.Dataset(data, coords=named_coordinates, attrs=attrs))


def _labels(name: str, values: tuple[Any, ...]) -> np.ndarray:
    """Coordinates as they are where they are numbers or words; blocks as addresses."""
    if name == "block":
        return np.array([str(value) for value in values])
    plain = all(isinstance(v, (int, float)) for v in values) or all(isinstance(v, str) for v in values)
    return np.array(values if plain else [str(value) for value in values])
