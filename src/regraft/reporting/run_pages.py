"""Pages from run folders: nothing is measured, and no model is opened."""

from __future__ import annotations

import html
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft.core.files import RunFolderError
from regraft.core.runs import FINISHED, OUR_MARK, open_run, read_mark, read_settings, write_whole
from regraft.core.strict_json import json_text
from regraft.reporting.beside_section import beside_section
from regraft.reporting.chapter_section import Made
from regraft.reporting.markup import Section
from regraft.reporting.page import check_section, footer, sheet
from regraft.reporting.shell_commands import option_words
from regraft.reporting.story import kind_of

WEIGHTS, FROM = "weights_sha256", "from"
"""Names in `run.json`: whose weights, and the folders that a page was made of."""


@dataclass(frozen=True)
class Run:
    """A run folder: its path, its `run.json`, and its result as a chapter."""

    folder: Path
    mark: Mapping[str, Any]
    made: Made

    @property
    def model(self) -> str:
        """The model that it is of."""
        return str(self.mark.get("model", ""))


def chapter_folders(folder: Path) -> list[Path]:
    """The run folders that a path names: itself, or the chapters of a report.

    Raises:
        RunFolderError: it is no run folder.
    """
    if read_mark(folder).get("experiment") != "report":
        return [folder]
    places = sorted(place.parent for place in folder.glob(f"*/{OUR_MARK}"))
    inside = [place for place in places if read_mark(place).get("experiment") != "report"]
    if not inside:
        raise RunFolderError(f"the report {folder} has no chapters")
    return inside


def opened_runs(folders: Sequence[Path]) -> list[Run]:
    """Results of run folders and of reports, in the order in which they are named.

    Raises:
        RunFolderError: one is no run folder, or of a newer version.
    """
    found: list[Run] = []
    for folder in [inside for named in folders for inside in chapter_folders(named)]:
        mark = read_mark(folder)
        if mark.get(FINISHED) is False:
            raise RunFolderError(f"the run {folder} did not come to its end: finish it, or leave it out")
        model, anchor = str(mark.get("model", "")), folder.name
        if any((run.model, run.made.anchor) == (model, anchor) for run in found):
            anchor = f"{anchor}-{len(found)}"
        found.append(Run(folder, mark, Made(anchor, open_run(folder), command_again(folder, mark))))
    return found


def command_again(folder: Path, mark: Mapping[str, Any]) -> str:
    """The command that makes a run again, from the options that it keeps; without these the line that made
    it."""
    settings = dict(read_settings(folder))
    if "command" not in settings:
        return str(mark.get("command", ""))
    name = str(settings.pop("command"))
    return shlex.join(["regraft", *name.split(), *option_words(settings)])


def page_from_runs(folders: Sequence[Path], out: Path, beside: str = "") -> Path:
    """Write `report.html` from run folders.

    Args:
        folders: of runs, or of whole reports.
        out: where the page goes.
        beside: where the runs are of two models, the name of the second.

    Raises:
        RunFolderError: one is no run folder, or of a newer version; or a measured report stands where the
            page is to go.
        ValueError: the runs are of several models, and the second is not named.
    """
    check_page(out)
    began = time.perf_counter()
    runs = opened_runs(folders)
    names = list(dict.fromkeys(run.model for run in runs))
    check_models(runs, names, beside)
    if len(names) == 1:
        sections = [check_section(runs[0].mark.get("self_check", {}))] if "self_check" in runs[0].mark else []
        sections += [run.made.section() for run in runs]
    else:
        names = [name for name in names if name != beside] + [beside]
        sections = paired([[run.made for run in runs if run.model == name] for name in names], names)
    stated = " beside ".join(names) or "Run folders"
    lead = f"{stated}: a page from {len(runs)} run folders; nothing was measured again."
    foot = footer([run.made.result for run in runs], time.perf_counter() - began)
    words = (f"{stated} taken apart", f"{stated}, taken apart", lead)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "report.html", sheet(words, sections, foot))
    mark = {
        "experiment": "report",
        "regraft": version("regraft"),
        "model": stated,
        FROM: list(map(str, folders)),
    }
    write_whole(out / OUR_MARK, json_text(mark, indent=1, sort_keys=True) + "\n")
    return out / "report.html"


def check_page(out: Path) -> None:
    """Make sure that a page of runs takes the place of another such page alone.

    Raises:
        RunFolderError: the folder holds a report that was measured.
    """
    if (out / OUR_MARK).is_file() and FROM not in read_mark(out):
        raise RunFolderError(f"the folder {out} holds a report that was measured: choose another with --out")


def check_models(runs: Sequence[Run], names: Sequence[str], beside: str) -> None:
    """Make sure that all runs are of one model, or of two of which the second is named.

    Raises:
        ValueError: they are not.
    """
    weights = {name: {run.mark.get(WEIGHTS) for run in runs if run.model == name} for name in names}
    changed = next((name for name, some in weights.items() if len(some) > 1), None)
    if changed is not None:
        raise ValueError(f"these runs are of {changed} with different weights: choose runs of one of them")
    if len(names) == 1 and not beside:
        return
    if len(names) != 2 or beside not in names:
        told = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else f"{names[0]} alone"
        wanted = f"two models side by side need runs of both, and --beside {names[-1]}"
        raise ValueError(f"these runs are of {told}: {wanted}, or choose runs of one model")


def beside_page(
    names: Sequence[str], leads: Sequence[str], sides: Sequence[Sequence[Made]], out: Path
) -> Path:
    """Write `beside.html`: every chapter of two models, what differs first.

    Args:
        names: of both models.
        leads: what each of them is, in a sentence.
        sides: the chapters of both.
        out: the folder.
    """
    began = time.perf_counter()
    names = names if names[0] != names[1] else [f"{names[0]} (first)", f"{names[1]} (second)"]
    stated = " beside ".join(names)
    lead = " ".join(f"{name}: {told}" for name, told in zip(names, leads, strict=True))
    foot = footer([one.result for side in sides for one in side], time.perf_counter() - began)
    words = (f"{stated} taken apart", f"{stated}, taken apart", lead)
    write_whole(out / "beside.html", sheet(words, paired(sides, names), foot))
    return out / "beside.html"


def paired(sides: Sequence[Sequence[Made]], names: Sequence[str]) -> list[Section]:
    """Sections of two models: both results in one where both have the chapter, one alone where not."""
    found: list[Section] = []
    others = {one.anchor: one for one in sides[1]}
    for one in sides[0]:
        other = others.pop(one.anchor, None)
        found.append(beside_section(names, [one, other]) if other else alone(one, names[0]))
    return [*found, *(alone(one, names[1]) for one in others.values())]


def alone(made: Made, name: str) -> Section:
    """A chapter that one of two models has."""
    section = made.section()
    note = f'<p class="soft">Of {html.escape(name)} alone.</p>'
    return Section(
        section.anchor,
        section.title,
        section.text.replace("</h3>", f"</h3>{note}", 1),
        section.figures,
        kind_of(section),
        f"{name}: {section.headline}" if section.headline else "",
    )


def draw_run(folder: Path) -> Path:
    """Write a run's figures as `figure.html` into its folder: a page of this one chapter.

    Raises:
        RunFolderError: it is no run folder, or of a newer version.
    """
    (run,) = opened_runs([folder])
    foot = footer([run.made.result], float(run.mark.get("seconds", 0.0)))
    section = run.made.section()
    words = (section.title, section.title, f"{run.model}, from the run folder {folder.name}.")
    write_whole(folder / "figure.html", sheet(words, [section], foot))
    return folder / "figure.html"
