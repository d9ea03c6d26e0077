"""Trees over a vocabulary and the head on them, against a naive walk: exact probabilities, draws, and best
tokens."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from regraft.model.load import load
from regraft.modules import tree_head as tree_head_module
from regraft.modules import tree_start
from regraft.modules.tree_head import tree_head
from regraft.modules.tree_start import from_means, from_states
from regraft.modules.trees import (
    ABSENT,
    by_id,
    by_merges,
    by_scores,
    from_lists,
    huffman,
    over,
    two_means,
    widened,
)

COUNT, WIDTH = 41, 12


def trees():
    rng = np.random.default_rng(0)
    found = {
        "by id": by_id(COUNT),
        "huffman": huffman(rng.pareto(1.0, COUNT) + 1e-3),
        "two means": two_means(rng.normal(size=(COUNT, WIDTH))),
        "shuffled": over(rng.permutation(COUNT)),
    }
    return {**found, "wide": widened(found["two means"], 2), "wide huffman": widened(found["huffman"], 3)}


def head(tree, neurons=0, sparse=False):
    torch.manual_seed(1)
    made = tree_head(tree, WIDTH, neurons, sparse).double()
    with torch.no_grad():
        made.rows.weight[:-1].normal_()
        made.biases.weight[:-1].normal_()
        if neurons:
            made.adapter.down.weight.normal_()
    return made


def naive(made, tree, hidden_D):
    """Log-probability of every token by walking down from the root, one node at a time, rows counted off in
    order."""
    found, starts, row = {}, {}, 0
    for node, children in enumerate(tree.children_NB):
        starts[node] = row
        row += sum(child != ABSENT for child in children) - 1
    adapted_D = made.adapter(hidden_D[None])[0].detach()

    def walk(code, value):
        if code < 0:
            found[-1 - code] = value
            return
        children = [int(child) for child in tree.children_NB[code] if child != ABSENT]
        rows = range(starts[code], starts[code] + len(children) - 1)
        scores = [
            0.0,
            *(float((made.rows.weight[n] @ adapted_D + made.biases.weight[n, 0]).detach()) for n in rows),
        ]
        whole = math.log(sum(math.exp(score) for score in scores))
        for child, score in zip(children, scores, strict=True):
            walk(child, value + score - whole)

    walk(0, 0.0)
    return torch.tensor([found[token] for token in range(tree.leaves)], dtype=torch.float64)


@pytest.mark.parametrize("name", trees())
@pytest.mark.parametrize("neurons", [0, 24])
def test_probabilities_equal_the_naive_walk_and_sum_to_one(name, neurons):
    tree = trees()[name]
    made, hidden = head(tree, neurons), torch.randn(5, WIDTH, dtype=torch.float64)
    wanted = torch.stack([naive(made, tree, row) for row in hidden])
    whole = made.log_probabilities(hidden)
    torch.testing.assert_close(whole, wanted)
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(5, dtype=torch.float64))
    ids = torch.tensor([0, 7, 40, 13, 7])
    torch.testing.assert_close(made.log_probability(hidden, ids), wanted[range(5), ids])


@pytest.mark.parametrize("name", trees())
def test_gradients_of_a_given_token_are_sparse_and_name_its_path_only(name):
    tree = trees()[name]
    made, hidden = head(tree, sparse=True), torch.randn(1, WIDTH, dtype=torch.float64)
    made.log_probability(hidden, torch.tensor([9])).sum().backward()
    sparse = made.rows.weight.grad.coalesce()
    path = [node for node in tree.paths[0][9].tolist() if node >= 0]
    starts = np.cumsum(tree.counts_N - 1) - (tree.counts_N - 1)
    wanted = {int(starts[node]) + k for node in path for k in range(tree.counts_N[node] - 1)}
    named = dict(zip(sparse.indices()[0].tolist(), sparse.values(), strict=True))
    assert float(named.pop(made.padding, torch.zeros(1)).abs().max()) == 0, "the padding row does not move"
    assert set(named) == wanted
    made.zero_grad()
    made.log_probabilities(hidden)[0, 9].backward()
    torch.testing.assert_close(made.rows.weight.grad, sparse.to_dense())


def test_multiply_adds_are_those_of_the_path():
    tree = widened(by_id(64), 3)
    assert tree.multiply_adds(WIDTH) == WIDTH * 2 * 7
    assert by_id(64).multiply_adds(WIDTH) == WIDTH * 6
    counts = np.array([50.0, 20, 10, 5, 5, 4, 3, 2, 1])
    assert huffman(counts).multiply_adds(1, counts) < by_id(9).multiply_adds(1, counts)
    assert tree_head(tree, WIDTH).rows.weight.shape[0] - 1 == 63, (
        "a tree has V - 1 rows whatever its branching"
    )


def test_a_wider_tree_keeps_the_leaves_of_every_branch():
    """Three decisions at once: the leaves below each child are those below the node that stood three levels
    down."""
    binary = by_id(32)
    wide = widened(binary, 3)
    assert wide.children_NB.shape[1] == 8
    assert [len(level) for level in wide.levels] == [1, 8]
    turns = binary.paths[1]
    for leaf in range(32):
        steps = turns[leaf, :5]
        assert wide.paths[1][leaf, :2].tolist() == [
            4 * steps[0] + 2 * steps[1] + steps[2],
            2 * steps[3] + steps[4],
        ]
    assert np.array_equal(widened(binary, 1).paths[1], binary.paths[1])
    with pytest.raises(ValueError, match="at least one"):
        widened(binary, 0)


@pytest.mark.parametrize("tensors", [True, False], ids=["tensors", "arrays"])
@pytest.mark.parametrize("name", trees())
def test_best_first_is_the_sorted_distribution(name, tensors, monkeypatch):
    if tensors:
        monkeypatch.setattr(tree_head_module, "ARRAYS", ())
    tree = trees()[name]
    made = head(tree)
    for row in torch.randn(20, WIDTH, dtype=torch.float64):
        wanted = naive(made, tree, row)
        tokens, values, visited = zip(*islice(made.best_first(row), 5), strict=True)
        assert list(tokens) == wanted.argsort(descending=True)[:5].tolist()
        assert values == pytest.approx(wanted.sort(descending=True).values[:5].tolist())
        assert visited[-1] <= COUNT - 1
    sharp = head(tree)
    with torch.no_grad():
        sharp.rows.weight.mul_(20)
    _, _, last = next(sharp.best_first(torch.randn(WIDTH, dtype=torch.float64)))
    assert last <= len(tree.levels) + 3, "a sure head is searched along one path"


@pytest.mark.parametrize("name", trees())
def test_the_best_are_searched_where_that_is_less_work_and_read_off_the_whole_rows_otherwise(
    name, monkeypatch
):
    """Rows that pass the limit share one whole distribution; a limit of any height gives the same tokens."""
    tree = trees()[name]
    made = head(tree)
    rows = torch.randn(
        3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ) * torch.tensor([[3.0], [1], [0.1]])
    alone = [list(islice(made.best_first(row), 3))[-1][2] for row in rows]
    assert len(set(alone)) > 1
    reads = []
    whole = made.log_probabilities
    monkeypatch.setattr(made, "log_probabilities", lambda hidden: reads.append(len(hidden)) or whole(hidden))
    for most in (0, min(alone), max(alone) - 1, max(alone)):
        monkeypatch.setattr(tree_head_module, "VISIT", COUNT / (3 * most + 1))
        reads.clear()
        found = made.top(rows, 3)
        passing = [visits > most for visits in alone]
        assert reads == ([sum(passing)] if any(passing) else [])
        for row, visits, passes, (tokens, values, visited) in zip(rows, alone, passing, found, strict=True):
            wanted = naive(made, tree, row).sort(descending=True)
            assert tokens == wanted.indices[:3].tolist()
            assert values == pytest.approx(wanted.values[:3].tolist())
            assert visited == (most + len(tree.children_NB) if passes else visits)


def test_draws_follow_the_distribution():
    tree = trees()["huffman"]
    made, hidden = head(tree), torch.randn(1, WIDTH, dtype=torch.float64)
    draws = made.sample(hidden.expand(40_000, -1), torch.Generator().manual_seed(0))
    share = torch.bincount(draws, minlength=COUNT) / 40_000
    wanted = made.log_probabilities(hidden)[0].exp().detach()
    assert float((share - wanted).abs().max()) < 4 * math.sqrt(0.25 / 40_000)


@pytest.mark.parametrize("name", ["huffman", "wide", "wide huffman"])
def test_few_rows_are_drawn_as_many_are(name):
    """Both descents take the same uniform numbers, so they choose the same tokens; the first row goes the
    widest way."""
    made = head(trees()[name], neurons=5).float()
    hidden, uniform = torch.randn(300, WIDTH), torch.rand(300, made.shape.depth)
    uniform[0] = 1 - 2**-24
    with torch.no_grad():
        many, few = made._descend(hidden, uniform), made._descend_few(hidden, uniform)
        assert (many == few).float().mean() > 0.99, "a number between two roundings may go either way"
        assert len(many.unique()) > 20
        assert not torch.equal(many, made._descend(hidden, uniform.flip(0)))
    one = made.sample(hidden[:1], torch.Generator().manual_seed(3))
    assert torch.equal(one, made.sample(hidden[:1], torch.Generator().manual_seed(3)))
    draws = torch.cat(
        [made.sample(hidden[:16], torch.Generator().manual_seed(seed)) for seed in range(500)]
    ).view(500, 16)
    share = torch.bincount(draws[:, 5], minlength=COUNT) / 500
    wanted = made.log_probabilities(hidden[5:6])[0].exp().detach()
    assert float((share - wanted).abs().max()) < 4 * math.sqrt(0.25 / 500)


def test_scores_put_tokens_together_that_the_model_tells_apart_little():
    """Rows differ most in a direction that no state has; the distance of the new rows is that of the
    scores."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(500, 4)) * [3.0, 1.0, 0.5, 0.0] + 2
    rows = rng.normal(size=(16, 4)) * 0.1
    rows[:, 0] += np.where(np.arange(16) % 2, 0.5, -0.5)
    rows[:, 3] += np.where(np.arange(16) < 8, 5.0, -5.0)
    found = by_scores(rows, states)
    scores = (states - states.mean(0)) @ rows.T
    for a, b in ((0, 1), (3, 9), (15, 2)):
        naive = np.sqrt(((scores[:, a] - scores[:, b]) ** 2).mean())
        assert np.linalg.norm(found[a] - found[b]) == pytest.approx(naive, rel=1e-4)
    sides = [{int(t) % 2 for t in np.flatnonzero(two_means(r).paths[1][:, 0])} for r in (found, rows)]
    assert [len(side) for side in sides] == [1, 2]


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
    assert over(order).children_NB.tolist() == [[1, 2], [-4, -2], [-1, -3]]
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


