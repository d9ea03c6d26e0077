"""One self-contained page about one model: anatomy, self-check, and a section for each result.

The page opens offline: the drawing library, the figures and the data to download are inside it.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
import xarray as xr
from plotly.offline import get_plotlyjs

from regraft.core.quantities import READING, SOURCE, UNITS
from regraft.model.model import Model
from regraft.model.summary import part_rows, site_rows
from regraft.reporting.drawings import drawing_of
from regraft.reporting.shell_commands import command_line
from regraft.reporting.theme import CONFIG, THEMES

CHECKS = (
    ("replay", "replayed blocks and head against the model's own output", "largest absolute difference"),
    ("batch", "the same with three copies of the prompt in one batch", "largest absolute difference"),
    ("closure", "stream + attention + MLP against what leaves the block", "relative to its largest value"),
    ("projections", "output projections applied to z and to the neurons", "relative to its largest value"),
)


@dataclass(frozen=True)
class Section:
    """One section of a page: where a link jumps to, its title, its HTML, and its figures by the places that
    they are drawn in."""

    anchor: str
    title: str
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


def page(
    model: Model,
    results: list[xr.Dataset],
    commands: list[str],
    seconds: float,
    options: Mapping[str, Any] | None = None,
) -> str:
    """The whole page about a model as HTML; `commands[i]` makes `results[i]`, `options` are what the model
    was opened with."""
    made = [
        result_section(d, c, f"result-{n}") for n, (d, c) in enumerate(zip(results, commands, strict=True))
    ]
    return sheet(heading(model), [*opening(model, options or {}), *made], footer(results, seconds))


def heading(model: Model) -> tuple[str, str, str]:
    """Title, heading and lead of the page about a model."""
    return f"{model.name} taken apart", f"{model.name}, taken apart", lead(model)


def opening(model: Model, options: Mapping[str, Any]) -> list[Section]:
    """What every page about a model begins with: its parts, and the proof that they are its parts."""
    return [anatomy_section(model, options), check_section(model)]


def sheet(words: tuple[str, str, str], sections: Sequence[Section], foot: str) -> str:
    """A page as HTML from its title, heading and lead, its sections, and the HTML of its footer."""
    figures = {place: figure for section in sections for place, figure in section.figures.items()}
    title, stated, beginning = map(html.escape, words)
    template = Template(
        resources.files("regraft.reporting").joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.substitute(
        title=title,
        heading=stated,
        lead=beginning,
        navigation="".join(f'<a href="#{s.anchor}">{html.escape(s.title)}</a>' for s in sections),
        sections="\n".join(section.text for section in sections),
        footer=foot,
        plotly=get_plotlyjs(),
        figures=in_script(figures),
        config=in_script(CONFIG),
        themes=in_script(THEMES),
    )


def in_script(value: Any) -> str:
    """A value as JSON that stands inside a script element: no text in it can end the element or open a
    comment.

    JSON and JavaScript read the escapes as the characters that they stand for. What is not ASCII, the line
    separators of Unicode among it, is escaped by `json.dumps` itself.
    """
    text = json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def lead(model: Model) -> str:
    """What the model is, in one sentence from what was found."""
    total = part_rows(model)[-1].parameters
    stacks = " and ".join(
        f"{len(s.blocks)} {s.name + ' ' if s.name else ''}blocks" for s in model.parts.stacks
    )
    kind = "an encoder-decoder" if model.two_stacks else "a decoder" if model.causal else "an encoder"
    return (
        f"This is {kind} with {stacks}, a residual stream of width {model.width}, a vocabulary of"
        f" {model.vocabulary:,} and {total:,} parameters, measured in"
        f" {str(model.dtype).removeprefix('torch.')} on {model.device}. Below is what its parts are, and what"
        " happens when they are read, skipped, exchanged or given another run's activations."
    )


def table(header: list[str], rows: list[list[str]], numbers: tuple[int, ...] = ()) -> str:
    """An HTML table; columns in `numbers` are set as figures."""

    def cells(tag: str, row: list[str]) -> str:
        marked = [f'<{tag} class="number">' if i in numbers else f"<{tag}>" for i in range(len(row))]
        return (
            "<tr>"
            + "".join(f"{m}{html.escape(c)}</{tag}>" for m, c in zip(marked, row, strict=True))
            + "</tr>"
        )

    body = "".join(cells("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{cells("th", header)}</thead><tbody>{body}</tbody></table></div>'


def anatomy_section(model: Model, options: Mapping[str, Any]) -> Section:
    """Parts with their shapes, parameters and bytes; which sites exist."""
    parts = [[r.part, r.path, r.shape, f"{r.parameters:,}", f"{r.bytes:,}"] for r in part_rows(model)]
    sites = [[r.site, f"{r.blocks} of {r.total}", r.reason] for r in site_rows(model)]
    command = command_line("inspect", model, {key: value for key, value in options.items() if key != "seed"})
    text = (
        '<section id="anatomy"><h2>Anatomy</h2><p class="soft">What is it made of, and where can it be'
        " touched?</p><p>Parts are found by structure in the live model, not by its name. A site is an"
        " activation that can be read and edited; where a block has none, the table says why.</p>"
        + table(["part", "module", "shape", "parameters", "bytes"], parts, (3, 4))
        + "<h3>Sites</h3>"
        + table(["site", "blocks", "why not in the others"], sites)
        + f"<pre><code>{html.escape(command)}</code></pre></section>"
    )
    return Section("anatomy", "Anatomy", text)


def check_section(model: Model) -> Section:
    """The self-check's figures."""
    found = model.check.as_dict()
    rows = [[name, what, f"{found[name]:.2g}", unit] for name, what, unit in CHECKS]
    rows.append(["causal", "no position sees a later one (measured)", "yes" if found["causal"] else "no", ""])
    refused = [f"{site}: {reason}" for site, reason in found["refused"].items()]
    listed = "".join(f"<li>{html.escape(text)}</li>" for text in refused)
    text = (
        '<section id="check"><h2>Self-check</h2><p class="soft">Are these really the model\'s own'
        " parts?</p><p>Before anything is measured, the parts are put together again on a short input and"
        " compared with the model itself. Zero means equal to the bit.</p>"
        + table(["check", "what is compared", "measured", "unit"], rows, (2,))
        + (f"<p>Sites refused because their identity failed:</p><ul>{listed}</ul>" if refused else "")
        + "</section>"
    )
    return Section("check", "Self-check", text)


