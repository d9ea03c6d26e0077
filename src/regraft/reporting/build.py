"""Run what suits a model and write its report, chapter by chapter."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import xarray as xr

from regraft.core.begun_runs import ended, finished, identity_of
from regraft.core.files import RunFolderError
from regraft.core.progress import advance
from regraft.core.registry import DOES_NOT_APPLY, experiments
from regraft.core.runs import OUR_MARK, open_run, store, store_settings, whole_folder, write_whole
from regraft.core.strict_json import json_text, opened_attributes
from regraft.experiments.running import measured, refused, remember
from regraft.model.model import Model
from regraft.reporting.chapter_inputs import Reading
from regraft.reporting.chapter_section import Made
from regraft.reporting.chosen_chapters import Chapter, anchor_of, check_read, chosen_chapters
from regraft.reporting.drawings import title_for
from regraft.reporting.markup import Section, plain_section
from regraft.reporting.page import footer, heading, opening, sheet
from regraft.reporting.shell_commands import command_line, settings_for
from regraft.sweeps.kept_sweeps import keeping
from regraft.sweeps.provenance import opened_told, option_told, provenance

CHAPTERS: tuple[Chapter, ...] = (
    ("completions", {}),
    ("lens", {}),
    ("attention", {}),
    ("contributions", {}),
    ("geometry", {}),
    ("spectra", {}),
    ("linearity", {}),
    ("trajectories", {}),
    ("neurons", {}),
    ("knockout", {}),
    ("swap", {}),
    ("patch", {}),
    ("patch", {"grid": "head"}),
    ("patch", {"grid": "last", "site": "resid_post"}),
    ("push", {}),
    ("ablate", {}),
    ("bottleneck", {}),
    ("repeat", {}),
    ("noise", {}),
    ("replacement", {}),
    ("shuffle", {}),
    ("quantize", {}),
    ("quantizers", {}),
    ("correlations", {}),
)
"""The chapters of a report, in the order in which they are measured: a transplant wants a donor, and pruning
and reordering a finding to act on, so they come where they are named."""
BEGUN_CHAPTERS = ".begun"
"""Folder of the sweeps of chapters that are not finished."""
BEFORE = "report.before.html"
"""What an earlier page is called while a new one grows in its place."""


READS_OTHERS = ("correlations",)
"""Chapters that are made of other chapters' results."""


class SideBySide(Protocol):
    """Who runs a function on copies of the model, as `regraft.Cluster` does."""

    def each(self, function: Callable[..., Any], jobs: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        """Each job's number and result as they come; None where the function failed."""
        ...


@dataclass(frozen=True)
class Missing:
    """A chapter that is not on the page and why; `trace` where it failed, nothing where it does not apply."""

    name: str
    title: str
    reason: str
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.name} {'failed' if self.trace else 'is left out'}: {self.reason}"


def build(
    model: Model,
    out: Path,
    seed: int = 0,
    chapter: Callable[[str, int, int], None] | None = None,
    options: Mapping[str, Any] | None = None,
    reading: Reading | None = None,
    cluster: SideBySide | None = None,
    chapters: Sequence[str] = (),
) -> tuple[Path, list[Missing]]:
    """Run the chapters, write `report.html` and a run folder for each result, and say what is missing and
    why.

    The page and the folder are written anew behind each chapter: whatever ends the work, they hold all that
    was done. `chapter` is called with (name, chapters done, chapters in all); `reading` is what the user
    wants read, `chapters` the chapters that are to be there; with a `cluster` its workers measure chapters
    side by side, and what fails there is tried here. Returns the page's path and the chapters not on it.

    Raises:
        ValueError: there is no such chapter, or none that reads what is given.
    """
    asked = chosen_chapters(chapters, CHAPTERS)
    check_read(asked, reading or Reading())
    report = grown(Report(model, out, seed, options or {}, reading or Reading()), asked, chapter, cluster)
    return out / "report.html", report.missing


def grown(
    report: Report,
    asked: Sequence[Chapter],
    chapter: Callable[[str, int, int], None] | None = None,
    cluster: SideBySide | None = None,
) -> Report:
    """A report with its chapters measured and written."""
    report.write(asked)
    if cluster is not None:
        report.measure_side_by_side(cluster, asked)
    for number, (name, chosen) in enumerate(asked):
        if chapter is not None:
            chapter(name, number, len(asked))
        report.add(name, chosen)
        report.write(asked[number + 1 :])
    if not any(one.trace for one in report.missing):
        (report.out / BEFORE).unlink(missing_ok=True)
        shutil.rmtree(report.out / BEGUN_CHAPTERS, ignore_errors=True)
    return report


