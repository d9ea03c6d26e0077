"""What is printed of a token whose rows are explained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from regraft.cli.columns import aligned

if TYPE_CHECKING:
    import xarray as xr

TITLES = {
    "length_share": "share of length",
    "likeness": "likeness",
    "piece_weight": "as piece",
    "cosine": "cosine",
    "neighbour_weight": "as neighbour",
    "weight": "in the row",
}
"""Headings of the quantities of a part, in the order of their making."""


def explained_lines(data: xr.Dataset) -> Iterator[str]:
    """A token's origin in words, and a row for each part."""
    name, number, told = data.attrs["token"], data.attrs["new_id"], data.attrs
    begun = f"{name!r} (id {number:,} of the new tokenizer)"
    if told["made"] == "taken over":
        yield f"{begun} takes over the row of {str(data.old_token.values[0])!r} (id {int(data.part[0]):,})"
        return
    if told["made"] == "drawn":
        yield f"{begun} is drawn at random ({told['method']}): nothing of the token is in it"
        return
    if told["made"] == "mean row" or not data.sizes["part"]:
        why = "has no counterpart" if told["made"] == "mean row" else "gives the method nothing to look at"
        yield f"{begun} {why} and takes the mean of all old rows"
        return
    share = float(told["share_of_neighbours"])
    beside = "cosine" in data and bool(data.cosine.notnull().any())
    how = f": {1 - share:g} of its pieces and {share:g} of its nearest old tokens" if beside else ""
    yield f"{begun} is estimated by {told['method']}{how}"
    names = [name for name in TITLES if name in data]
    header = ["old token", "id", *(TITLES[name] for name in names)]
    rows = [
        [repr(str(one.old_token.item())), str(int(one.part)), *(_cell(float(one[name])) for name in names)]
        for one in (data.isel(part=place) for place in range(data.sizes["part"]))
    ]
    yield from aligned([header, *rows])


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
