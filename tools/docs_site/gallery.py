"""The gallery: a report made now, and the main figure of each of its chapters."""

from __future__ import annotations

import html
import shutil
from pathlib import Path

from regraft import load
from regraft.core.runs import open_run
from regraft.jobs.report_job import report
from regraft.reporting.drawings import drawing_of
from regraft.reporting.still_picture import stands_still, still
from regraft.reporting.story import GROUPS

REPORT = "report-of-the-specimen"
GUIDES = {
    "spectra": "spectra", "completions": "completions", "lens": "lens", "contributions": "lens",
    "attention": "attention", "cache": "cache", "compile": "compile",
    "disaggregate": "disaggregate",
    "geometry": "geometry", "linearity": "linearity", "trajectories": "trajectories", "neurons": "neurons",
    "correlations": "correlations", "knockout": "interventions", "swap": "interventions",
    "patch": "interventions", "paths": "interventions", "bottleneck": "interventions", "push": "components",
    "ablate": "components", "repeat": "routes", "noise": "routes", "replacement": "routes",
    "shuffle": "shuffle", "quantize": "quantize", "quantizers": "quantize",
}  # fmt: skip
"""The page that explains an experiment."""
HEAD = f"""---
hide: [navigation, toc]
---

# Gallery

The main figure of every chapter of a report on `specimen:qwen3`, made with this site. A figure leads to its
chapter, where it can be hovered over; [the whole report]({REPORT}/report.html) has the folded ones, too.
"""


def make_report(folder: Path) -> None:
    """The report, without the data of its runs: the page alone is part of the site.

    Raises:
        RuntimeError: a chapter failed.
    """
    made, missing = report(load(), folder / "whole")
    failed = [one for one in missing if one.trace]
    if failed:
        raise RuntimeError("; ".join(map(str, failed)))
    (folder / REPORT).mkdir()
    shutil.copy(made, folder / REPORT / "report.html")


def write_page(folder: Path) -> None:
    """Make the report and the page of its main figures."""
    make_report(folder)
    parts = [HEAD]
    for group in GROUPS:
        cards = [
            card(run)
            for name in group.names
            for run in sorted((folder / "whole").iterdir())
            if run.is_dir() and run.name.split("-")[0] == name
        ]
        shown = [one for one in cards if one]
        if shown:
            parts += [f"## {group.title}", "", '<div class="gallery" markdown="0">', *shown, "</div>", ""]
    shutil.rmtree(folder / "whole")
    (folder / "gallery.md").write_text("\n".join(parts), encoding="utf-8")


def card(run: Path) -> str:
    """A chapter's main figure with its caption; nothing where there is no still picture of it."""
    data = open_run(run)
    drawing = drawing_of(data)
    caption, figure = drawing.all_figures(data)[0]
    if not stands_still(figure):
        return ""
    guide = GUIDES[data.attrs["experiment"]]
    return (
        f'<figure class="drawn"><a href="{REPORT}/report.html#{run.name}">{still(figure)}</a>'
        f"<figcaption><b>{html.escape(drawing.title)}</b>: {html.escape(caption)} · "
        f'<a href="{guide}.html">how to read it</a></figcaption></figure>'
    )
