"""The process that runs experiments, one after the other: told what to run by lines of JSON, and telling how
far it is the same way.

Ctrl-C (SIGINT) stops the run at hand, whose folder keeps what was measured; the end of what it is told ends
the process. Run as `python -m regraft.studio.worker`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from regraft.core.progress import listening
from regraft.core.registry import REFUSALS, Experiment, experiments
from regraft.core.runs import open_run
from regraft.core.strict_json import json_text
from regraft.experiments.running import run_experiment
from regraft.jobs.experiment_job import run_kept
from regraft.model.load import load
from regraft.model.weights import open_weights
from regraft.studio.run_pictures import pictures_of, pictures_of_sweeps
from regraft.sweeps.kept_sweeps import keeping
from regraft.sweeps.so_far import NotMeasuredError, only_kept, watching

Say = Callable[..., None]
SHARE = 0.1
"""Of the time of a run, what drawing it while it grows may take at most."""
PAUSE = 0.2
"""Seconds between two words on how far a run is."""


class Grows:
    """Draws a run whenever a share of it was kept, as long as that takes a small part of its time."""

    def __init__(self, say: Say, out: Path, again: Callable[[], Any]):
        self.say, self.out, self.again = say, out, again
        self.began, self.spent = time.monotonic(), 0.0

    def __call__(self) -> None:
        """Draw what there is, unless that has taken its part of the time already."""
        now = time.monotonic()
        if self.spent > SHARE * (now - self.began):
            return
        self.say(pictures=self._drawn(), whole=False)
        self.spent += time.monotonic() - now

    def _drawn(self) -> list[list[str]]:
        """The experiment's own figure with gaps; the sweeps' bare numbers where those do not make it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # means of nothing: that is what is still to come
            try:
                with keeping(self.out), only_kept(), listening(lambda *words: None):
                    return pictures_of(self.again())
            except (NotMeasuredError, ValueError, ArithmeticError, LookupError):
                return pictures_of_sweeps(open_run(self.out))


class RunsOneByOne:
    """What a worker has opened, and how it runs what it is told to."""

    def __init__(self, say: Say):
        self.say = say
        self.opened: dict[str, Any] = {}
        self.heard = 0.0

    def run(self, told: dict[str, Any]) -> None:
        """Run one experiment, and say how it ended."""
        number, out = told["number"], Path(told["out"])
        try:
            self._run(experiments()[told["experiment"]], told, out)
        except KeyboardInterrupt as stopped:
            sentence = str(stopped) or "stopped before anything was kept"
            self.say(number=number, state="stopped", sentence=sentence)
        except REFUSALS as error:
            sentence = " ".join(str(error).split()) or type(error).__name__
            self.say(number=number, state="failed", sentence=sentence)
        else:
            self.say(number=number, state="done", sentence="")

    def _run(self, experiment: Experiment, told: dict[str, Any], out: Path) -> None:
        model = self._model(experiment.needs, told["model"])
        options, settings = told["options"], told["settings"]

        def again() -> Any:
            return run_experiment(experiment, model, told["seed"], **options)

        with listening(self._heard), watching(Grows(self.say, out, again)):
            run_kept(experiment, model, options, out, told["seed"], settings)

    def _model(self, needs: str, source: str) -> Any:
        """The model that a run is of: the last one is kept, since the next run is likely of it too."""
        key = f"{needs} {source}"
        if key not in self.opened:
            self.opened.clear()
            self.opened[key] = load(source) if needs == "model" else open_weights(source)
        return self.opened[key]

    def _heard(self, work: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.heard >= PAUSE or done >= total:
            self.heard = now
            self.say(work=work.partition(": ")[0], done=done, total=total)


def serve(told: TextIO, answers: TextIO) -> None:
    """Run what lines tell until they end."""

    def say(**words: Any) -> None:
        answers.write(json_text(words) + "\n")
        answers.flush()

    worker = RunsOneByOne(say)
    say(state="ready")
    while True:
        try:
            line = told.readline()
            if not line:
                return
            worker.run(json.loads(line))
        except KeyboardInterrupt:
            continue  # it came between two runs: there is nothing to stop


def main() -> None:
    """The process: what libraries print goes to the errors, so that answers stay lines of JSON."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
