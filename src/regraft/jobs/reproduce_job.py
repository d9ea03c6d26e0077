"""What `regraft reproduce` does once its options are read: a study's steps run on its model, and every
landmark beside what they gave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regraft.checkpoint.headers import CONFIG
from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import located
from regraft.core.files import expanded
from regraft.core.runs import check_writable, open_run, store, whole_folder, write_whole
from regraft.core.strict_json import json_text
from regraft.data.own_texts import passages
from regraft.features.active_features import active_features
from regraft.jobs.transcoder_jobs import open_transcoder
from regraft.landmarks.beside import Beside, beside, in_words
from regraft.landmarks.study import Landmark, Step, Study, check_shape, chosen_steps, study_for
from regraft.model.from_files import read_config
from regraft.model.model import Model
from regraft.reporting.build import Report
from regraft.reporting.chapter_inputs import Reading
from regraft.reporting.chosen_chapters import anchor_of
from regraft.reporting.drawings import drawing_of
from regraft.reporting.markup import Section, chapter, table
from regraft.specimens import almanac

TABLE, PASSAGE, SUMS = "landmarks.json", 256, 16
"""The file of all landmarks beside their results; tokens of a passage on which features are counted, and
worked sums where no text is named."""


class AsStudied(Reading):
    """Every step reads what its study names; of the user's own there is a text at most."""

    def options(self, name: str, model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
        """The text, for the experiment that reads one."""
        given = {"corpus": self.text} if self.text and name == "quantize" else {}
        return given, given


@dataclass
class Reproduction:
    """A study that is run on a model: where to, with which steps, and what came out.

    `open_it` opens the model where a step needs it; `source` is its name, for commands and adapters.
    """

    study: Study
    source: str
    out: Path
    open_it: Callable[[], Model]
    text: str = ""
    count: int = 0
    seed: int = 0
    opened: Mapping[str, Any] = field(default_factory=dict)
    told: Callable[[Step, str, Sequence[Beside]], None] = lambda step, finding, found: None
    found: list[Beside] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _report: Report | None = None

    @property
    def model(self) -> Model | None:
        """The model, where a step has opened it."""
        return None if self._report is None else self._report.model

    def run(self, steps: Sequence[Step]) -> list[Beside]:
        """Run steps one after the other; what an earlier run finished is read again.

        Each is told as it comes, and the page and the table are written behind each.

        Raises:
            ValueError: the model is of another shape than the study's, or refuses a step.
            RunFolderError: the folder holds something else.
        """
        self.out = expanded(self.out)
        check_stated(self.study, self.source)
        for step in steps:
            finding, result = self._result(with_count(step, self.count))
            reason = finding if result is None else ""
            self.refused += [step.name] if reason else []
            rows = [self._beside(step, landmark, result, reason) for landmark in step.landmarks]
            self.found += rows
            self.told(step, finding, rows)
            self._write()
        return self.found

    def _beside(self, step: Step, landmark: Landmark, result: xr.Dataset | None, reason: str) -> Beside:
        if result is None:
            return Beside(step.name, landmark, None, reason=reason or "the command has no certificate")
        found = beside(step.name, landmark, result)
        if found.value is None and step.text and not self.text:
            return replace(found, reason="it is of a text: name it with --text")
        return found

    def _result(self, step: Step) -> tuple[str, xr.Dataset | None]:
        """What a step found, in a sentence, and its result; without one the sentence says why it was refused,
        if it was."""
        if step.command:
            return "", self._commanded(step)
        if step.adapters:
            result = self._counted()
            active = float(result.active.mean())
            return f"{active:.3g} features are active at a token, mean over blocks.", result
        report = self._opened_report()
        before = len(report.results)
        report.make(step.experiment, step.options, anchor_of(step.experiment, step.options))
        if len(report.results) == before:
            return report.missing[-1].reason, None
        result = report.results[-1]
        return drawing_of(result).finding(result), result

    def _opened_report(self) -> Report:
        """The report that the experiments grow into; the model is opened for the first."""
        if self._report is None:
            model = self.open_it()
            check_shape(self.study, len(model.main_blocks), model.width, model.vocabulary)
            check_writable(self.out, "report", model.weights_sha256, version("regraft"))
            self._report = Report(model, self.out, self.seed, self.opened, AsStudied(text=self.text))
        return self._report

    def _commanded(self, step: Step) -> xr.Dataset | None:
        """The certificate of a command of this program, which runs in the output folder unless it has."""
        self.out.mkdir(parents=True, exist_ok=True)
        made = self.out / step.makes
        if not made.exists():
            folder = expanded(self.source)
            source = str(folder.resolve()) if folder.is_dir() else self.source
            words = [sys.executable, "-m", "regraft", *step.command, "--model", source]
            done = subprocess.run(words, cwd=self.out, capture_output=True, text=True, check=False)
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if line.startswith("regraft: ")]
                raise ValueError(f"{step.name}: {(said or done.stderr.splitlines() or ['it failed'])[-1]}")
        if made.suffix != ".json":
            return None
        return xr.Dataset.from_dict(json.loads(made.read_text(encoding="utf-8")))

    def _counted(self) -> xr.Dataset:
        """Active features of published adapters on the text, or on worked sums."""
        kept = self.out / "active-features"
        if kept.is_dir():
            return open_run(kept)
        model, graft = open_transcoder(resolve(self.source)[0], device=str(self.opened.get("device", "cpu")))
        if self.text:
            texts = expanded(self.text).read_text(encoding="utf-8").split("\n\n")
        else:
            texts = almanac.corpus(40 * SUMS, 99)
        result = active_features(model, graft, passages(model, texts, PASSAGE))
        self.out.mkdir(parents=True, exist_ok=True)
        with whole_folder(kept) as folder:
            store(result, folder)
        return result

    def _write(self) -> None:
        """The table as JSON, and the page with the table on top of its chapters."""
        write_whole(self.out / TABLE, json_text(landmark_rows(self.found), indent=1) + "\n")
        if (report := self._report) is None:
            return
        section = landmark_section(self.study, self.found, differences(self.study, report.model, self.count))
        own = [one for one in report.sections if one.anchor != section.anchor]
        report.sections = [section, *own]
        report.write(())


