"""Shuffle recovery: methods do not see the true order, planted chains, searches against brute force, the
specimen."""

from __future__ import annotations

from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch

import naive
from regraft.core.registry import experiments
from regraft.data.evaluation import evaluation
from regraft.experiments.intervene.shuffle.order_loss import WITH_TEXT, Losses
from regraft.experiments.intervene.shuffle.order_weights import WITHOUT_TEXT, Blocks
from regraft.experiments.intervene.shuffle.seriation import (
    fiedler_order,
    nearest_neighbour,
    oriented,
    path_length,
    scores,
    shortest_path,
    two_opt,
)
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.sweeps.routes import Route
from regraft.sweeps.variants import Variant
from small import opened

RUN = partial(run_experiment, experiments()["shuffle"])
TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=4)


def line(n, seed=0):
    """Points on a line in a random order, and that order."""
    order = np.random.default_rng(seed).permutation(n)
    places = np.cumsum(1 + np.random.default_rng(1).random(n))[order]
    return np.abs(places[:, None] - places[None]), order


@pytest.mark.parametrize("find", [shortest_path, fiedler_order])
def test_points_on_a_line_are_found_in_order(find):
    distance, order = line(9)
    found = order[find(distance)].tolist()
    assert found in (list(range(9)), list(range(8, -1, -1)))


def test_the_path_is_the_shortest_of_all():
    rng = np.random.default_rng(3)
    for _ in range(5):
        points = rng.random((6, 2))
        distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
        best = min(path_length(list(p), distance) for p in permutations(range(6)))
        assert path_length(shortest_path(distance), distance) == pytest.approx(best)
        start = nearest_neighbour(distance, 0)
        assert path_length(two_opt(start, distance), distance) <= path_length(start, distance)


def test_orientation_and_scores():
    assert oriented([0, 1, 2], np.array([3.0, 2.0, 1.0])) == [2, 1, 0]
    assert oriented([0, 1, 2], np.array([1.0, 2.0, 3.0])) == [0, 1, 2]
    assert scores([0, 1, 2, 3]) == {"tau": pytest.approx(1.0), "in_place": 1.0, "displacement": 0.0}
    assert scores([3, 2, 1, 0])["tau"] == pytest.approx(-1.0)
    one_off = scores([1, 0, 2, 3])
    assert one_off["tau"] == pytest.approx(4 / 6)
    assert one_off["in_place"] == 0.5
    assert one_off["displacement"] == 0.5


@pytest.fixture(scope="module")
def model():
    return load("specimen:gpt2")


@pytest.mark.parametrize("method", WITHOUT_TEXT)
def test_methods_without_text_do_not_see_the_order_they_are_given(method):
    """Every permutation of the blocks leads to the same chain of true blocks."""
    big = load()
    chains = []
    for seed in (0, 1, 2):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
        found = WITHOUT_TEXT[method](Blocks(big, [big.blocks[i] for i in order], 0))
        assert sorted(found) == list(range(12))
        chains.append([order[i] for i in found])
    assert chains[0] == chains[1] == chains[2]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "t5", "gpt_neox"])
def test_losses_of_orders_against_full_forwards(name):
    model = opened(name)
    text = evaluation(model, TEXT["prompts"], 2, 4)
    stack = model.parts.stacks[-1]
    count = len(stack.blocks)
    losses = Losses(text, list(stack.blocks), (list(range(stack.first)), []))
    orders = [list(range(count)), list(range(count))[::-1], [1, 0, *range(2, count)]]
    measured = losses(orders)
    for order, value in zip(orders, measured, strict=True):
        route = Route.order([*range(stack.first), *(stack.blocks[i].index for i in order)])
        total, tokens = 0.0, 0
        for recording in text.recordings:
            logits = naive.logits(model, recording, Variant(route=route)).log_softmax(-1)
            rows, columns = recording.scored_BT.nonzero(as_tuple=True)
            total -= float(logits[rows, columns - 1, recording.ids_BT[rows, columns]].sum())
            tokens += len(rows)
        assert value == pytest.approx(total / tokens, abs=1e-5)
    runs = len(losses.results)
    losses(orders)
    assert len(losses.results) == runs, "an order is measured once"


class Planted(Losses):
    """A loss made by hand: the sum of displacements, with the exchange of the first two blocks for
    nothing."""

    def __init__(self, target):
        self.target, self.known = target, {}

    def __call__(self, orders):
        for order in orders:
            whole = order + [i for i in self.target if i not in order]
            self.known[tuple(order)] = float(sum(abs(whole.index(b) - p) for p, b in enumerate(self.target)))
        return np.array([self.known[tuple(o)] for o in orders])


