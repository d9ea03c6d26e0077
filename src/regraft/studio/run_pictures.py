"""Results as pictures that a page can take: captions and plotly figures as JSON."""

from __future__ import annotations

import numpy as np
import xarray as xr

from regraft.core.quantities import UNITS
from regraft.reporting.drawings import drawing_of
from regraft.reporting.polish import polished
from regraft.reporting.theme import bars


def pictures_of(dataset: xr.Dataset) -> list[list[str]]:
    """The main figures of a result: caption and figure of each."""
    return [
        [caption, str(polished(figure).to_json())] for caption, figure in drawing_of(dataset).figures(dataset)
    ]


def pictures_of_sweeps(dataset: xr.Dataset) -> list[list[str]]:
    """What is measured of a run's sweeps, variant by variant: the last sweep that was begun."""
    names = [str(name) for name in dataset.data_vars]
    if not names:
        return []
    last = max(int(name.rpartition("_")[2]) for name in names)
    name = next(name for name in names if name.endswith(f"_{last}"))
    values = dataset[name].values
    known = ~np.isnan(values)
    mean = np.where(known, values, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    mean = np.where(known.any(1), mean, np.nan)
    plain = name.rpartition("_")[0]
    caption = f"{plain} of the variants measured so far: {int(known.any(1).sum())} of {len(mean)}"
    figure = bars(np.arange(len(mean)), mean, "variant", plain, dataset[name].attrs.get(UNITS, ""))
    return [[caption, str(figure.to_json())]]