def plain_section(anchor: str, title: str, sentence: str, rows: Sequence[Sequence[str]] = ()) -> Section:
    """A section of one sentence, and a table of chapters and reasons where there are some."""
    listed = table(["chapter", "reason"], [list(row) for row in rows]) if rows else ""
    text = (
        "<section"
        f' id="{anchor}"><h2>{html.escape(title)}</h2><p>{html.escape(sentence)}</p>{listed}</section>'
    )
    return Section(anchor, title, text)


def result_section(dataset: xr.Dataset, command: str, anchor: str) -> Section:
    """One experiment: its question, finding, figures, how to read them, command and data."""
    drawing, title = drawing_of(dataset), title_of(dataset)
    drawn, figures = [], {}
    for number, (caption, figure) in enumerate(drawing.figures(dataset)):
        place = f"{anchor}-figure-{number}"
        drawn.append(
            f"<figure><figcaption>{html.escape(caption)}</figcaption>{plot_box(figure, place)}</figure>"
        )
        figures[place] = json.loads(str(plotly.io.to_json(figure, validate=True)))
    folds = []
    for number, (caption, figure, reading) in enumerate(drawing.folded(dataset), len(figures)):
        place = f"{anchor}-figure-{number}"
        folds.append(folded_figure(caption, figure, reading, place))
        figures[place] = json.loads(str(plotly.io.to_json(figure, validate=True)))
    finding = drawing.finding(dataset)
    text = (
        f'<section id="{anchor}"><h2>{html.escape(title)}</h2>'
        f'<p class="soft">{html.escape(drawing.question)}</p>'
        + (f'<p class="finding">{html.escape(finding)}</p>' if finding else "")
        + "".join(drawn)
        + f"<h3>How to read it</h3><p>{html.escape(drawing.how_to_read)}</p>"
        + (f"<h3>More of it</h3>{''.join(folds)}" if folds else "")
        + every_quantity(dataset)
        + f"<pre><code>{html.escape(command)}</code></pre>"
        + f'<p class="download">{download(dataset, anchor)}</p>{provenance_line(dataset)}</section>'
    )
    return Section(anchor, title, text, figures)


def plot_box(figure: go.Figure, place: str) -> str:
    """Where the page draws a figure."""
    width = least_width(figure)
    return f'<div class="wide"><div class="plot" style="min-width:{width}px" id="{place}"></div></div>'


def folded_figure(caption: str, figure: go.Figure, reading: str, place: str) -> str:
    """A figure behind its caption, drawn when it is opened, with the sentence that says how to read it."""
    return (
        f"<details><summary>{html.escape(caption)}</summary>"
        f"<figure>{plot_box(figure, place)}</figure><p>{html.escape(reading)}</p></details>"
    )


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
    inside = table(header, rows)
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


FIRST_WORDS = 3
"""Words of a quantity that are told."""
LETTERED, WIDE, NARROW, FINE = 52, 26, 14, 4
"""Pixels of a column with text in it, of one without, of one among many, and of one among very many."""
MANY, VERY_MANY = 32, 100
"""Columns from which on they are many, and very many."""

SAVED = 1.05
"""Times less work, from where on it is said with one decimal."""


def least_width(figure: go.Figure) -> int:
    """Width in pixels under which a figure is scrolled instead of squeezed: a matrix needs room for its
    columns."""
    traces: list[Any] = [trace for trace in list(figure.data) if isinstance(trace, go.Heatmap)]
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
    """Control deviation and counted work, where the engine ran variants."""
    attrs = dataset.attrs
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


def footer(results: list[xr.Dataset], seconds: float) -> str:
    """Where the numbers come from."""
    attrs = results[0].attrs if results else {}
    words = [
        f"{name} {attrs[name]}"
        for name in ("regraft", "torch", "transformers", "tokenizers")
        if name in attrs
    ]
    told = [
        f"{stated} {html.escape(str(attrs[name]))}"
        for name, stated in (
            ("attention", "attention:"),
            ("seed", "seed"),
            ("weights_sha256", "weights sha256"),
        )
        if name in attrs
    ]
    return (
        f"Made in {seconds:.0f} s by {html.escape(', '.join(words))};"
        f" {'; '.join([*told, str(attrs.get('time'))])}."
    )
