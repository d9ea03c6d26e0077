"""What a notebook shows: a result's figures and numbers, a model's anatomy, a recording's tokens."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go
import xarray as xr

from regraft.checkpoint.dissection import dissect
from regraft.model.describe import LINES, model_in_words, recording_in_words
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.reporting.anatomy_drawing import svg
from regraft.reporting.chapter_section import table_of
from regraft.reporting.drawings import drawing_of

TOKENS = 200
"""Tokens of a prompt that are shown."""
CHIP = "display:inline-block;white-space:pre;border-radius:3px;padding:1px 2px;margin:1px;"
SCORED, PLAIN = "#cfe2ff", "#eef0f3"
"""Colours of a token that counts in a loss, and of any other."""


def figure(dataset: xr.Dataset, number: int = 0) -> go.Figure:
    """One of a result's figures, as the report draws them; a notebook shows it inline.

    Args:
        dataset: the result of an experiment, or of a sweep of a grid.
        number: which of its figures.

    Returns:
        A plotly figure.

    Raises:
        ValueError: it is no result of regraft, or has not so many figures.

    Examples:
        >>> data = regraft.knockout(model, count=2, tokens=4)
        >>> len(regraft.figure(data).data) > 0
        True
    """
    if not isinstance(dataset, xr.Dataset) or "experiment" not in dataset.attrs:
        raise ValueError(
            "only a result of regraft is drawn: an experiment's, or that of a sweep of a grid (attrs"
            " 'experiment')"
        )
    drawn = drawing_of(dataset).all_figures(dataset)
    if not 0 <= number < len(drawn):
        raise ValueError(f"there is no figure {number}: this result has {len(drawn)}")
    name, found = drawn[number]
    found.update_layout(title={"text": name, "font": {"size": 14}}, margin={"t": 50})
    return found


def table(dataset: xr.Dataset) -> Any:
    """The numbers of a result as a pandas table, with units in the names of its columns.

    Raises:
        ValueError: it is no result of regraft.
    """
    if "experiment" not in dataset.attrs:
        raise ValueError("only a result of regraft has a table: this dataset does not say what it measures")
    found = table_of(dataset)
    units = {name: dataset[name].attrs.get("units", "") for name in found.columns if name in dataset}
    return found.rename(columns={name: f"{name} [{unit}]" for name, unit in units.items() if unit})


def model_html(model: Model) -> str:
    """A model's anatomy as a drawing where it has files, and what it says of itself."""
    words = f"<pre>{escape(model_in_words(model))}</pre>"
    if model.folder is None:
        return words
    drawn = svg(model.name, dissect(str(model.folder)))
    return f'{words}<div style="max-width:640px;overflow:auto">{drawn}</div>'


def _chip(text: str, position: int, token: int, scored: bool) -> str:
    style = f"{CHIP}background:{SCORED if scored else PLAIN}"
    return f'<span title="position {position}, id {token}" style="{style}">{escape(text) or "∅"}</span>'


def recording_html(recording: Recording) -> str:
    """The tokens of the prompts; those that are scored in another colour."""
    first = recording_in_words(recording).splitlines()[0]
    rows = []
    for row, length in enumerate(recording.lengths_B.tolist()[:LINES]):
        ids = recording.ids_BT[row, : min(length, TOKENS)].tolist()
        scored = recording.scored_BT[row].tolist()
        chips = [_chip(recording.model.token_text(i), at, i, scored[at]) for at, i in enumerate(ids)]
        more = f" … {length - TOKENS:,} more" if length > TOKENS else ""
        rows.append(f"<div>{row}: {''.join(chips)}{more}</div>")
    rest = recording.prompts - LINES
    rows += [f"<div>and {rest} more</div>"] if rest > 0 else []
    return f"<div><p>{escape(first)}</p>{''.join(rows)}</div>"
