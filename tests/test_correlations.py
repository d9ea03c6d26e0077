"""Rank correlations against scipy and against planted relations; the correction by its definition."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from regraft.core.registry import experiments
from regraft.experiments.observe.correlations import (
    POSITION,
    SOURCES,
    correlated,
    orders,
    quantities,
    spearman,
)
from regraft.experiments.running import measured, run_experiment
from regraft.model.load import load
from small import opened


def result(name, **variables):
    return xr.Dataset(variables, coords={"block": [str(i) for i in range(8)]}, attrs={"experiment": name})


def marked(values, dims=("block",), label="it"):
    return xr.DataArray(np.asarray(values, dtype=float), dims=dims, attrs={"correlate": label})


def test_against_scipy_with_ties():
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 5, 12).astype(float), generator.integers(0, 5, 12).astype(float)
    rho, p = spearman(one, other, orders(12, generator))
    wanted = spearmanr(one, other)
    assert rho == pytest.approx(wanted.statistic)
    assert p == pytest.approx(wanted.pvalue, abs=0.03)


def test_exact_p_values_of_few_blocks():
    every = orders(5, np.random.default_rng(0))
    assert len(every) == 120
    rho, p = spearman(np.arange(5.0), np.arange(5.0), every)
    assert rho == pytest.approx(1.0)
    assert p == pytest.approx(2 / 120), "the order itself and its reverse"
    assert np.isnan(spearman(np.arange(5.0), np.ones(5), every)).all()


def test_noise_is_not_significant_and_a_planted_pair_is():
    """60 quantities of pure noise: the correction leaves none; uncorrected, dozens would pass."""
    generator = np.random.default_rng(1)
    values = generator.normal(size=(60, 12))
    values[1] = np.exp(values[0])
    found = correlated(
        xr.DataArray(values, {"quantity": [f"q{i}" for i in range(60)], "block": range(12)}), seed=0
    )
    upper = np.triu_indices(60, 1)
    assert (found.p.values[upper] < 0.05).sum() > 40
    assert found.p_corrected.values[0, 1] < 0.1
    assert found.rho.values[0, 1] == pytest.approx(1.0)
    others = [(i, j) for i, j in zip(*upper, strict=True) if (i, j) != (0, 1)]
    assert sum(found.p_corrected.values[i, j] < 0.05 for i, j in others) <= 2


def test_the_correction_is_the_published_one():
    generator = np.random.default_rng(2)
    values = generator.normal(size=(5, 9))
    found = correlated(xr.DataArray(values, {"quantity": list("abcde"), "block": range(9)}), seed=0)
    upper = np.triu_indices(5, 1)
    p = found.p.values[upper]
    ranked = np.sort(p)
    by_hand = [min(ranked[j] * len(p) / (j + 1) for j in range(list(ranked).index(x), len(p))) for x in p]
    assert np.allclose(found.p_corrected.values[upper], np.minimum(by_hand, 1))
    assert np.allclose(found.rho, found.rho.values.T)
    assert np.isnan(np.diag(found.p)).all()


def test_marked_variables_are_joined_by_block():
    rows = marked(np.arange(8), label="one")
    parted = xr.DataArray(
        np.stack([np.arange(8.0), -np.arange(8.0)]),
        {"part": ["a", "b"]},
        ("part", "block"),
        attrs={"correlate": "two"},
    )
    unmarked = xr.DataArray(np.ones(8), dims="block")
    found = quantities([result("x", v=rows, w=parted, u=unmarked)], [str(i) for i in range(8)])
    assert list(found["quantity"].values) == ["position in the model", "x: one", "x: two, a", "x: two, b"]
    shorter = result("y", v=rows).isel(block=slice(2, 8))
    joined = quantities([shorter], [str(i) for i in range(8)])
    assert np.isnan(joined.sel(quantity="y: one").values[:2]).all()
    assert correlated(joined, 0).blocks.values[0, 1] == 6
    elsewhere = result("z", v=rows).assign_coords(block=[f"other.{i}" for i in range(8)])
    assert quantities([shorter, elsewhere], [str(i) for i in range(8)]).attrs["dropped"] == ["z: one"]
    with pytest.raises(ValueError, match="too few to correlate"):
        quantities([result("x", u=unmarked)], [str(i) for i in range(8)])


def test_results_are_measured_once_until_a_weight_changes(monkeypatch):
    model = opened("gpt2")
    runs = []

    def counted(experiment, *args, **kwargs):
        runs.append(experiment.name)
        return run_experiment(experiment, *args, **kwargs)

    monkeypatch.setattr("regraft.experiments.running.run_experiment", counted)
    first = measured(model, "spectra", 0)
    assert measured(model, "spectra", 0) is first
    assert runs == ["spectra"]
    model.blocks[0].module.mlp.c_fc.weight.data.mul_(2)
    model.blocks[0].module.mlp.c_fc.weight.detach().mul_(1)
    measured(model, "spectra", 0)
    assert runs == ["spectra", "spectra"]


def test_on_the_specimen():
    model = load("specimen:gpt2")
    data = run_experiment(
        experiments()["correlations"], model, of=["spectra", "knockout", "swap", "geometry"]
    )
    names = list(data["quantity"].values)
    assert "knockout: loss" in names
    assert "swap: mean cost" in names
    assert "spectra: rank ratio, q" in names
    assert data.attrs["pairs"] == len(names) * (len(names) - 1) // 2
    i, j = names.index("knockout: loss"), names.index("swap: mean cost")
    assert data.rho.values[i, j] == pytest.approx(
        spearmanr(data.value.values[i], data.value.values[j]).statistic
    )


def test_what_cannot_run_is_left_out_with_its_reason():
    model = opened("bert_headless")
    data = run_experiment(experiments()["correlations"], model, of=["spectra", "knockout"])
    assert "knockout is left out" in data.attrs["notes"]
    with pytest.raises(ValueError, match="no experiment 'nothing'"):
        run_experiment(experiments()["correlations"], model, of=["nothing"])


def test_a_fault_of_ours_is_not_left_out(monkeypatch):
    """What does not apply to a model is noted; arithmetic on what does not fit is not the model's doing."""

    def broken(*args, **options):
        return np.stack([])

    monkeypatch.setattr("regraft.experiments.observe.correlations.measured", broken)
    with pytest.raises(ValueError, match="need at least one array to stack"):
        run_experiment(experiments()["correlations"], opened("gpt2"), of=["spectra", "knockout"])


def test_every_experiment_that_marks_a_quantity_is_read():
    """Noise, repeat, replacement and bottleneck among them; what marks nothing is not."""
    model = load("specimen:gpt2")
    slow = {"linearity", "quantize"}
    given = {"of": [name for name in SOURCES if name not in slow], "count": 2}
    data = run_experiment(experiments()["correlations"], model, **given)
    read = {str(name).partition(":")[0] for name in data["quantity"].values} - {POSITION}
    assert read == {*SOURCES} - slow
    others = ("contributions", "trajectories", "neurons")
    for name in others:
        found = measured(model, name, 0, **({"count": 2} if name != "contributions" else {}))
        assert not any("correlate" in variable.attrs for variable in found.data_vars.values())
