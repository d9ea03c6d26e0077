"""What a run that is under way tells: its own result with gaps, measured nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

import regraft
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.sweeps import sweep as sweeping
from regraft.sweeps.so_far import NotMeasuredError, only_kept, watching

FEW = {"prompts": ["The capital of France is"], "tokens": 2}


@pytest.fixture(scope="module")
def model():
    return regraft.load("specimen:gpt2")


def noised(model):
    return run_experiment(experiments()["noise"], model, **FEW)


def test_what_is_told_so_far_is_the_end_with_gaps_and_measures_nothing(model, tmp_path, monkeypatch):
    told, sweeps, kept = [], [], sweeping._Sweep.run

    def counted(one):
        sweeps.append(len(one.variants))
        return kept(one)

    monkeypatch.setattr(sweeping._Sweep, "run", counted)
    monkeypatch.setattr("regraft.sweeps.shares.variants_at_once", lambda recording: 5)

    def heard():
        before = len(sweeps)
        with regraft.keeping(tmp_path), only_kept():
            told.append(noised(model))
        assert len(sweeps) == before

    with regraft.keeping(tmp_path), watching(heard):
        end = noised(model)
    gaps = [int(np.isnan(one.increase.values).sum()) for one in told]
    assert len(told) > 2
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > gaps[-1] == int(np.isnan(end.increase.values).sum())
    for one in told:
        there = ~np.isnan(one.increase.values)
        assert (one.increase.values[there] == end.increase.values[there]).all()


def test_a_sweep_of_which_nothing_is_kept_is_told_so(model, tmp_path):
    with regraft.keeping(tmp_path / "none"), only_kept(), pytest.raises(NotMeasuredError, match="yet"):
        noised(model)
    with only_kept(), pytest.raises(NotMeasuredError, match="not kept"):
        noised(model)
    clean = model.record("It is dark")
    read = {"read": "1.resid_post"}
    with regraft.keeping(tmp_path / "r"), only_kept(), pytest.raises(NotMeasuredError, match="not kept"):
        regraft.sweep(clean, regraft.Zero("1.mlp_out"), regraft.loss(), **read)


def test_another_run_s_sweep_is_not_taken_for_this_one_nor_written_over(model, tmp_path):
    with regraft.keeping(tmp_path):
        noised(model)
    other = {**FEW, "prompts": ["It is dark"]}
    with regraft.keeping(tmp_path), only_kept(), pytest.raises(NotMeasuredError):
        run_experiment(experiments()["noise"], model, **other)
    with regraft.keeping(tmp_path), only_kept():
        assert not np.isnan(noised(model).increase.values).all()
