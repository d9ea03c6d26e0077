"""What a sweep will run and hold, said before it does."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from regraft.cli.main import app, prepared
from regraft.core.memory import peak_bytes
from regraft.core.progress import telling
from regraft.sweeps import forecast as forecasting
from regraft.sweeps.forecast import PlannedError, bytes_beside, planning
from regraft.sweeps.metrics import loss
from regraft.sweeps.sweep import LOGITS_AT_ONCE, sweep
from regraft.sweeps.variants import Scale, Variant
from small import ids, opened


def variants(count=40):
    return [Variant([Scale(f"{n % 3}.mlp_out", 0.1 * n)]) for n in range(count)]


def test_a_sweep_says_what_it_runs_and_runs_that():
    model = opened("llama")
    recording = model.record([ids(9, 1), ids(7, 2)])
    told = []
    with telling(told.append):
        result = sweep(recording, variants(), loss())
    assert len(told) == 1
    work = result.work
    assert f"40 variants of 2 prompts of 9 positions: {work.planned + work.preparation:,} of" in told[0]
    assert f"{work.naive:,} positions through a block ({work.saved:.1f} times less" in told[0]


def test_a_plan_stops_before_anything_is_measured(monkeypatch):
    model = opened("llama")
    recording = model.record([ids(9, 1)])
    whole = sweep(recording, variants(), loss())
    monkeypatch.setattr("regraft.sweeps.sweep.Replay", None)
    with planning(), pytest.raises(PlannedError) as planned:
        sweep(recording, variants(), loss())
    assert planned.value.forecast.work.planned == whole.work.planned
    assert planned.value.forecast.work.naive == whole.work.naive


def test_what_does_not_fit_is_refused_by_how_much(monkeypatch):
    model = opened("llama")
    recording = model.record([ids(9, 1)])
    needed = bytes_beside(recording, 40, LOGITS_AT_ONCE)
    monkeypatch.setattr(forecasting, "free_now", lambda device: needed)
    sweep(recording, variants(), loss())
    monkeypatch.setattr(forecasting, "free_now", lambda device: needed - (3 << 20))
    with pytest.raises(ValueError, match=r"are free, 3\.00 MiB too few: give fewer or shorter prompts"):
        sweep(recording, variants(), loss())


def test_the_estimate_is_not_below_what_is_held(monkeypatch):
    """Against the allocator's own count, with the scores of this small vocabulary."""
    model = opened("llama")
    recording = model.record([ids(64, n) for n in range(8)])
    scores = 16 * 8 * 63 * model.vocabulary
    monkeypatch.setattr("regraft.sweeps.sweep.LOGITS_AT_ONCE", scores)
    sweep(recording, variants(4), loss())
    held = peak_bytes(lambda: sweep(recording, variants(64), loss()))
    estimate = bytes_beside(recording, 64, scores)
    assert held < estimate < 30 * held


def test_the_command_line_plans():
    words = ["--model", "specimen:gpt2", "--prompts", "14 + 43 =", "--tokens", "4", "--dry-run"]
    done = CliRunner().invoke(app, prepared(["knockout", *words]))
    assert done.exit_code == 0, done.output
    assert "knockout would sweep" in done.stdout
    assert "beside the model" in " ".join(done.stdout.split())
    assert "Nothing was measured" in done.stdout
    none = CliRunner().invoke(app, prepared(["completions", *words]))
    assert none.exit_code != 0
    assert "makes no sweep" in " ".join(none.stderr.split())
