"""Decisions of a tree at the edges of chance, and where they start when the states say little, against
scipy's optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from regraft.modules import tree_start
from regraft.modules.byte_embedding import ByteConfig, ByteEmbedding
from regraft.modules.tree_head import tree_head
from regraft.modules.tree_start import from_means, from_states
from regraft.modules.trees import ABSENT, by_id, widened


def leaves_below(tree, code):
    children = [] if code < 0 else [child for child in tree.children_NB[code] if child != ABSENT]
    return [-1 - code] if code < 0 else [leaf for child in children for leaf in leaves_below(tree, child)]


@pytest.mark.parametrize("tree", [by_id(4), widened(by_id(9), 2)], ids=["binary", "wide"])
def test_rounds_are_those_of_a_plain_walk_down_each_nodes_cost(tree):
    """Conjugate gradients written out, node by node: along the way of Böhning's bound as if all states
    reached the node alike, as far as the lower one of two ends. Sharp heads make every branch happen."""
    seen = set()
    settings = [(0, 1.0, 0.5), (0, 12.0, 1e-3), (2, 12.0, 1e-3), (2, 30.0, 1e-3), (3, 30.0, 0.1)]
    for seed, sharp, ridge in settings:
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randn(tree.leaves, 3, dtype=torch.float64, generator=draw) * sharp
        states = torch.randn(20, 3, dtype=torch.float64, generator=draw)
        head, start = (tree_head(tree, 3).double() for _ in range(2))
        from_means(start, rows)
        from_states(head, rows, states, states @ rows.T, rounds=8, ridge=ridge)
        for node in range(len(tree.children_NB)):
            begun, found = (vectors_of(one, node) for one in (start, head))
            decision = Decision(tree, node, states.numpy(), rows.numpy(), begun, ridge)
            wanted = walked(decision, begun, 8, seen)
            assert np.abs(found - wanted).max() <= 1e-9 * (1 + np.abs(wanted).max()), (seed, node)
    assert seen >= {"far", "near", "kept", "not kept", "turned"}, seen


CLEAR = 1e-6
"""A branch counts as taken where no rounding could have decided it."""


def walked(decision, begun, rounds, seen):
    """The vectors of one node after so many rounds; `seen` collects which branches were taken."""
    x, more = decision.x, len(begun)
    middle = np.eye(more) - 1 / (more + 1)
    ridge = np.kron(middle / 2, decision.strength * np.eye(4))
    alike = np.kron(middle / 2, decision.reach.sum() * x.T @ x / len(x)) + ridge
    at, way, before, fall = begun.ravel(), np.zeros(begun.size), np.zeros(begun.size), 1.0
    for number in range(rounds):
        chances = decision.chances(at)
        wrong = (chances * decision.reach[:, None] - decision.wanted)[:, 1:]
        slope = (wrong.T @ x).ravel() + ridge @ (at - begun.ravel())
        step = np.linalg.solve(alike, slope)
        kept = (slope - before) @ step / fall if number else 0.0
        seen.update({"kept"} if kept > CLEAR else {"not kept"} if kept < -CLEAR else ())
        way, before, fall = max(kept, 0.0) * way - step, slope, slope @ step
        rise = slope @ way
        seen.update({"turned"} if rise > CLEAR * np.linalg.norm(slope) * np.linalg.norm(way) else ())
        if rise >= 0:
            way = -step
        moved = x @ way.reshape(more, 4).T
        spread = [np.diag(p[1:]) - np.outer(p[1:], p[1:]) for p in chances]
        here = sum(r * u @ s @ u for r, u, s in zip(decision.reach, moved, spread, strict=True))
        most = sum(r * u @ middle @ u / 2 for r, u in zip(decision.reach, moved, strict=True))
        near, far = (at - slope @ way / max(curve + way @ ridge @ way, 1e-30) * way for curve in (most, here))
        nearer = decision.cost(far) - decision.cost(near)
        seen.update({"near"} if nearer > CLEAR else {"far"} if nearer < -CLEAR else ())
        at = far if nearer < 0 else near
    return at.reshape(begun.shape)


class Decision:
    """One node's objective by numpy: cross-entropy against the shares below its children, and a square of how
    far it moved."""

    def __init__(self, tree, node, states, rows, begun, ridge):
        codes = [code for code in tree.children_NB[node] if code != ABSENT]
        self.x = np.column_stack([states, np.ones(len(states))])
        chances = np.exp(states @ rows.T - logsumexp(states @ rows.T, axis=1, keepdims=True))
        self.wanted = np.column_stack([chances[:, leaves_below(tree, code)].sum(1) for code in codes])
        self.reach, self.begun = self.wanted.sum(1), begun
        self.strength = ridge * (self.x**2).mean()

    def scores(self, vectors):
        return np.column_stack([np.zeros(len(self.x)), self.x @ vectors.reshape(self.begun.shape).T])

    def chances(self, vectors):
        scores = self.scores(vectors)
        return np.exp(scores - logsumexp(scores, axis=1, keepdims=True))

    def cost(self, vectors):
        scores = self.scores(vectors)
        moved = vectors.reshape(self.begun.shape) - self.begun
        back = (moved**2).sum() - (moved.sum(0) ** 2).sum() / self.wanted.shape[1]
        return (
            -(self.wanted * (scores - logsumexp(scores, axis=1, keepdims=True))).sum()
            + self.strength * back / 4
        )


def vectors_of(head, node):
    """A node's vectors and biases (K, E)."""
    rows = head.node_rows(torch.tensor(node))
    rows = rows[rows != head.padding]
    return torch.cat([head.rows.weight[rows], head.biases.weight[rows]], 1).detach().numpy()


