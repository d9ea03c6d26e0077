"""The report as one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft.core.runs import check_writable
from regraft.model.model import Model
from regraft.reporting.build import CHAPTERS, Missing, Report, SideBySide, build, grown
from regraft.reporting.chapter_inputs import Reading
from regraft.reporting.chosen_chapters import check_read, chosen_chapters
from regraft.reporting.page import lead
from regraft.reporting.run_pages import beside_page


def report(
    model: Model,
    out: Path | str,
    *,
    seed: int = 0,
    reading: Reading | None = None,
    options: Mapping[str, Any] | None = None,
    chapter: Callable[[str, int, int], None] | None = None,
    cluster: SideBySide | None = None,
    chapters: Sequence[str] = (),
) -> tuple[Path, list[Missing]]:
    """Run what suits a model and write one page that explains it, with a run folder for each result.

    Args:
        model: an opened model.
        out: the folder.
        seed: of everything drawn at random.
        reading: prompts, a text and pairs of one's own.
        options: how the model was opened, for the commands on the page.
        chapter: called with the chapter's name, chapters done, chapters in all.
        cluster: whose workers measure chapters side by side (`regraft.Cluster`).
        chapters: the chapters that are to be there, by experiment or by folder; by default all that suit.

    Returns:
        The page, and the chapters that are not on it, each with the reason.

    Raises:
        RunFolderError: the folder holds something else, or a report of another model or version.
        ValueError: there is no such chapter, or none that reads what is given.

    Examples:
        >>> page, missing = regraft.report(model, "report", chapters=["knockout"])
        >>> page.name, missing
        ('report.html', [])
    """
    check_writable(Path(out), "report", model.weights_sha256, version("regraft"))
    return build(model, Path(out), seed, chapter, options, reading, cluster, chapters)


BESIDE = "beside"
"""Folder of the second model's report, inside the first one's."""


def report_beside(
    model: Model,
    other: Model,
    out: Path | str,
    *,
    seed: int = 0,
    reading: Reading | None = None,
    options: Mapping[str, Any] | None = None,
    chapter: Callable[[str, int, int], None] | None = None,
    chapters: Sequence[str] = (),
) -> tuple[Path, list[Missing]]:
    """Run the same chapters on two models and write one page with every figure of both, what differs first;
    each has its own page beside it.

    Args:
        model: an opened model.
        other: the one that is set beside it; its report goes to the folder `beside` inside `out`.
        out: the folder.
        seed: of everything drawn at random.
        reading: prompts, a text and pairs of one's own.
        options: how the models were opened, for the commands on the page.
        chapter: called with the chapter's name, chapters done, chapters in all.
        chapters: the chapters that are to be there; by default all that suit.

    Returns:
        The page, and the chapters that are not on it, each with the reason.

    Raises:
        RunFolderError: a folder holds something else.
        ValueError: there is no such chapter, or none that reads what is given.

    Examples:
        >>> tuned = regraft.load("specimen:tuned")
        >>> page, missing = regraft.report_beside(model, tuned, "both", chapters=["spectra"])
        >>> page.name, missing
        ('beside.html', [])
    """
    asked = chosen_chapters(chapters, CHAPTERS)
    check_read(asked, reading or Reading())
    places = (Path(out), Path(out) / BESIDE)
    for one, place in zip((model, other), places, strict=True):
        check_writable(place, "report", one.weights_sha256, version("regraft"))
    made = [
        grown(Report(one, place, seed, options or {}, reading or Reading()), asked, chapter)
        for one, place in zip((model, other), places, strict=True)
    ]
    names, leads = [one.model.name for one in made], [lead(one.model) for one in made]
    page = beside_page(names, leads, [one.made for one in made], Path(out))
    return page, [missing for one in made for missing in one.missing]
