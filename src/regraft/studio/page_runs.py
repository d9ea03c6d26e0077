"""The page of runs: what lies in the folder, one opened, two compared."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from nicegui import ui

from regraft.core.files import RunFolderError
from regraft.core.registry import REFUSALS
from regraft.core.runs import open_run, read_mark
from regraft.jobs.run_folders import Comparison, compare_runs, found_runs
from regraft.reporting.drawings import drawing_of
from regraft.reporting.run_pages import command_again
from regraft.studio.limits import sentence
from regraft.studio.looks import Look
from regraft.studio.run_pictures import pictures_of
from regraft.studio.studio_state import Studio
from regraft.studio.themed import themed

COLUMNS = [
    {"name": name, "label": name, "field": name, "align": "left", "sortable": True}
    for name in ("folder", "experiment", "model", "made", "seconds", "state")
]

COMPARED = {
    "name": "quantity",
    "largest": "largest difference",
    "share": "of the largest value",
    "place": "where",
    "units": "unit",
}
"""Columns of a comparison."""


class RunsPage:
    """One browser's view of the run folders."""

    def __init__(self, studio: Studio, look: Look):
        self.studio, self.look = studio, look
        self.opened: list[Path] = []
        self.content: tuple[str, str, list[list[str]]] | None = None
        self.comparison: Comparison | None = None
        self.why = ""

    def build(self) -> None:
        """Put the page together."""
        with ui.row().classes("items-center gap-2"):
            ui.label(f"Runs in {self.studio.places.runs.name}").classes("rg-soft")
            ui.button("Look again", on_click=self.look_again).props("flat dense no-caps data-testid=again")
            ui.button("Open", on_click=self._open).props("dense no-caps data-testid=open-run")
            ui.button("Compare two", on_click=self._compare).props("dense no-caps data-testid=compare-runs")
        self.table = ui.table(columns=COLUMNS, rows=[], row_key="folder", selection="multiple", pagination=10)
        self.table.classes("w-full").props("dense data-testid=runs")
        self.shown()
        ui.timer(0.1, self.look_again, once=True)

    async def look_again(self) -> None:
        """Read the folder: the newest run stands first."""
        self.table.update_rows(await asyncio.to_thread(self._rows))

    def _rows(self) -> list[dict[str, Any]]:
        root = self.studio.places.runs
        try:
            found = found_runs(root)
        except RunFolderError:
            return []
        return [
            {
                "folder": str(one.folder.relative_to(root)) if one.folder != root else ".",
                "experiment": one.experiment,
                "model": one.model,
                "made": one.time[:19],
                "seconds": "" if one.seconds != one.seconds else f"{one.seconds:.1f}",
                "state": one.state,
            }
            for one in sorted(found, key=lambda run: run.time, reverse=True)
        ]

    def _chosen(self, wanted: int) -> list[Path]:
        names = [str(row.get("folder", "")) for row in self.table.selected if isinstance(row, dict)]
        if len(names) != wanted:
            raise ValueError(
                f"{len(names)} runs are chosen: choose {'one' if wanted == 1 else 'two'} on the left"
            )
        return [self.studio.places.inside(name) for name in names]

    async def _open(self) -> None:
        self.comparison, self.content, self.why = None, None, ""
        try:
            (folder,) = self._chosen(1)
            self.content = await asyncio.to_thread(_content, folder)
        except REFUSALS as error:
            self.why = sentence(error)
        self.shown.refresh()

    async def _compare(self) -> None:
        self.comparison, self.content, self.why = None, None, ""
        try:
            one, other = self._chosen(2)
            self.comparison = await asyncio.to_thread(compare_runs, one, other)
        except REFUSALS as error:
            self.why = sentence(error)
        self.shown.refresh()

    @ui.refreshable_method
    def shown(self) -> None:
        """The run that is open, or the comparison."""
        if self.why:
            ui.label(self.why).props("data-testid=run-why")
        if self.content is not None:
            finding, command, pictures = self.content
            ui.label(finding).props("data-testid=finding")
            ui.label(command).classes("rg-mono rg-text")
            for caption, figure in pictures:
                ui.label(caption).classes("rg-soft")
                ui.plotly(themed(figure, self.look.dark)).classes("w-full")
        if self.comparison is not None:
            _compared(self.comparison)


def _content(folder: Path) -> tuple[str, str, list[list[str]]]:
    """What a run found, the command that makes it again, and its figures.

    Raises:
        ValueError: it is a report, or did not come to its end.
    """
    mark = read_mark(folder)
    if mark.get("experiment") == "report":
        raise ValueError(
            f"{folder.name} is a whole report: open its report.html, or choose one of its chapters"
        )
    if mark.get("finished") is False:
        raise ValueError(
            f"{folder.name} did not come to its end: `{command_again(folder, mark)}` goes on with it"
        )
    dataset = open_run(folder)
    finding = drawing_of(dataset).finding(dataset) or str(mark.get("experiment"))
    return finding, command_again(folder, mark), pictures_of(dataset)


def _compared(found: Comparison) -> None:
    columns = [{"name": n, "label": label, "field": n, "align": "left"} for n, label in COMPARED.items()]
    rows = [
        {
            "name": one.name,
            "largest": one.reason or f"{one.largest:.3g}",
            "share": "" if one.reason else f"{one.share:.2%}",
            "place": one.place,
            "units": one.units,
        }
        for one in found.values
    ]
    for name, (mine, theirs) in found.provenance.items():
        ui.label(f"{name}: {str(mine)[:60]} and {str(theirs)[:60]}").classes("rg-soft")
    ui.table(columns=columns, rows=rows, pagination=12).classes("w-full").props("dense data-testid=compared")
