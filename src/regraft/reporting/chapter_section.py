"""What a page says about one result: its question, what was found, one figure large and the rest folded, how
to read it, the command that makes it again, and its numbers."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
import xarray as xr

from regraft.core.quantities import READING, SOURCE, UNITS
from regraft.reporting.drawings import drawing_of
from regraft.reporting.headlines import headline_of
from regraft.reporting.markup import Section, chapter, link_to, table
from regraft.reporting.polish import polished
from regraft.reporting.still_picture import stands_still, still
from regraft.reporting.theme import HEIGHT, Listing, Panel, traces_of

FIRST_WORDS = 3
"""Words of a quantity that are told."""
LETTERED, WIDE, NARROW, FINE = 52, 26, 14, 4
"""Pixels of a column with text in it, of one without, of one among many, and of one among very many."""
MANY, VERY_MANY = 32, 100
"""Columns from which on they are many, and very many."""
SAVED = 1.05
"""Times less work, from where on it is said with one decimal."""
NOTHING = "There is no finite number to draw here."


@dataclass(frozen=True)
class Made:
    """A chapter's result, where it stands on the page, and the command that makes it again."""

    anchor: str
    result: xr.Dataset
    command: str

    def section(self) -> Section:
        """The result as a section of its own."""
        return result_section(self.result, self.command, self.anchor)


def result_section(dataset: xr.Dataset, command: str, anchor: str) -> Section:
    """One experiment as a section."""
    drawing, title = drawing_of(dataset), title_of(dataset)
    figures: dict[str, Any] = {}
    drawn = [
        drawn_figure(shown, f"{anchor}-figure-{number}", figures, folded=number > 0)
        for number, shown in enumerate(shown_figures(dataset))
    ]
    finding = drawing.finding(dataset)
    inside = (
        f'<p class="soft">{html.escape(drawing.question)}</p>'
        + (f'<p class="finding">{html.escape(finding)}</p>' if finding else "")
        + "".join(listed(one) for one in drawing.listings(dataset))
        + "".join(drawn[:1])
        + f"<h4>How to read it</h4><p>{html.escape(drawing.how_to_read)}</p>"
        + more_figures(drawn[1:])
        + every_quantity(dataset)
        + f"<h4>Make it again</h4><pre><code>{html.escape(command)}</code></pre>"
        + f'<p class="download">{download(dataset, anchor)}</p>{provenance_line(dataset)}'
    )
    headline = headline_of(dataset)
    return Section(
        anchor, title, chapter(anchor, title, inside), figures, dataset.attrs["experiment"], headline
    )


def shown_figures(dataset: xr.Dataset) -> list[Panel]:
    """All figures of a result, the main one first, each with its caption and how it is read."""
    drawing = drawing_of(dataset)
    main = [Panel(caption, figure, "") for caption, figure in drawing.figures(dataset)]
    return [*main, *drawing.folded(dataset)]


def drawn_figure(shown: Panel, place: str, figures: dict[str, Any], folded: bool) -> str:
    """A figure's place on the page; the figure itself is added to `figures` where it has numbers to show."""
    if has_numbers(shown.figure):
        figures[place] = json.loads(str(plotly.io.to_json(polished(shown.figure), validate=True)))
    return framed(shown, place, main=not folded)


def more_figures(drawn: Sequence[str]) -> str:
    """Folded figures under their heading; nothing where there are none."""
    return f'<div class="more"><h4>More figures</h4>{"".join(drawn)}</div>' if drawn else ""


def listed(listing: Listing) -> str:
    """A short table of texts above the figure."""
    return f"<h4>{html.escape(listing.caption)}</h4>" + table(listing.header, listing.rows)


def framed(shown: Panel, place: str, main: bool) -> str:
    """A figure with its caption; folded behind it, with the sentence that says how to read it, where it is
    not the main one."""
    caption, figure, reading = shown
    told = f"<p>{html.escape(reading)}</p>" if reading else ""
    box = plot_box(figure, place, main)
    if main:
        return (
            f"<figure><figcaption>{html.escape(caption)} {link_to(place, caption)}</figcaption>{box}</figure>"
            f"{told}"
        )
    link = f'<p class="soft">{link_to(place, caption)}</p>'
    return f"<details><summary>{html.escape(caption)}</summary><figure>{box}</figure>{told}{link}</details>"


def plot_box(figure: go.Figure, place: str, main: bool = True) -> str:
    """Where the page draws a figure, with a still picture of a main one; or that it has nothing to show."""
    if not has_numbers(figure):
        return f'<p class="empty" id="{place}">{NOTHING}</p>'
    height = int(figure.layout.height or HEIGHT)
    style = f"min-width:{least_width(figure)}px;min-height:{height}px"
    picture = still(figure) if main and stands_still(figure) else ""
    return f'<div class="wide"><div class="plot" style="{style}" id="{place}">{picture}</div></div>'


