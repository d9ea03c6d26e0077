"""Trajectories by hand: where completions part, how states are compared, and where synonyms overtake
antonyms."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from regraft.experiments.observe.trajectories import (
    BESIDE,
    DISTANCES,
    RELATIONS,
    _dataset,
    bands,
    compare,
    crossover,
    onset,
    pivot,
)


def test_two_completions_part_at_the_first_other_token():
    assert pivot([1, 2, 3], [1, 5, 3]) == (1, 1)
    assert pivot([4, 2], [1, 2]) == (0, 0)
    assert pivot([1, 2, 3], [1, 2]) == (2, 1)
    assert pivot([1, 2], [1, 2]) == (1, 1)


def test_states_are_compared_by_angle_distance_and_what_they_say():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])
    p, q = (torch.tensor(shares, dtype=torch.float64) for shares in ([0.5, 0.5, 0.0], [0.25, 0.5, 0.25]))
    cosine, distance, kl = compare(a, b, (p, q))
    assert cosine == pytest.approx(0.8)
    assert distance == pytest.approx(math.sqrt(18) / 3)
    assert kl == pytest.approx(0.5 * math.log(2))
    assert compare(a, a.clone(), None)[:2] == (1.0, 0.0)
    assert math.isnan(compare(a, b, None)[2])


def test_where_synonyms_stay_closer_than_antonyms():
    def crossed(*ahead):
        return crossover(np.array(ahead), np.zeros(len(ahead)))

    assert crossed(-1.0, -0.5, 1.5, 2.0) == pytest.approx(1.25)
    assert crossed(1.0, -1.0, 0.0, 4.0) == 2.0
    assert math.isnan(crossed(1.0, 2.0))
    assert math.isnan(crossed(-1.0, 2.0, -1.0))
    synonyms = np.array([[0.9, 0.8, 0.7], [0.9, 0.9, 0.9], [0.9, 0.7, 0.8]])
    limit = synonyms.mean(0) - 2 * synonyms.std(0, ddof=1)
    assert onset(synonyms, np.array([[1.0, limit[1] - 0.01, 0.0]] * 2)) == 1
    assert onset(synonyms, np.array([[1.0, limit[1] + 0.01, limit[2] - 0.1]] * 2)) == 2
    assert math.isnan(onset(synonyms, np.ones((2, 3))))
    means, low, high = bands(np.array([[0.0], [1.0], [2.0], [7.0]]), np.random.default_rng(0))
    assert means.shape == (2000, 1)
    assert float(means.mean()) == pytest.approx(2.5, abs=0.15)
    assert float(means.std()) == pytest.approx(np.std([0, 1, 2, 7]) / 2, rel=0.1)
    assert [float(low[0]), float(high[0])] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist())


def test_crossings_of_all_groups_and_of_resampled_ones():
    """At the pivot synonyms overtake between depths 1 and 2 in every group; over the completion they are
    always ahead."""
    draw = np.random.default_rng(0)
    values = {name: draw.random((len(RELATIONS), 2, 5, 4)) for name in DISTANCES}
    synonym, antonym = RELATIONS.index("synonym"), RELATIONS.index("antonym")
    values["cosine"][antonym] = 0.0
    values["cosine"][synonym, 0] = [[-0.5, -0.2 - 0.02 * g, 0.1 + 0.05 * g, 0.9] for g in range(5)]
    values["cosine"][synonym, 1] = 0.5
    groups = [SimpleNamespace(prompt=str(g), kind="immediate") for g in range(5)]
    beside = {name: draw.random((len(RELATIONS), 5, 4)) for name in BESIDE}
    data = _dataset(values, beside, draw.random((len(RELATIONS), 2, 4)), groups, 3)
    middle = crossover(values["cosine"][synonym, 0].mean(0), np.zeros(4))
    assert float(data.crossover[0]) == pytest.approx(middle) == pytest.approx(1 + 0.24 / 0.44)
    low, high = float(data.crossover_low[0]), float(data.crossover_high[0])
    assert 1 + 0.28 / 0.58 - 1e-9 <= low < middle < high <= 1 + 0.2 / 0.3 + 1e-9
    assert data.crossover_share.values.tolist() == [1.0, 0.0]
    assert np.isnan([float(data[name][1]) for name in ("crossover", "crossover_low", "crossover_high")]).all()
    for name in DISTANCES:
        assert data[f"{name}_mean"].values == pytest.approx(values[name].mean(2))
        assert (data[f"{name}_low"].values <= data[f"{name}_mean"].values + 1e-9).all()
        assert (data[f"{name}_high"].values >= data[f"{name}_mean"].values - 1e-9).all()
