"""Two results of one experiment, of two models, as one section: what differs first, then all figures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.quantities import READING, UNITS
from regraft.reporting.chapter_section import (
    Made,
    download,
    drawn_figure,
    listed,
    more_figures,
    shown_figures,
    title_of,
    values_in_words,
)
from regraft.reporting.drawings import drawing_of
from regraft.reporting.headlines import headline_of
from regraft.reporting.markup import Section, chapter, table

MOST = 10
"""Quantities that the table of differences shows: those that differ most."""
HEADER = ("quantity", "unit")


def beside_section(names: Sequence[str], both: Sequence[Made]) -> Section:
    """One experiment of two models, named as given."""
    one = both[0]
    drawing, title = drawing_of(one.result), title_of(one.result)
    figures: dict[str, Any] = {}
    sides = [shown_figures(made.result) for made in both]
    drawn = []
    for number in range(max(map(len, sides))):
        pair = []
        for which, (name, side) in enumerate(zip(names, sides, strict=True)):
            if number < len(side):
                shown = side[number]._replace(caption=f"{name}: {side[number].caption}")
                place = f"{one.anchor}-figure-{number}-{which}"
                pair.append(drawn_figure(shown, place, figures, folded=False))
        inside = f'<div class="pair">{"".join(pair)}</div>'
        if number:
            side = next(s for s in sides if number < len(s))
            inside = f"<details><summary>{html.escape(side[number].caption)}</summary>{inside}</details>"
        drawn.append(inside)
    commands = "\n".join(made.command for made in both)
    findings = [drawing_of(made.result).finding(made.result) for made in both]
    inside = (
        f'<p class="soft">{html.escape(drawing.question)}</p>'
        + differences(names, *(made.result for made in both))
        + "".join(
            f'<p class="finding">{html.escape(name)}: {html.escape(finding)}</p>'
            for name, finding in zip(names, findings, strict=True)
            if finding
        )
        + "".join(
            listed(one._replace(caption=f"{name}: {one.caption}"))
            for name, made in zip(names, both, strict=True)
            for one in drawing.listings(made.result)
        )
        + drawn[0]
        + f"<h4>How to read it</h4><p>{html.escape(drawing.how_to_read)}</p>"
        + more_figures(drawn[1:])
        + f"<h4>Make it again</h4><pre><code>{html.escape(commands)}</code></pre>"
        + '<p class="download">'
        + " ".join(download(made.result, f"{made.anchor}-{which}") for which, made in enumerate(both, 1))
        + "</p>"
    )
    heads = [headline_of(made.result) for made in both]
    said = " ".join(f"{name}: {head}" for name, head in zip(names, heads, strict=True) if head)
    return Section(
        one.anchor, title, chapter(one.anchor, title, inside), figures, one.result.attrs["experiment"], said
    )


def differences(names: Sequence[str], one: xr.Dataset, other: xr.Dataset) -> str:
    """The quantities in which two results differ most, as a table."""
    rows = []
    for name in one.data_vars:
        a, b = one[name], other.get(name)
        if b is None or READING not in a.attrs or a.dtype.kind not in "fiu" or b.dtype.kind not in "fiu":
            continue
        rows.append(
            (median_gap(a, b), [str(name), a.attrs.get(UNITS, ""), values_in_words(a), values_in_words(b)])
        )
    rows = sorted((row for row in rows if np.isfinite(row[0])), key=lambda row: -row[0])[:MOST]
    if not rows:
        return ""
    header = [*HEADER, *(f"{name}: least · median · largest" for name in names)]
    return "<h4>What differs most</h4>" + table(header, [row for _, row in rows], minor=(1,))


def median_gap(one: xr.DataArray, other: xr.DataArray) -> float:
    """How far two quantities' medians lie apart, as a share of the larger one; NaN where one has none."""
    medians = []
    for values in (one, other):
        known = values.values[np.isfinite(values.values.astype(float))].astype(float)
        medians.append(float(np.median(known)) if len(known) else float("nan"))
    size = max(map(abs, medians))
    return abs(medians[0] - medians[1]) / size if size else 0.0