@pytest.mark.parametrize("tree", [by_id(4), widened(by_id(9), 2)], ids=["binary", "wide"])
@pytest.mark.parametrize("ridge", [0.1, 3.0])
def test_a_decision_is_drawn_back_to_the_mean_rows(tree, ridge):
    """Every node's best vectors by another solver."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(tree.leaves, 3, dtype=torch.float64, generator=draw)
    states = torch.randn(20, 3, dtype=torch.float64, generator=draw)
    head, start = (tree_head(tree, 3).double() for _ in range(2))
    from_means(start, rows)
    from_states(head, rows, states, states @ rows.T, rounds=200, ridge=ridge)
    for node in range(len(tree.children_NB)):
        begun, found = (vectors_of(one, node) for one in (start, head))
        decision = Decision(tree, node, states.numpy(), rows.numpy(), begun, ridge)
        best = minimize(decision.cost, begun.ravel(), method="BFGS", options={"gtol": 1e-7})
        assert node or np.abs(best.x - begun.ravel()).max() > 0.01
        assert np.allclose(found.ravel(), best.x, atol=1e-4), node


@pytest.mark.parametrize("together", [1, 3, 1000])
def test_how_many_nodes_are_fitted_together_changes_nothing(together, monkeypatch):
    """Each node has its own lengths and its own conjugate ways: `together` nodes of three children and 20
    states at once."""
    draw = torch.Generator().manual_seed(0)
    tree = widened(by_id(27), 2)
    rows, states = (torch.randn(n, 3, dtype=torch.float64, generator=draw) for n in (27, 20))
    found = []
    for numbers in (tree_start.TOGETHER, together * 20 * tree.children_NB.shape[1]):
        monkeypatch.setattr(tree_start, "TOGETHER", numbers)
        head = tree_head(tree, 3).double()
        from_states(head, rows, states, states @ rows.T)
        found.append(head.rows.weight.detach())
    torch.testing.assert_close(*found)


def test_a_child_without_a_chance_is_never_drawn():
    head = tree_head(by_id(4), 2)
    for bias, leaf, numbers in ((1000.0, 3, (0.0, 0.5, 0.999)), (-1000.0, 0, (0.0, 0.5, 0.999))):
        with torch.no_grad():
            head.biases.weight[:3] = bias
        for number in numbers:
            uniform = torch.full((2, head.shape.depth), number)
            assert head._descend(torch.ones(2, 2), uniform).tolist() == [leaf] * 2
            assert head._descend_few(torch.ones(2, 2), uniform).tolist() == [leaf] * 2


def test_draws_of_many_rows_and_of_few_are_the_same():
    draw = torch.Generator().manual_seed(3)
    head = tree_head(widened(by_id(11), 2), 5)
    with torch.no_grad():
        head.rows.weight[:-1] = torch.randn(head.rows.weight[:-1].shape, generator=draw)
        head.biases.weight[:-1] = torch.randn(head.biases.weight[:-1].shape, generator=draw)
    hidden, uniform = torch.randn(40, 5, generator=draw), torch.rand(40, head.shape.depth, generator=draw)
    drawn = head._descend(hidden, uniform)
    assert drawn.tolist() == head._descend_few(hidden, uniform).tolist()
    assert len(set(drawn.tolist())) > 5
    each = head.log_probabilities(hidden).detach()
    assert torch.allclose(each.exp().sum(1), torch.ones(40), atol=1e-5)
    found, values, visited = zip(*head.best_first(hidden[0]), strict=True)
    assert list(found) == each[0].argsort(descending=True).tolist()
    assert values == pytest.approx(each[0].sort(descending=True).values.tolist(), abs=1e-5)
    assert visited[-1] == len(head.children_NB)
    given = head.log_probability(hidden, drawn)
    assert torch.allclose(given, each.gather(1, drawn[:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize("readout", ["flatten", "pool"])
def test_places_and_queries_begin_small(readout):
    torch.manual_seed(0)
    made = ByteEmbedding(ByteConfig(readout=readout), 64, 10, 0)
    for parameter in [made.places, *([] if made.queries is None else [made.queries])]:
        assert 0.015 < float(parameter.detach().std()) < 0.025
        assert abs(float(parameter.detach().mean())) < 0.005