@pytest.mark.parametrize("method", ["bubble", "remove_reinsert", "simulated_annealing", "greedy_perplexity"])
def test_searches_find_a_planted_order(method):
    target = [3, 1, 4, 0, 5, 2]
    found = WITH_TEXT[method](Planted(target), [5, 4, 3, 2, 1, 0], np.random.default_rng(0))
    assert found == target


def test_a_search_ends_where_no_move_helps(model):
    text = evaluation(model, None, 3, 6)
    losses = Losses(text, list(model.blocks), ([], []))
    found = WITH_TEXT["bubble"](losses, [3, 1, 0, 2], np.random.default_rng(0))
    value = float(losses([found])[0])
    pairs = [
        [found[j if k == i else i if k == j else k] for k in range(4)] for i in range(4) for j in range(i)
    ]
    assert (losses(pairs) >= value).all()


def test_candidates_share_the_prefix(model):
    """Two candidates behind one prefix of two blocks cost one call more than one candidate, not three."""
    text = evaluation(model, None, 2, 4)

    def executed(*orders):
        losses = Losses(text, list(model.blocks), ([], []))
        losses(orders)
        return sum(result.work.executed for result in losses.results)

    one_block, three, shared, apart = (
        executed([1]),
        executed([1, 0, 2]),
        executed([1, 0, 2], [1, 0, 1]),
        executed([1, 0, 2], [2, 0, 1]),
    )
    call = (three - one_block) // 2
    assert call > 0
    assert shared - three == call
    assert apart - three == 3 * call


@pytest.mark.slow
def test_the_specimen_is_put_in_order_again():
    data = RUN(load(), seed=42)
    assert data.method.values.tolist() == ["activation_flow", "bubble"]
    assert data.recovered.values[1].tolist() == [str(i) for i in range(12)]
    assert float(data.loss[1]) == pytest.approx(data.attrs["clean_loss"], abs=1e-4)
    assert data.attrs["shuffled_loss"] > 2 * data.attrs["clean_loss"]
    assert sorted(data.shuffled.values.tolist(), key=int) == [str(i) for i in range(12)]
    assert data.shuffled.values.tolist() != [str(i) for i in range(12)]


def test_all_sixteen_run_and_those_that_cannot_say_why(model):
    data = RUN(model, method="all", count=2, tokens=4)
    assert data.sizes["method"] == 16
    assert np.isfinite(data.loss).all()
    hybrid = RUN(opened("qwen3_5"), method="full_weights,norm_weights,activation_flow", **TEXT)
    assert "full_weights cannot be used: the blocks are not of one make" in hybrid.attrs["notes"]
    assert hybrid.method.values.tolist()[-1] == "activation_flow"
    with pytest.raises(ValueError, match="there is no method 'magic'"):
        RUN(model, method="magic")
    with pytest.raises(ValueError, match="does not write text"):
        RUN(opened("bert"), **TEXT)


def test_several_orders_and_several_lengths_of_text(model):
    """Each order and each text by itself gives what the curves hold."""
    given = dict(method="weight_stats,bubble", tokens=4)
    data = RUN(model, count=2, seeds=3, counts=[1, 2], seed=5, **given)
    assert data.draw.values.tolist() == [5, 6, 7]
    for place, seed in enumerate(data.draw.values.tolist()):
        alone = RUN(model, count=2, seed=seed, **given)
        assert data.tau_by_seed.values[:, place] == pytest.approx(alone.tau.values)
    for place, count in enumerate((1, 2)):
        alone = RUN(model, count=count, seed=5, **given)
        assert data.tau_by_text.values[:, place] == pytest.approx(alone.tau.values)
        assert int(data.text_tokens[place]) == alone.attrs["scored_tokens"]
    with pytest.raises(ValueError, match="an order is drawn at least once"):
        RUN(model, seeds=0)


def test_annealing_cools_in_a_line_and_near_goes_round(monkeypatch):
    """Half way the temperature is half of the first; neighbours are one or two places off, over the ends."""
    from regraft.experiments.intervene.shuffle import order_loss

    draw = np.random.default_rng(0)
    monkeypatch.setattr(order_loss, "NEAR", 1.0)
    apart = set()
    for _ in range(400):
        moved = order_loss._proposal(list(range(8)), draw)
        i, j = (place for place in range(8) if moved[place] != place)
        apart.add((j - i) % 8)
    assert apart == {1, 2, 6, 7}
    asked = []
    real = np.exp
    monkeypatch.setattr(order_loss.np, "exp", lambda x: asked.append(x) or real(x))

    def worse(orders):
        return np.array([0.0 if order == [0, 1, 2, 3] else 0.03 for order in orders])

    monkeypatch.setattr(order_loss, "PROPOSALS", 100)
    order_loss.simulated_annealing(worse, [0, 1, 2, 3], np.random.default_rng(1))
    assert asked[0] == pytest.approx(-0.03 / 0.3)
    assert min(asked) < -0.03 / (0.3 * 0.2), "it is cold at the end"
