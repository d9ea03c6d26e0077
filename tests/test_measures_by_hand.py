"""Measures of spectra and ranks by their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from regraft.experiments.observe.correlations import orders, spearman
from regraft.experiments.observe.spectrum_measures import measures, power_law


def test_measures_of_a_spectrum():
    s = np.array([4.0, 2.0, 1.0, 0.5, 0.0])
    found = measures(s)
    squared = s**2
    share = s / 7.5
    assert found["effective_rank"] == pytest.approx(squared.sum() ** 2 / (squared**2).sum())
    assert found["effective_rank_ratio"] == pytest.approx(found["effective_rank"] / 5)
    assert found["entropy_rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in share if p)))
    assert found["stable_rank"] == pytest.approx(squared.sum() / 16)
    assert (found["energy_1"], found["energy_8"]) == (pytest.approx(16 / squared.sum()), 1.0)
    assert found["condition"] == math.inf
    assert measures(s[:4])["condition"] == 8
    assert found["largest"] == 4
    assert (found["power_law"], found["power_law_fit"]) == power_law(s)
    assert all(math.isnan(value) for value in measures(np.zeros(3)).values())


def test_the_exponent_of_a_power_law_over_the_first_quarter():
    head = np.arange(1, 41) ** -1.5
    found, fit = power_law(np.concatenate([head[:10], np.full(30, 1e-9)]))
    assert found == pytest.approx(1.5)
    assert fit == pytest.approx(1.0)
    assert power_law(head[:8]) == pytest.approx((1.5, 1.0)), "at least four values"
    x, y = np.log([1, 2, 3, 4]), np.log([5.0, 3.0, 2.5, 1.0])
    line = scipy.stats.linregress(x, y)
    assert power_law(np.array([5.0, 3.0, 2.5, 1.0, 0.9])) == pytest.approx((-line.slope, line.rvalue**2))
    assert power_law(np.ones(8)) == pytest.approx((0.0, 1.0))
    assert all(map(math.isnan, power_law(np.array([2.0, 1.0, 0.0]))))
    assert not math.isnan(power_law(np.array([2.0, 1.0, 0.5]))[0])


def test_rank_correlations_by_all_permutations():
    one, other = np.array([1.0, 5, 2, 9, 3]), np.array([2.0, 7, 2, 8, 1])
    every = orders(5, np.random.default_rng(0))
    assert sorted(map(tuple, every.tolist())) == sorted(itertools.permutations(range(5)))
    rho, p = spearman(one, other, every)
    assert rho == pytest.approx(scipy.stats.spearmanr(one, other).statistic)
    as_far = [
        abs(scipy.stats.spearmanr(one, other[list(o)]).statistic) >= abs(rho) - 1e-9
        for o in itertools.permutations(range(5))
    ]
    assert p == pytest.approx(np.mean(as_far))
    assert spearman(one, -other, every)[0] == pytest.approx(-rho)
    assert all(map(math.isnan, spearman(one, np.ones(5), every)))
    some = orders(9, np.random.default_rng(0))
    assert some.shape == (20_000, 9)
    assert (np.sort(some, axis=1) == np.arange(9)).all()
    assert len(np.unique(some, axis=0)) > 15_000
    same = np.arange(9.0)
    rho, p = spearman(same, same, some[:99])
    assert rho == pytest.approx(1.0)
    assert p == pytest.approx((1 + (np.abs(some[:99] @ (same - 4)) >= 60 - 1e-9).sum()) / 100)
