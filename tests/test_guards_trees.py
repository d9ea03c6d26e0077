"""Decisions of a tree at the edges of chance, and where they start when the states say little, against scipy's optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from regraft.modules.byte_embedding import ByteConfig, ByteEmbedding
from regraft.modules.tree_head import tree_head
from regraft.modules.tree_start import from_means, from_states
from regraft.modules.trees import ABSENT, by_id, widened


def leaves_below(tree, code):
    children = [] if code < 0 else [child for child in tree.children_NB[code] if child != ABSENT]
    return [-1 - code] if code < 0 else [leaf for child in children for leaf in leaves_below(tree, child)]


@pytest.mark.parametrize("tree", [by_id(4), widened(by_id(9), 2)], ids=["binary", "wide"])
def test_a_round_is_a_step_with_the_bound_of_the_hessian(tree):
    """Böhning: half of (I - 11'/c) by the states' products, to which the ridge adds; the whole matrix written out."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(tree.leaves, 3, dtype=torch.float64, generator=draw)
    states = torch.randn(20, 3, dtype=torch.float64, generator=draw)
    head, start = (tree_head(tree, 3).double() for _ in range(2))
    from_means(start, rows)
    from_states(head, rows, states, states @ rows.T, rounds=1, ridge=0.5)
    codes = [code for code in tree.children_NB[0] if code != ABSENT]
    more = len(codes) - 1
    begun, found = (torch.cat([one.rows.weight, one.biases.weight], 1)[:more].detach().numpy() for one in (start, head))
    x = np.column_stack([states.numpy(), np.ones(20)])
    chances = (states @ rows.T).softmax(-1).numpy()
    wanted = np.column_stack([chances[:, leaves_below(tree, code)].sum(1) for code in codes[1:]])
    scores = np.column_stack([np.zeros(20), x @ begun.T])
    now = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))[:, 1:]
    slope = ((now - wanted).T @ x).ravel()
    bound = np.kron((np.eye(more) - 1 / len(codes)) / 2, x.T @ x + 0.5 * (x**2).mean() * np.eye(4))
    assert np.allclose(found.ravel(), begun.ravel() - np.linalg.solve(bound, slope), atol=1e-9)


@pytest.mark.parametrize("tree", [by_id(4), widened(by_id(9), 2)], ids=["binary", "wide"])
@pytest.mark.parametrize("ridge", [0.1, 3.0])
def test_a_decision_is_drawn_back_to_the_mean_rows(tree, ridge):
    """The root's: cross-entropy against the shares below its children, and a square of how far it moved from its start."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(tree.leaves, 3, dtype=torch.float64, generator=draw)
    states = torch.randn(20, 3, dtype=torch.float64, generator=draw)
    head, start = (tree_head(tree, 3).double() for _ in range(2))
    from_means(start, rows)
    from_states(head, rows, states, states @ rows.T, rounds=600, ridge=ridge)
    codes = [code for code in tree.children_NB[0] if code != ABSENT]
    more = len(codes) - 1
    begun, found = (torch.cat([one.rows.weight, one.biases.weight], 1)[:more].detach().numpy().ravel() for one in (start, head))
    x = np.column_stack([states.numpy(), np.ones(20)])
    chances = (states @ rows.T).softmax(-1).numpy()
    wanted = np.column_stack([chances[:, leaves_below(tree, code)].sum(1) for code in codes])
    strength = ridge * (x**2).mean()

    def cost(flat):
        scores = np.column_stack([np.zeros(20), x @ flat.reshape(more, 4).T])
        moved = (flat - begun).reshape(more, 4)
        back = (moved**2).sum() - (moved.sum(0) ** 2).sum() / len(codes)
        return -(wanted * (scores - logsumexp(scores, axis=1, keepdims=True))).sum() + strength * back / 4

    best = minimize(cost, begun, method="BFGS", options={"gtol": 1e-7})
    assert np.abs(best.x - begun).max() > 0.01
    assert np.allclose(found, best.x, atol=1e-4)


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
    found, values, visited = head.top(hidden[0], 11)
    assert found == each[0].argsort(descending=True).tolist()
    assert values == pytest.approx(each[0].sort(descending=True).values.tolist(), abs=1e-5)
    assert visited == len(head.children_NB)
    given = head.log_probability(hidden, drawn)
    assert torch.allclose(given, each.gather(1, drawn[:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize("readout", ["flatten", "pool"])
def test_places_and_queries_begin_small(readout):
    torch.manual_seed(0)
    made = ByteEmbedding(ByteConfig(readout=readout), 64, 10, 0)
    for parameter in [made.places, *([] if made.queries is None else [made.queries])]:
        assert 0.015 < float(parameter.detach().std()) < 0.025
        assert abs(float(parameter.detach().mean())) < 0.005
