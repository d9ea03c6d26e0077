"""Orders and grids by hand or by trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from regraft.experiments.intervene.ablate import _by_block, _chosen
from regraft.experiments.intervene.repeat import behaviour
from regraft.experiments.intervene.shuffle.order_loss import (
    Losses,
    _adjacent,
    _all_pairs,
    _climb,
    _moves,
    _proposal,
    _together,
    bubble,
    greedy_perplexity,
    remove_reinsert,
    simulated_annealing,
)
from regraft.experiments.intervene.shuffle.seriation import (
    euclidean,
    fiedler_order,
    nearest_neighbour,
    oriented,
    path_length,
    scores,
    shortest_path,
    two_opt,
)
from regraft.experiments.intervene.swap import cluster
from small import opened


def test_paths_by_trying_all():
    draw = np.random.default_rng(1)
    points = draw.random((6, 3))
    distance = euclidean(points)
    assert distance[1, 4] == pytest.approx(math.dist(points[1], points[4]))
    best = min(path_length(list(p), distance) for p in itertools.permutations(range(6)))
    found = shortest_path(distance)
    assert sorted(found) == list(range(6))
    assert path_length(found, distance) == pytest.approx(best)
    assert path_length([2, 0, 5], distance) == pytest.approx(distance[2, 0] + distance[0, 5])
    line = np.abs(np.subtract.outer([0.0, 5, 1, 3], [0.0, 5, 1, 3]))
    assert nearest_neighbour(line, 3) == [3, 1, 2, 0]
    assert nearest_neighbour(line, 0) == [0, 2, 3, 1]
    assert path_length(two_opt([0, 3, 2, 1], line), line) == 5


def test_two_opt_leaves_nothing_that_a_turn_would_better():
    draw = np.random.default_rng(2)
    for _ in range(5):
        distance = euclidean(draw.random((9, 2)))
        path = two_opt(draw.permutation(9).tolist(), distance)
        length = path_length(path, distance)
        for i in range(9):
            for j in range(i + 1, 9):
                assert (
                    path_length(path[:i] + path[i : j + 1][::-1] + path[j + 1 :], distance) >= length - 1e-9
                )


def test_the_second_eigenvector_puts_a_line_in_order():
    places = np.array([3.0, 0.0, 7.0, 1.2, 5.1, 2.2])
    distance = np.abs(np.subtract.outer(places, places))
    order = fiedler_order(distance)
    assert order in (np.argsort(places).tolist(), np.argsort(-places).tolist())
    near = np.exp(-((distance / np.median(distance[np.triu_indices(6, 1)])) ** 2) / 2) * (1 - np.eye(6))
    vector = np.linalg.eigh(np.diag(near.sum(1)) - near)[1][:, 1]
    assert order in (np.argsort(vector).tolist(), np.argsort(-vector).tolist())
    assert fiedler_order(np.zeros((3, 3))) == [0, 1, 2]


def test_orders_of_scattered_points_follow_the_width_of_the_kernel():
    """Points in a plane have no one order: another width gives another one for some of them."""
    others = 0
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(8, 2))
        distance = np.array([[math.dist(a, b) for b in points] for a in points])
        orders = []
        for times in (1, 1.5):
            wide = times * np.median([distance[i, j] for i in range(8) for j in range(i)]) ** 2
            near = [[math.exp(-(d**2) / (2 * wide)) if d else 0.0 for d in row] for row in distance]
            vector = np.linalg.eigh(np.diag(np.sum(near, 1)) - near)[1][:, 1]
            orders.append((np.argsort(vector).tolist(), np.argsort(-vector).tolist()))
        assert fiedler_order(distance) in orders[0]
        others += fiedler_order(distance) not in orders[1]
    assert others


def test_a_path_is_turned_to_where_the_weight_grows():
    weight = np.array([5.0, 1, 3])
    assert oriented([0, 2, 1], weight) == [1, 2, 0]
    assert oriented([1, 2, 0], weight) == [1, 2, 0]
    assert oriented([2, 0, 1], np.ones(3)) == [2, 0, 1]


def test_scores_of_recovered_orders():
    assert scores([0, 1, 2, 3]) == {"tau": 1.0, "in_place": 1.0, "displacement": 0.0}
    assert scores([3, 2, 1, 0]) == {"tau": -1.0, "in_place": 0.0, "displacement": 2.0}
    found = scores([1, 2, 0, 3])
    assert found["in_place"] == 0.25
    assert found["displacement"] == 1.0
    assert found["tau"] == pytest.approx((4 - 2) / 6)


class Inversions:
    """A loss that counts the pairs that stand the wrong way round, weighted; it remembers what it was asked
    for."""

    def __init__(self, count):
        self.weight = np.random.default_rng(0).random((count, count)) + 0.5
        self.asked = []

    def __call__(self, orders):
        self.asked += [tuple(order) for order in orders]
        return np.array(
            [
                sum(self.weight[a, b] for i, a in enumerate(o) for b in o[i + 1 :] if a > b) - 0.01 * len(o)
                for o in orders
            ]
        )


@pytest.mark.parametrize("method", [bubble, remove_reinsert, greedy_perplexity, simulated_annealing])
def test_orders_are_found_by_a_loss_that_has_one_lowest_place(method):
    losses = Inversions(6)
    start = [3, 5, 0, 4, 2, 1]
    assert method(losses, start, np.random.default_rng(0)) == list(range(6))
    assert all(len(set(order)) == len(order) for order in losses.asked)


def test_greedy_orders_take_the_lowest_loss_at_every_length():
    def losses(orders):
        return np.array([{1: [7, 3, 5], 2: [0, 9, 4]}.get(len(o), [1, 1, 1])[o[-1]] + 0.0 for o in orders])

    assert greedy_perplexity(losses, [2, 0, 1], None) == [1, 0, 2]


def test_moves_of_an_order():
    order = [4, 7, 9]
    assert _adjacent(order) == [([7, 4, 9], {0, 1}), ([4, 9, 7], {1, 2})]
    assert _all_pairs(order) == [([7, 4, 9], {0, 1}), ([9, 7, 4], {0, 2}), ([4, 9, 7], {1, 2})]
    moves = _moves(order)
    assert len(moves) == 6
    assert {tuple(made) for made, _ in moves} == {(7, 4, 9), (7, 9, 4), (9, 4, 7), (4, 9, 7)}
    for made, places in moves:
        assert places == set(range(min(places), max(places) + 1))
        assert all(made[p] == order[p] for p in range(3) if p not in places)
    four = [0, 1, 2, 3]
    helping = [([1, 0, 2, 3], {0, 1}), ([0, 2, 1, 3], {1, 2}), ([0, 1, 3, 2], {2, 3})]
    assert _together(four, helping) == [1, 0, 3, 2]
    assert _together(four, [([1, 2, 0, 3], {0, 1, 2})]) == [1, 2, 0, 3]


def test_a_climb_takes_the_better_of_one_move_and_all_together():
    value = {(0, 1, 2, 3): 5.0, (1, 0, 2, 3): 2.0, (0, 1, 3, 2): 3.0, (1, 0, 3, 2): 4.0}

    def losses(orders):
        return np.array([value.get(tuple(o), 9.0) for o in orders])

    assert _climb(losses, [0, 1, 2, 3], _adjacent, steps=1) == [1, 0, 2, 3]
    value[(1, 0, 3, 2)] = 1.0
    assert _climb(losses, [0, 1, 2, 3], _adjacent, steps=1) == [1, 0, 3, 2]
    value[(0, 1, 2, 3)] = 0.5
    assert _climb(losses, [0, 1, 2, 3], _adjacent) == [0, 1, 2, 3]


def test_proposals_exchange_two_places_three_in_four_of_them_near():
    draw, order = np.random.default_rng(0), list("abcdefgh")
    distances = []
    for _ in range(4000):
        made = _proposal(order, draw)
        i, j = [place for place in range(8) if made[place] != order[place]]
        assert (made[i], made[j]) == (order[j], order[i])
        distances.append(min(j - i, 8 - j + i))
    near = sum(d <= 2 for d in distances) / 4000
    assert near == pytest.approx(0.75 + 0.25 * 4 / 7, abs=0.03), "one or two places off, over the ends"
    assert set(distances) == {1, 2, 3, 4}


def test_losses_are_measured_once_and_what_is_no_number_is_infinite(monkeypatch):
    measured = []

    class Result:
        def __init__(self, variants):
            self.orders = [[stop.block for stop in v.route.stops] for v in variants]

        def mean(self, name):
            return torch.tensor([float("nan") if o[1] == 3 else float(o[1]) for o in self.orders])

    def swept(recordings, variants, metric):
        measured.extend(variants)
        return Result(variants)

    monkeypatch.setattr("regraft.experiments.intervene.shuffle.order_loss.sweep", swept)
    model = opened("llama")
    text = type("Text", (), {"recordings": []})
    losses = Losses(text, [model.blocks[i] for i in (3, 1, 2)], ([0], []))
    assert losses([[1, 0, 2], [0, 1, 2], [1, 0, 2]]).tolist() == [1.0, float("inf"), 1.0]
    assert losses([[1, 0, 2], [2, 0, 1]]).tolist() == [1.0, 2.0]
    assert losses.measured == len(measured) == 3
    assert [s.block for s in measured[2].route.stops] == [0, 2, 3, 1]


@pytest.mark.parametrize(
    ("updates", "back", "what"),
    [
        ([1.0, 0.04, 0.03], [1.0, 1.0], "idempotent"),
        ([1.0, 0.06, 0.03], [1.0, 0.04], "convergent"),
        ([1.0, 0.9, 0.8], [0.9, 0.39], "cyclic"),
        ([1.0, 0.9, 0.8], [0.9, 0.41], "drifting"),
        ([1.0, 0.2, 0.04], [0.5, 0.01], "convergent"),
        ([1.0, 1.5, 2.1], [2.0, 2.0], "explosive"),
        ([1.0, 1.5, 1.9], [2.0, 2.0], "drifting"),
        ([1.0, 3.0, 3.0], [0.1, 0.1], "cyclic"),
        ([1.0, np.inf, np.nan], [0.1, 0.1], "explosive"),
        ([1.0, 0.8, 0.49], [1.0, 0.9], "convergent"),
        ([1.0, 0.8, 0.51], [1.0, 0.9], "drifting"),
    ],
)
def test_what_repeating_does(updates, back, what):
    assert behaviour(np.array(updates), np.array(back)) == what


def test_clusters_by_cost():
    cost = np.array(
        [[0.0, 0.2, 3.0, 4.0], [0.2, 0.0, 5.0, 6.0], [3.0, 5.0, 0.0, -0.5], [4.0, 6.0, -0.5, 0.0]]
    )
    tree = cluster(cost)
    assert [sorted(row[:2].astype(int).tolist()) for row in tree] == [[2, 3], [0, 1], [4, 5]]
    assert tree[:, 2].tolist() == pytest.approx([0.0, 0.2, 4.5])
    cost[0, 3] = cost[3, 0] = np.nan
    assert cluster(cost)[2, 2] == pytest.approx((3 + 5 + 6 + 6) / 4)


def test_tables_of_neurons_and_the_blocks_that_are_named():
    found = _by_block(torch.arange(5.0), [2, 3])
    assert found[0, :2].tolist() == [0, 1]
    assert np.isnan(found[0, 2])
    assert found[1].tolist() == [2, 3, 4]
    model = opened("llama")
    assert [b.index for b in _chosen(model, "")] == [0]
    assert [b.index for b in _chosen(model, "0, 3")] == [0, 3]
    assert [b.index for b in _chosen(model, "all")] == [0, 1, 2, 3]
    for wrong in ("4", "x", "0,-1"):
        with pytest.raises(ValueError, match="no block"):
            _chosen(model, wrong)