@pytest.mark.parametrize(
    ("children", "sentence"),
    [
        ([[-1, -1]], "does not hold every one"),
        ([[-1, 1], [-2, -2]], "does not hold every one"),
        ([[-1, -3], [-2, -4]], "is no node's child"),
        ([[1, -1], [-2]], "fewer than two children"),
        ([[-1, -2], [1, -3]], "cannot be reached"),
    ],
)
def test_broken_trees_are_refused(children, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_lists(children)
    with pytest.raises(ValueError, match="at least two leaves"):
        by_id(1)


def test_starting_weights_without_training():
    """Two leaves: the mean difference is the softmax itself. A vocabulary: states do better than means, means
    than nothing."""
    torch.manual_seed(0)
    rows = torch.randn(2, WIDTH, dtype=torch.float64)
    two = tree_head(by_id(2), WIDTH).double()
    from_means(two, rows)
    hidden = torch.randn(7, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(two.log_probabilities(hidden), (hidden @ rows.T).log_softmax(-1))
    rows = torch.randn(COUNT, WIDTH, dtype=torch.float64)
    states = torch.randn(600, WIDTH, dtype=torch.float64)
    logits, held = states @ rows.T, torch.randn(300, WIDTH, dtype=torch.float64)
    target = (held @ rows.T).softmax(-1)
    entropy = float(-(target * target.log()).sum(-1).mean())
    for levels in (1, 3):
        losses = []
        for start in (
            lambda h: None,
            lambda h: from_means(h, rows),
            lambda h: from_states(h, rows, states, logits),
        ):
            made = tree_head(widened(two_means(rows.numpy()), levels), WIDTH).double()
            start(made)
            losses.append(float(-(target * made.log_probabilities(held).detach()).sum(-1).mean()))
        nothing, means, regressed = losses
        assert entropy < regressed < means < nothing


@pytest.mark.parametrize("levels", [1, 3])
def test_no_round_of_the_regression_raises_the_loss(levels):
    """Against the objective by hand: the original's own probability of each child, and the ridge among all
    children alike."""
    torch.manual_seed(0)
    rows, states = (
        torch.randn(16, WIDTH, dtype=torch.float64),
        2 * torch.randn(200, WIDTH, dtype=torch.float64),
    )
    logits = states @ rows.T
    losses = []
    for rounds in (0, 1, 2, 5, 20, 60):
        made = tree_head(widened(two_means(rows.numpy()), levels), WIDTH).double()
        from_states(made, rows, states, logits, rounds, ridge=1e-6)
        losses.append(float(-(logits.softmax(-1) * made.log_probabilities(states).detach()).sum(-1).mean()))
    assert all(later < earlier for earlier, later in pairwise(losses)), losses


def test_states_that_would_take_too_much_memory_are_refused(monkeypatch):
    """The masses of all 4 leaves and of two levels of 2 nodes, exactly: 11 states of 8 bytes."""
    states, rows = torch.randn(11, WIDTH, dtype=torch.float64), torch.randn(4, WIDTH, dtype=torch.float64)
    made = tree_head(by_id(4), WIDTH).double()
    monkeypatch.setattr(tree_start, "MOST_BYTES", (4 + 2 * 2) * 11 * 8)
    from_states(made, rows, states, states @ rows.T)
    monkeypatch.setattr(tree_start, "MOST_BYTES", (4 + 2 * 2) * 11 * 8 - 1)
    with pytest.raises(ValueError, match="fitting 3 nodes to 11 states takes 0 GiB"):
        from_states(made, rows, states, states @ rows.T)
