"""Trees over a vocabulary and the head on them, against a naive walk: exact probabilities, draws, and best tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from regraft.graft.tree_head import TreeHead, from_means, from_states
from regraft.graft.trees import Tree, by_id, by_merges, huffman, over, two_means
from regraft.model.load import load

COUNT, WIDTH = 41, 12


def trees():
    rng = np.random.default_rng(0)
    return {
        "by id": by_id(COUNT),
        "huffman": huffman(rng.pareto(1.0, COUNT) + 1e-3),
        "two means": two_means(rng.normal(size=(COUNT, WIDTH))),
        "shuffled": over(rng.permutation(COUNT)),
    }


def head(tree):
    torch.manual_seed(1)
    made = TreeHead(tree, WIDTH).double()
    torch.nn.init.normal_(made.weight)
    torch.nn.init.normal_(made.bias)
    return made


def naive(made, tree, hidden_D):
    """Log-probability of every token by walking down from the root, one node at a time."""
    found = {}

    def walk(code, value):
        if code < 0:
            found[-1 - code] = value
            return
        score = float((made.weight[code] @ hidden_D + made.bias[code]).detach())
        for side, sign in ((0, -1), (1, 1)):
            walk(int(tree.children_N2[code, side]), value - math.log1p(math.exp(-sign * score)))

    walk(0, 0.0)
    return torch.tensor([found[token] for token in range(tree.leaves)], dtype=torch.float64)


@pytest.mark.parametrize("name", trees())
def test_probabilities_equal_the_naive_walk_and_sum_to_one(name):
    tree = trees()[name]
    made, hidden = head(tree), torch.randn(5, WIDTH, dtype=torch.float64)
    wanted = torch.stack([naive(made, tree, row) for row in hidden])
    whole = made.log_probabilities(hidden)
    torch.testing.assert_close(whole, wanted)
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(5, dtype=torch.float64))
    ids = torch.tensor([0, 7, 40, 13, 7])
    torch.testing.assert_close(made.log_probability(hidden, ids), wanted[range(5), ids])


@pytest.mark.parametrize("name", trees())
def test_gradients_of_a_given_token_touch_its_path_only(name):
    tree = trees()[name]
    made, hidden = head(tree), torch.randn(1, WIDTH, dtype=torch.float64)
    made.log_probability(hidden, torch.tensor([9])).sum().backward()
    touched = set(made.weight.grad.abs().sum(1).nonzero()[:, 0].tolist())
    assert touched == {node for node in tree.paths[0][9].tolist() if node >= 0}
    grad = made.weight.grad.clone()
    made.zero_grad()
    made.log_probabilities(hidden)[0, 9].backward()
    torch.testing.assert_close(made.weight.grad, grad)


@pytest.mark.parametrize("name", trees())
def test_best_first_is_the_sorted_distribution(name):
    tree = trees()[name]
    made = head(tree)
    for row in torch.randn(20, WIDTH, dtype=torch.float64):
        wanted = naive(made, tree, row)
        tokens, values, visited = made.top(row, 5)
        assert tokens == wanted.argsort(descending=True)[:5].tolist()
        assert values == pytest.approx(wanted.sort(descending=True).values[:5].tolist())
        assert visited <= COUNT - 1
    sharp = head(tree)
    with torch.no_grad():
        sharp.weight.mul_(20)
    _, _, visited = sharp.top(torch.randn(WIDTH, dtype=torch.float64), 1)
    assert visited <= len(tree.levels) + 3, "a sure head is searched along one path"


def test_draws_follow_the_distribution():
    tree = trees()["huffman"]
    made, hidden = head(tree), torch.randn(1, WIDTH, dtype=torch.float64)
    draws = made.sample(hidden.expand(40_000, -1), torch.Generator().manual_seed(0))
    share = torch.bincount(draws, minlength=COUNT) / 40_000
    wanted = made.log_probabilities(hidden)[0].exp().detach()
    assert float((share - wanted).abs().max()) < 4 * math.sqrt(0.25 / 40_000)


def test_shapes_of_the_trees():
    found = trees()
    for name in ("by id", "two means", "shuffled"):
        assert len(found[name].levels) == math.ceil(math.log2(COUNT)), name
    assert len(by_id(248_320).levels) == 18
    counts = np.array([50.0, 20, 10, 5, 5, 4, 3, 2, 1])
    coded = huffman(counts)
    depth = (coded.paths[0] >= 0).sum(1)
    assert depth[0] == 1
    balanced = (by_id(9).paths[0] >= 0).sum(1)
    assert float(counts @ depth) < float(counts @ balanced)
    order = [3, 1, 0, 2]
    assert over(order).children_N2.tolist() == [[1, 2], [-4, -2], [-1, -3]]
    clustered = np.repeat(np.eye(WIDTH)[:2], 8, axis=0)[np.random.default_rng(0).permutation(16)]
    root = two_means(clustered)
    right = {int(token) for token in range(16) if root.paths[1][token, 0] == 1}
    assert len({tuple(clustered[token]) for token in right}) == 1, "the first decision parts the two clusters"


def test_merges_put_relatives_together():
    model = load("specimen:gpt2")
    tree = by_merges(model.tokenizer, model.table_rows)
    assert tree.leaves == model.table_rows
    pieces = [model.tokenizer.convert_tokens_to_ids(token) for token in ("Ġthe", "Ġthey", "Ġthem")]
    shared = [np.array_equal(tree.paths[0][pieces[0], :6], tree.paths[0][piece, :6]) for piece in pieces]
    assert all(shared)
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match="has no merges"):
        by_merges(Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), 2)


@pytest.mark.parametrize("children", [[[-1, -1]], [[-1, 1], [-2, -2]], [[-1, -2], [-3, -4]]])
def test_broken_trees_are_refused(children):
    with pytest.raises(ValueError, match=r"does not hold every one|is no node's child"):
        Tree(np.array(children))
    with pytest.raises(ValueError, match="at least two leaves"):
        by_id(1)


def test_starting_weights_without_training():
    """Two leaves: the mean difference is the softmax itself. A vocabulary: states do better than means, means than nothing."""
    torch.manual_seed(0)
    rows = torch.randn(2, WIDTH, dtype=torch.float64)
    two = TreeHead(by_id(2), WIDTH).double()
    from_means(two, rows)
    hidden = torch.randn(7, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(two.log_probabilities(hidden), (hidden @ rows.T).log_softmax(-1))
    rows = torch.randn(COUNT, WIDTH, dtype=torch.float64)
    states = torch.randn(600, WIDTH, dtype=torch.float64)
    logits, held = states @ rows.T, torch.randn(300, WIDTH, dtype=torch.float64)
    target = (held @ rows.T).softmax(-1)
    losses = []
    for start in (lambda h: None, lambda h: from_means(h, rows), lambda h: from_states(h, states, logits)):
        made = TreeHead(two_means(rows.numpy()), WIDTH).double()
        start(made)
        losses.append(float(-(target * made.log_probabilities(held).detach()).sum(-1).mean()))
    entropy = float(-(target * target.log()).sum(-1).mean())
    nothing, means, regressed = losses
    assert regressed < means < nothing
    assert entropy < regressed