class Report:
    """A report that grows: what it has measured so far, and what it could not."""

    def __init__(self, model: Model, out: Path, seed: int, options: Mapping[str, Any], reading: Reading):
        self.model, self.out, self.seed, self.options, self.reading = model, out, seed, options, reading
        self.started = time.perf_counter()
        self.sections: list[Section] = opening(model, options)
        self.made: list[Made] = []
        self.missing: list[Missing] = []
        out.mkdir(parents=True, exist_ok=True)
        page = out / "report.html"
        if page.exists() and not (out / BEFORE).exists():
            page.replace(out / BEFORE)
        self.told = opened_told(model, seed)
        store_mark(model, out)

    @property
    def results(self) -> list[xr.Dataset]:
        """What was measured so far."""
        return [one.result for one in self.made]

    def add(self, name: str, chosen: Mapping[str, Any]) -> None:
        """Make one chapter, or note why there is none.

        This is the one place where any error is caught: a fault in one of many chapters, whatever it is, must
        not take the others with it. It is named on the page and by the command, which ends with code 1.
        """
        anchor = anchor_of(name, chosen)
        try:
            self.make(name, chosen, anchor)
        except Exception as error:
            title, reason = (
                chapter_title(name, chosen),
                f"{type(error).__name__}: {one_line(error)}".removesuffix(": "),
            )
            self.missing.append(Missing(name, title, reason, "".join(traceback.format_exception(error))))
            self.sections.append(plain_section(anchor, title, f"This chapter failed: {reason}"))

    def make(self, name: str, chosen: Mapping[str, Any], anchor: str) -> None:
        """Measure one chapter, keep its result in a run folder and its section for the page."""
        try:
            given, told = self.reading.options(name, self.model)
            result = self.found(name, {**chosen, **given}, anchor)
        except DOES_NOT_APPLY as error:
            if not refused(error, name):
                raise
            self.missing.append(Missing(name, chapter_title(name, chosen), one_line(error)))
            return
        made = Made(anchor, result, command_line(name, self.model, {**chosen, **told, **self.options}))
        section = made.section()
        self.keep(name, chosen, result, anchor)
        self.made.append(made)
        self.sections.append(section)

    def keep(self, name: str, chosen: Mapping[str, Any], result: xr.Dataset, anchor: str) -> None:
        """Write a chapter's run folder."""
        given, told = self.reading.options(name, self.model)
        with whole_folder(self.out / anchor) as folder:
            store(result, folder, ended(self.chapter_told(name, {**chosen, **given})))
            store_settings(settings_for(name, self.model, {**chosen, **told, **self.options}), folder)

    def measure_side_by_side(self, cluster: SideBySide, chapters: Sequence[Chapter]) -> None:
        """Let the workers measure all chapters that stand alone and are not there yet; each is kept as it
        comes."""
        waiting = []
        for name, chosen in chapters:
            with suppress(*DOES_NOT_APPLY):
                options = {**chosen, **self.reading.options(name, self.model)[0]}
                anchor = anchor_of(name, chosen)
                if name not in READS_OTHERS and not self.is_there(name, options, anchor):
                    waiting.append((name, chosen, options, anchor))
        jobs = [(name, self.seed, options) for name, _, options, _ in waiting]
        for done, (number, result) in enumerate(cluster.each(measured_there, jobs)):
            name, chosen, _, anchor = waiting[number]
            advance("chapters side by side", done + 1, len(jobs))
            if result is not None:
                self.keep(name, chosen, result, anchor)

    def is_there(self, name: str, options: Mapping[str, Any], anchor: str) -> bool:
        """Whether a chapter was measured to its end with these options."""
        with suppress(RunFolderError):
            return finished(self.out / anchor, self.chapter_told(name, options))
        return False

    def found(self, name: str, options: Mapping[str, Any], anchor: str) -> xr.Dataset:
        """A chapter's result: from its folder where it was measured to its end with these options, else
        measured, its sweeps kept as they are."""
        told = self.chapter_told(name, options)
        if self.is_there(name, options, anchor):
            result = open_run(self.out / anchor)
            remember(self.model, name, self.seed, options, result)
            return result
        with keeping(self.out / BEGUN_CHAPTERS / f"{anchor}-{identity_of(told)[:16]}"):
            return measured(self.model, name, self.seed, **options)

    def chapter_told(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the numbers of a chapter hang on."""
        kinds = {one.name: one.annotation.removesuffix(" | None") for one in experiments()[name].parameters}
        told = {key: option_told(kinds.get(key, ""), value) for key, value in options.items()}
        return {**self.told, "experiment": name, "options": told}

    def write(self, to_come: Sequence[Chapter]) -> None:
        """The page as it is by now."""
        sections = [*self.sections]
        left_out = [(one.title, one.reason) for one in self.missing if not one.trace]
        if left_out:
            sentence = "These chapters do not apply to this model, or need what is not installed here."
            sections.append(plain_section("left-out", "Left out", sentence, left_out))
        if to_come:
            sections.append(plain_section("to-come", "Not measured yet", f"{AWAITED} {titles(to_come)}."))
        foot = footer(self.results, time.perf_counter() - self.started)
        write_whole(self.out / "report.html", sheet(heading(self.model), sections, foot))


def measured_there(model: Model, name: str, seed: int, options: Mapping[str, Any]) -> xr.Dataset:
    """One chapter's result, on whichever copy of the model this is."""
    return measured(model, name, seed, **options)


AWAITED = (
    "This page was written while the report was being made. If nothing is at work on it any more, it ended"
    " early. To come:"
)


def titles(chapters: Sequence[Chapter]) -> str:
    """The titles of chapters in a row."""
    return ", ".join(chapter_title(name, chosen) for name, chosen in chapters)


def chapter_title(name: str, chosen: Mapping[str, Any]) -> str:
    """What a chapter is called before there is a result: its drawing's title, and a choice that tells it from
    another one."""
    choices = [f"{key} {value}" for key, value in chosen.items() if isinstance(value, str)]
    return title_for(name) + (f" ({', '.join(choices)})" if choices else "")


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def store_mark(model: Model, folder: Path) -> None:
    """The `run.json` that says whose report this is."""
    mark = {**provenance(model), "experiment": "report"}
    write_whole(folder / OUR_MARK, json_text(opened_attributes(mark), indent=1, sort_keys=True) + "\n")