def reproduce(
    model: Model,
    out: Path | str,
    study: str = "",
    *,
    only: Sequence[str] = (),
    text: str = "",
    count: int = 0,
    seed: int = 0,
) -> list[Beside]:
    """Run a study's steps on a model and put every published figure beside what is found.

    Args:
        model: an opened model.
        out: the folder for the page, the table and the results; what an earlier run finished is read again.
        study: whose figures; by default those of the model's own name.
        only: names of steps; without them all.
        text: a text file, for figures that are of a text.
        count: prompts that are read instead of the study's number.
        seed: of everything drawn at random.

    Returns:
        Each published figure with what was found, how far they are apart, and what was expected.

    Raises:
        ValueError: no study, a step that it does not have, or a model of another shape.

    Examples:
        >>> beside = regraft.reproduce(model, "reproduced", only=["spectra"])
        >>> beside[0].landmark.quantity, beside[0].unit, abs(beside[0].landmark.value - beside[0].value) < 0.1
        ('block norm', 'Frobenius norm of all matrices of the block', True)
    """
    source = model.source or model.name
    chosen = study_for(source, study)
    job = Reproduction(chosen, source, expanded(out), lambda: model, text, count, seed)
    return job.run(chosen_steps(chosen, only))


def check_stated(study: Study, source: str) -> None:
    """Make sure that a folder's configuration has the study's shape, before anything is opened; a hub's model
    is looked at once it is there.

    Raises:
        ValueError: it has another one.
    """
    folder, _ = located(source)
    if folder is None or not (folder / CONFIG).is_file():
        return
    told = read_config(folder, remote_code=False).get_text_config()
    stated = [getattr(told, name, None) for name in ("num_hidden_layers", "hidden_size", "vocab_size")]
    blocks, width, vocabulary = (one if isinstance(one, int) else 0 for one in stated)
    if blocks and width and vocabulary:
        check_shape(study, blocks, width, vocabulary)


def with_count(step: Step, count: int) -> Step:
    """A step that reads so many prompts, where it counts prompts and another number is asked for."""
    if not count or "count" not in step.options:
        return step
    return replace(step, options={**step.options, "count": count})


def differences(study: Study, model: Model, count: int = 0) -> list[str]:
    """Settings in which a run differs from the published one, in sentences."""
    found = [study.note] if study.note else []
    own = str(model.dtype).removeprefix("torch.")
    if own != study.dtype:
        found.append(f"Numbers are {own} here and {study.dtype} there.")
    if study.weights_sha256 and model.weights_sha256 != study.weights_sha256:
        found.append("The weights are not those that the figures were measured on: their hash is another.")
    if count:
        found.append(f"Steps that count prompts read {count} here.")
    found += [f"{step.name}: {step.differs}" for step in study.steps if step.differs]
    return found


def landmark_rows(found: Sequence[Beside]) -> list[dict[str, Any]]:
    """Every landmark beside its result, as data."""
    return [
        {
            "step": one.step,
            "quantity": one.landmark.quantity,
            "variable": one.landmark.variable,
            "at": dict(one.landmark.at),
            "landmark": one.landmark.value,
            "here": one.value,
            "times": None if np.isnan(one.ratio) else one.ratio,
            "units": one.unit,
            "why_none": one.reason,
        }
        for one in found
    ]


HEADER = ["step", "quantity", "at", "landmark", "here", "here / landmark"]


def landmark_cells(one: Beside) -> list[str]:
    """A landmark beside its result, as a row of a table."""
    ratio = "" if np.isnan(one.ratio) else f"{one.ratio:.3g}"
    there, here = in_words(one.landmark.value), one.reason or in_words(one.value)
    return [one.step, one.landmark.quantity, one.landmark.place, there, here, ratio]


def landmark_section(study: Study, found: Sequence[Beside], differs: Sequence[str]) -> Section:
    """The table on top of the page."""
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in differs)
    inside = (
        '<p class="soft">Are the published figures found again?</p><p>Published of'
        f" {escape(study.model)} by {escape(study.source)}. A range is the least and the largest over several"
        " places.</p>"
        + table(HEADER, [landmark_cells(one) for one in found], (3, 4, 5))
        + (f"<h4>Settings that differ</h4><ul>{listed}</ul>" if listed else "")
    )
    title = "Published figures, and what was found here"
    return Section("landmarks", "Published figures", chapter("landmarks", title, inside))
