"""Experiments as jobs: a queue, and the worker process that runs them one after the other.

A worker that dies is told of, its job fails, and another one takes the next job. Where nobody looks at any
page the job at hand is stopped (its folder keeps what was measured), what waits is given up, and the worker
goes.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.core.registry import Experiment, experiments
from regraft.core.strict_json import json_text
from regraft.studio.forms import check_form, command_line, options_of, settings_of
from regraft.studio.limits import Limits, RefusedError
from regraft.studio.opening import check_is_model
from regraft.studio.places import Places

LINE = 1 << 26
"""Bytes of the longest line of a worker: the figures of a run."""
PATIENCE = 10.0
"""Seconds that a worker has to end by itself before it is killed."""
SHOWN = 12
"""Jobs that a page lists; the figures of others are in their folders."""
ENDED = ("done", "failed", "stopped")


@dataclass
class Job:
    """One run of an experiment: what it was asked for, and how far it is."""

    number: int
    experiment: str
    model: str
    options: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    out: Path
    command: str
    state: str = "waiting"
    sentence: str = ""
    work: str = ""
    done: int = 0
    total: int = 0
    began: float = 0.0
    pictures: list[list[str]] = field(default_factory=list)
    cancelled: bool = False
    """Whether it is to stop, for one that no worker has been told of yet."""

    @property
    def share(self) -> float:
        """How much of the work at hand is done, 0 to 1."""
        return self.done / self.total if self.total else float(self.state == "done")

    def left(self, now: float) -> float | None:
        """Seconds that the work at hand will take, as long as it goes on as it did; None before that can be
        told."""
        if self.state != "running" or not self.done or not self.total:
            return None
        return (now - self.began) * (self.total - self.done) / self.done

    def told(self) -> str:
        """What the worker is told."""
        return json_text(
            {
                "number": self.number,
                "experiment": self.experiment,
                "model": self.model,
                "options": self.options,
                "settings": self.settings,
                "seed": self.seed,
                "out": str(self.out),
            }
        )


class Jobs:
    """The queue of one studio."""

    def __init__(self, places: Places, limits: Limits, changed: Callable[[], None]):
        self.places, self.limits, self.changed = places, limits, changed
        self.jobs: list[Job] = []
        self.process: asyncio.subprocess.Process | None = None
        self._told: Job | None = None
        """The job that the worker has: before, a Ctrl-C would end a worker that only begins."""
        self._going: asyncio.Task[None] | None = None

    def submit(self, name: str, model: str, given: dict[str, Any], seed: int = 0) -> Job:
        """Put an experiment into the queue; everything is checked before it waits.

        Raises:
            RefusedError: the queue is full, a field is wrong, or a place lies outside.
            ValueError: a file cannot be read, or a folder not written.
        """
        waiting = sum(job.state == "waiting" for job in self.jobs)
        if waiting >= self.limits.queued:
            raise RefusedError(
                f"{waiting} experiments wait already, as many as may: wait for one, or cancel one"
            )
        experiment = experiments().get(name)
        if experiment is None:
            raise RefusedError(f"there is no experiment {name!r}")
        options = options_of(experiment, given, self.places, self.limits)
        source, out = self.places.model(model), self._folder(experiment)
        check_is_model(source)
        check_form(experiment, options, out)
        settings = settings_of(experiment, source, options, seed)
        command = command_line(settings, out)
        job = Job(len(self.jobs), name, source, options, settings, seed, out, command)
        self.jobs.append(job)
        for old in self.jobs[:-SHOWN]:
            old.pictures = []
        self._go_on()
        self.changed()
        return job

    def _folder(self, experiment: Experiment) -> Path:
        """A folder for a run that is not there yet, nor taken by one that waits."""
        taken = {job.out for job in self.jobs}
        number = 1
        while (found := self.places.runs / f"{experiment.name}-{number}").exists() or found in taken:
            number += 1
        return found

    def cancel(self, number: int) -> None:
        """Take a job out of the queue, or stop it: its folder keeps what was measured.

        Raises:
            RefusedError: there is no such job, or it has ended.
        """
        job = self.jobs[number] if 0 <= number < len(self.jobs) else None
        if job is None or job.state in ENDED:
            raise RefusedError(f"job {number} does not run: there is nothing to cancel")
        if job.state == "waiting":
            job.state, job.sentence = "stopped", "cancelled before it began"
        elif not job.cancelled:
            job.cancelled = True
            if self._told is job:
                assert self.process is not None
                self.process.send_signal(signal.SIGINT)
        self.changed()

    def _go_on(self) -> None:
        if self._going is None or self._going.done():
            self._going = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while (job := next((one for one in self.jobs if one.state == "waiting"), None)) is not None:
            await self._run(job)
            self.changed()

    async def _run(self, job: Job) -> None:
        job.state, job.began, job.work = "running", time.monotonic(), "opening the model"
        self.changed()
        process = await self._worker()
        if job.cancelled:
            job.state, job.sentence = "stopped", "cancelled before it began"
            return
        # A worker that is gone takes nothing and says nothing: what follows tells of it.
        with suppress(BrokenPipeError, ConnectionResetError):
            await self._talk(process, job)
        self._told = None
        if job.state == "running":
            code = await process.wait()
            self.process = None
            job.state = "failed"
            job.sentence = (
                f"the worker process died ({_death(code)}); another one takes the next job. What was measured"
                f" is kept: `{job.command}` goes on with it"
            )

    async def _talk(self, process: asyncio.subprocess.Process, job: Job) -> None:
        """Tell the worker of a job, and hear of it until it ends."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._told = job
        process.stdin.write(f"{job.told()}\n".encode())
        await process.stdin.drain()
        while job.state == "running" and (line := await process.stdout.readline()):
            self._heard(job, json.loads(line))

    async def _worker(self) -> asyncio.subprocess.Process:
        if self.process is None or self.process.returncode is not None:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "regraft.studio.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE,
                # Ctrl-C in the terminal is for the studio, which ends its worker itself.
                start_new_session=True,
            )
            assert self.process.stdout is not None
            await self.process.stdout.readline()  # it is ready, and hears of Ctrl-C
        return self.process

    def _heard(self, job: Job, told: dict[str, Any]) -> None:
        if told.get("state") in ENDED and told.get("number") == job.number:
            job.state, job.sentence = told["state"], told["sentence"]
        if "work" in told:
            if told["work"] != job.work:
                job.began, job.work = time.monotonic(), told["work"]
            job.done, job.total = told["done"], told["total"]
        if "pictures" in told:
            job.pictures = told["pictures"]
        self.changed()

    async def leave(self) -> None:
        """Stop everything: nobody looks any more, or the studio ends."""
        for job in self.jobs:
            job.cancelled = job.state not in ENDED
            if job.state == "waiting":
                job.state, job.sentence = "stopped", "given up when the last page was closed"
        process, self.process = self.process, None
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.wait(), PATIENCE)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._going is not None:
            await asyncio.wait([self._going], timeout=PATIENCE)


def _death(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
