"""The drawing library as every page holds it: plotly.js for cartesian figures, brought by
`tools/fetch_scripts.py`."""

from __future__ import annotations

import html
from functools import cache
from importlib import resources
from pathlib import Path

import plotly.graph_objects as go
import plotly.io

from regraft.core.files import whole_file
from regraft.reporting.theme import CONFIG

FILE = "plotly-cartesian.min.js"


@cache
def plotly_script() -> str:
    """The script's text."""
    return resources.files("regraft.reporting").joinpath("plotly", FILE).read_text(encoding="utf-8")


def write_figure(figure: go.Figure, file: Path, title: str) -> None:
    """Write a figure as a page of its own that opens offline."""
    body = plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config=CONFIG)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><script>{plotly_script()}</script></head><body>{body}</body></html>"
    )
    with whole_file(file) as part:
        part.write_text(page, encoding="utf-8")
