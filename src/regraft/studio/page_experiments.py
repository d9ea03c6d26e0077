"""The page of experiments: a form for each, made from its parameters; the jobs; the figure of the one at
hand."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from nicegui import ui

from regraft.core.registry import experiments
from regraft.core.signatures import Parameter
from regraft.reporting.drawings import title_for
from regraft.studio.bench import Bench
from regraft.studio.forms import choices, plain_kind
from regraft.studio.job_queue import ENDED, SHOWN, Job
from regraft.studio.limits import sentence
from regraft.studio.looks import Look
from regraft.studio.studio_state import Studio
from regraft.studio.themed import themed

KINDS = {"int": "whole number", "float": "number", "TextFile": "file", "KeptFolder": "folder",
         "NewFolder": "new folder", "ModelName": "model"}  # fmt: skip
FIRST = "knockout"


class ExperimentsPage:
    """One browser's view of experiments and jobs."""

    def __init__(self, studio: Studio, bench: Bench | None, look: Look):
        self.studio, self.bench, self.look = studio, bench, look
        self.chosen, self.number = FIRST, -1
        self.fields: dict[str, Any] = {}
        self._drawn: tuple[Any, ...] = ()
        self._shown: tuple[Any, ...] = ()
        self._progress: dict[int, tuple[ui.label, ui.linear_progress | None]] = {}

    def build(self) -> None:
        """Put the page together."""
        with ui.row().classes("w-full items-start gap-4"):
            with ui.column().classes("rg-side gap-2"):
                names = {name: title_for(name) for name in experiments()}

                def choose(event: Any) -> None:
                    self.chosen = event.value
                    self.form.refresh()

                ui.select(names, value=self.chosen, on_change=choose).props(
                    "outlined dense data-testid=experiment"
                ).classes("w-full")
                self.told()
                self.form()
            with ui.column().classes("rg-wide gap-2"):
                self.listed()
                self.pictures()

    @ui.refreshable_method
    def told(self) -> None:
        """What an experiment does not measure, where that may be thought."""
        if self.bench is not None and self.bench.on:
            ui.label("Experiments run on the model without the grafts that are switched on.").props(
                "data-testid=plain"
            )

    @ui.refreshable_method
    def form(self) -> None:
        """The fields of the experiment that is chosen."""
        experiment = experiments()[self.chosen]
        ui.label(experiment.summary).classes("rg-soft")
        self.fields = {}
        for parameter in experiment.parameters:
            self.fields[parameter.name] = _field(parameter)
        if experiment.draws:
            self.fields["seed"] = (
                ui.number("seed", value=0, precision=0).props("outlined dense").classes("w-full")
            )
        ui.button("Run", on_click=self._run).props("data-testid=run")

    def _run(self) -> None:
        given = {name: field.value for name, field in self.fields.items()}
        seed = int(given.pop("seed", 0) or 0)
        try:
            source = self.bench.source if self.bench is not None else ""
            job = self.studio.jobs.submit(self.chosen, source, given, seed)
        except ValueError as error:
            self.look.say(sentence(error))
            return
        self.number = job.number
        self.show()

    @ui.refreshable_method
    def listed(self) -> None:
        """Every job of this studio, the newest first."""
        jobs, self._progress = self.studio.jobs.jobs, {}
        self._shown = self._states()
        if not jobs:
            ui.label("Nothing was run yet: fill in the form, and run it.").classes("rg-soft").props(
                "data-testid=no-jobs"
            )
            return
        with ui.column().classes("w-full gap-1").props("data-testid=jobs"):
            for job in reversed(jobs[-SHOWN:]):
                self._job(job)

    def _job(self, job: Job) -> None:
        with ui.card().classes("w-full gap-1").props("flat bordered"):
            with ui.row().classes("w-full items-center justify-between no-wrap"):
                ui.button(
                    f"{job.number}: {job.experiment}", on_click=partial(self._look_at, job.number)
                ).props("flat dense no-caps")
                state = ui.label(_state(job)).props(f"data-testid=state-{job.number}").classes("rg-soft")
                if job.state not in ENDED:
                    ui.button("Cancel", on_click=partial(self._cancel, job.number)).props(
                        f"flat dense no-caps data-testid=cancel-{job.number}"
                    )
            bar = None
            if job.state == "running":
                bar = ui.linear_progress(job.share, show_value=False).props("instant-feedback")
            self._progress[job.number] = (state, bar)
            if job.sentence:
                ui.label(job.sentence).classes("rg-soft").props(f"data-testid=sentence-{job.number}")

    def _look_at(self, number: int) -> None:
        self.number = number
        self.show()

    def _cancel(self, number: int) -> None:
        try:
            self.studio.jobs.cancel(number)
        except ValueError as error:
            self.look.say(sentence(error))

    @ui.refreshable_method
    def pictures(self) -> None:
        """What the job at hand found so far, and the command that does the same."""
        job = self._at_hand()
        if job is None:
            return
        ui.label(job.command).classes("rg-mono rg-text").props("data-testid=command")
        with (
            ui.column()
            .classes("w-full rg-figures")
            .props(f"data-testid=pictures data-pictures={len(job.pictures)}")
        ):
            for caption, figure in job.pictures:
                ui.label(caption).classes("rg-soft")
                ui.plotly(themed(figure, self.look.dark)).classes("w-full")

    def _at_hand(self) -> Job | None:
        jobs = self.studio.jobs.jobs
        return jobs[self.number] if jobs and -1 <= self.number < len(jobs) else None

    def show(self) -> None:
        """Show how far every job is; figures only where they are others than before.

        Buttons are made anew only where a job came, began or ended: a click on one that is made anew in the
        middle of it would be lost.
        """
        if self._states() != self._shown:
            self.listed.refresh()
        for one in self.studio.jobs.jobs[-SHOWN:]:
            state, bar = self._progress.get(one.number, (None, None))
            if state is not None:
                state.set_text(_state(one))
            if bar is not None:
                bar.set_value(one.share)
        job = self._at_hand()
        now = (job.number, id(job.pictures), self.look.dark) if job else ()
        if now != self._drawn:
            self._drawn = now
            self.pictures.refresh()

    def _states(self) -> tuple[Any, ...]:
        return tuple((one.number, one.state, one.sentence) for one in self.studio.jobs.jobs[-SHOWN:])


def _field(parameter: Parameter) -> Any:
    """The widget of a parameter."""
    kind, usual = plain_kind(parameter), parameter.default
    label = f"{parameter.name} ({KINDS[kind]})" if kind in KINDS else parameter.name
    if kind == "bool":
        made: Any = ui.switch(parameter.name, value=bool(usual))
    elif choices(parameter):
        made = ui.select(choices(parameter), value=usual, label=label).props("outlined dense")
    elif kind.startswith("list["):
        value = "\n".join(map(str, usual or []))
        made = ui.textarea(f"{parameter.name}, one a line", value=value).props("outlined dense autogrow")
    elif kind in ("int", "float"):
        made = ui.number(label, value=usual, format="%g").props("outlined dense")
    else:
        made = ui.input(label, value=str(usual or "")).props("outlined dense")
    made.classes("w-full").props(f"data-testid=field-{parameter.name}")
    made.tooltip(parameter.help)
    return made


def _state(job: Job) -> str:
    if job.state != "running":
        return job.state
    left = job.left(time.monotonic())
    told = f", {left:.0f} s left" if left is not None else ""
    return f"{job.work}: {job.share:.0%}{told}" if job.total else job.work
