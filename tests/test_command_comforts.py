"""What the shell offers beside the commands: the version, completion, bars that go on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import xarray as xr
from rich.console import Console
from rich.progress import Progress

from regraft.cli import console, progress_bar
from regraft.core.progress import advance


def test_the_version_is_told_without_loading_torch():
    code = (
        "import sys\nfrom regraft.cli.main import app\n"
        "try:\n    app(['--version'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'xarray'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"regraft {version('regraft')}\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "at", "wanted"),
    [("regraft kno", 1, ["knockout"]), ("regraft lens --prom", 2, ["--prompts", "--prompts-file"])],
)
def test_the_shell_completes_commands_and_options(words, at, wanted):
    asked = {"_REGRAFT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    command = [str(Path(sys.executable).parent / "regraft")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **asked}, check=False)
    assert done.stdout.split() == wanted, done.stderr


def test_a_bar_for_each_kind_of_step_goes_on(monkeypatch):
    """An inner sweep that begins anew does not take the outer bar back to its beginning."""
    bar = Progress(disable=True)
    monkeypatch.setattr(progress_bar, "progress_bar", lambda: bar)

    def work():
        for block in range(1, 4):
            for variant in (300, 1000):
                advance("variants", variant, 1000)
            advance("blocks", block, 4)
        advance("variants", 10, 500)
        return "made"

    assert progress_bar.with_bar(work) == "made"
    assert [(t.description.strip(), t.completed, t.total) for t in bar.tasks] == [
        ("variants", 10, 500),
        ("blocks", 3, 4),
    ]


def test_an_experiment_and_a_report_have_such_bars_and_training_has_one(monkeypatch, tmp_path):
    """What a step says of itself, as the loss, begins no bar anew."""
    made = []

    def bar():
        made.append(Progress(disable=True))
        return made[-1]

    monkeypatch.setattr(progress_bar, "progress_bar", bar)
    monkeypatch.setattr(console, "progress_bar", bar)

    def shown():
        return [(t.description.strip(), t.completed, t.total) for t in made[-1].tasks]

    def work(*words, **options):
        for block in range(1, 4):
            advance("variants", 1000, 1000)
            advance("variants", 10 * block, 1000)
            advance("blocks", block, 4)
        seen.append(shown())
        return xr.Dataset()

    seen = []
    monkeypatch.setattr(console, "run_experiment", work)
    monkeypatch.setattr(console, "print_result", lambda dataset: None)
    console.show_experiment(None, None, {}, None, 0, False)
    assert seen == [[("variants", 30, 1000), ("blocks", 3, 4)]]

    def report(model, out, chapter, **options):
        chapter("lens", 0, 2)
        work()
        chapter("swap", 1, 2)
        seen.append(shown())
        return out / "report.html", []

    monkeypatch.setattr(console, "report", report)
    assert console.make_report(None, tmp_path, {}) == 0
    assert seen[1:] == [[("lens", 0, 2), ("variants", 30, 1000), ("blocks", 3, 4)], [("swap", 1, 2)]]
    steps = progress_bar.StepBars(bar())
    for step in range(1, 4):
        steps.heard(f"steps: loss {step}", step, 9)
    assert shown() == [("steps: loss 3", 3, 9)]


@pytest.mark.parametrize(
    ("terminal", "plain", "shown"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_no_line_is_written_over_where_nobody_wants_that(terminal, plain, shown, monkeypatch):
    monkeypatch.setattr(
        progress_bar, "Console", lambda stderr: Console(file=io.StringIO(), force_terminal=terminal)
    )
    monkeypatch.delenv("NO_COLOR", raising=False)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    assert progress_bar.progress_bar().disable is not shown