def has_numbers(figure: go.Figure) -> bool:
    """Whether a figure has one finite number to show."""
    return any(
        isinstance(value, (int, float, np.number)) and math.isfinite(value)
        for trace in traces_of(figure)
        for value in _measured(trace)
    )


def _measured(trace: Any) -> Any:
    """What a trace shows: the cells of a heat map, the lengths of bars, both coordinates of points."""
    if trace.type == "heatmap":
        return np.asarray([value for row in (trace.z if trace.z is not None else ()) for value in row]).flat
    sides = [trace.x if trace.orientation == "h" else trace.y] if trace.type == "bar" else [trace.y]
    return [value for side in sides if side is not None for value in side]


def every_quantity(dataset: xr.Dataset) -> str:
    """All quantities of a result that say how they are read, as a folded table; nothing where there are
    none."""
    rows = [
        [
            str(name),
            values_in_words(values),
            values.attrs[UNITS],
            values.attrs[READING],
            values.attrs.get(SOURCE, ""),
        ]
        for name, values in dataset.data_vars.items()
        if READING in values.attrs
    ]
    if not rows:
        return ""
    header = ["quantity", "least · median · largest", "unit", "how to read it", "source"]
    inside = table(header, rows, minor=(2, 4))
    return f"<details><summary>Every quantity of this chapter</summary>{inside}</details>"


def values_in_words(values: xr.DataArray) -> str:
    """A number, or least, median and largest of several; of words the first ones."""
    flat = values.values.ravel()
    if flat.dtype.kind not in "fiub":
        return ", ".join(dict.fromkeys(str(word) for word in flat[:FIRST_WORDS] if str(word)))
    known = flat[np.isfinite(flat.astype(float))].astype(float)
    if not len(known):
        return "none"
    if len(flat) == 1:
        return f"{known[0]:.4g}"
    return " · ".join(f"{of(known):.4g}" for of in (np.min, np.median, np.max))


def least_width(figure: go.Figure) -> int:
    """Width in pixels under which a figure is scrolled instead of squeezed: a matrix needs room for its
    columns."""
    traces: list[Any] = [trace for trace in traces_of(figure) if isinstance(trace, go.Heatmap)]
    columns = max((len(trace.x) for trace in traces), default=0)
    plain = WIDE if columns <= MANY else NARROW if columns <= VERY_MANY else FINE
    per_column = LETTERED if any(trace.texttemplate for trace in traces) else plain
    return 150 + per_column * columns if columns else 280


def csv_text(dataset: xr.Dataset) -> str:
    """The result's numbers as CSV: the drawing's own choice of columns, or every variable of one and the same
    shape."""
    return table_of(dataset).to_csv(index=False)


def table_of(dataset: xr.Dataset) -> Any:
    """The same as a pandas table."""
    chosen = [name for name in drawing_of(dataset).table if name in dataset] or _largest_alike(dataset)
    return dataset[list(chosen)].to_dataframe().reset_index()


def _largest_alike(dataset: xr.Dataset) -> tuple[str, ...]:
    largest = max(
        dataset.data_vars.values(), key=lambda v: (v.dtype.kind == "f" and v.ndim <= 2, v.ndim, v.size)
    )
    alike = [str(name) for name, values in dataset.data_vars.items() if values.dims == largest.dims]
    return tuple(alike)


def download(dataset: xr.Dataset, anchor: str) -> str:
    """A link that holds the data; the file is called as its chapter."""
    name = f"{anchor}.csv"
    encoded = base64.b64encode(csv_text(dataset).encode()).decode()
    return f'<a download="{name}" href="data:text/csv;base64,{encoded}">Download the data ({name})</a>'


def title_of(dataset: xr.Dataset) -> str:
    """The section's title: the result's own where it has one."""
    return dataset.attrs.get("title", drawing_of(dataset).title)


def provenance_line(dataset: xr.Dataset) -> str:
    """Control deviation and counted work, where the engine ran variants; nothing where no time was taken."""
    attrs = dataset.attrs
    if "seconds" not in attrs:
        return ""
    if "control_deviation" not in attrs:
        return f'<p class="soft">Measured in {attrs["seconds"]:.1f} s.</p>'
    saved = f"{attrs['work_saved']:.1f} times less than" if attrs["work_saved"] >= SAVED else "as much as"
    return (
        f'<p class="soft">Measured in {attrs["seconds"]:.1f} s. The control row, which changes nothing,'
        f" deviates by {attrs['control_deviation']:.1g} of the stream's largest value. Work:"
        f" {attrs['work_executed']:,} of "
        f"{attrs['work_naive']:,} {attrs['work_unit']}, {saved} one full forward for each "
        f"variant. {html.escape(attrs.get('notes', ''))}</p>"
    )
