"""Grafts by hand: trees, sums below their nodes, byte embeddings, what generation reads, groups of tokens,
places, folders."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from regraft.core.memory import peak_bytes
from regraft.export.profile import only_these
from regraft.model.block_call import without_cache
from regraft.modules.logits_view import LogitsView, needed
from regraft.modules.placement import all_placed, forward_inputs, placed, streams, tied, trunk_blocks, written
from regraft.modules.tree_head import check_tree, tables, tree_head, turn_of
from regraft.modules.tree_start import below, from_means, from_states
from regraft.modules.trees import (
    ABSENT,
    by_id,
    by_scores,
    from_lists,
    huffman,
    over,
    split_by,
    two_means,
    widened,
)
from small import opened


def leaves_below(tree, code):
    return (
        [-1 - code]
        if code < 0
        else [x for child in tree.children_NB[code] if child != ABSENT for x in leaves_below(tree, child)]
    )


def depths(tree):
    return (tree.paths[0] >= 0).sum(1)


@pytest.mark.parametrize("count", [2, 3, 7, 8, 13])
def test_balanced_trees_keep_the_order_and_halve_it(count):
    order = np.random.default_rng(count).permutation(count)
    tree = over(order)
    assert leaves_below(tree, 0) == order.tolist()
    for node in range(len(tree.children_NB)):
        left, right = (leaves_below(tree, child) for child in tree.children_NB[node])
        assert len(right) - len(left) in (0, 1)
    assert tree.leaves == count
    nodes, turns = tree.paths
    for leaf in range(count):
        code = 0
        for node, turn in zip(nodes[leaf], turns[leaf], strict=True):
            if node >= 0:
                assert node == code
                code = int(tree.children_NB[code, turn])
        assert code == -1 - leaf
    assert tree.multiply_adds(10) == pytest.approx(10 * depths(tree).mean())
    assert leaves_below(split_by(order, np.sort), 0) == sorted(order.tolist())


def test_huffman_is_the_cheapest_tree():
    counts = np.array([7.0, 1, 1, 3, 2])

    def cheapest(items):
        if len(items) == 1:
            return 0.0
        return min(
            sum(items) + cheapest(left) + cheapest(right)
            for size in range(1, len(items) // 2 + 1)
            for chosen in itertools.combinations(range(len(items)), size)
            for left, right in [
                ([items[i] for i in chosen], [items[i] for i in range(len(items)) if i not in chosen])
            ]
        )

    tree = huffman(counts)
    assert float(counts @ depths(tree)) == cheapest(counts.tolist())
    assert tree.multiply_adds(3, counts) == pytest.approx(3 * float(counts @ depths(tree)) / counts.sum())
    for few in (np.ones(1), np.ones(0)):
        with pytest.raises(ValueError, match="two leaves"):
            huffman(few)
    with pytest.raises(ValueError, match="two leaves"):
        by_id(1)
    assert huffman(np.ones(2)).leaves == by_id(2).leaves == 2


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_wider_trees_have_the_same_leaves_in_the_same_order(levels):
    for tree in (by_id(11), huffman(np.array([9.0, 1, 5, 2, 7, 3, 3]))):
        wide = widened(tree, levels)
        assert leaves_below(wide, 0) == leaves_below(tree, 0)
        assert (wide.counts_N <= 2**levels).all()
        assert (wide.counts_N - 1).sum() == wide.leaves - 1
        assert depths(wide).tolist() == [-(-d // levels) for d in depths(tree)]
        assert wide.multiply_adds(1) == pytest.approx(
            np.mean([sum(wide.counts_N[n] - 1 for n in path if n >= 0) for path in wide.paths[0]])
        )
    with pytest.raises(ValueError, match="at least one"):
        widened(by_id(4), 0)


@pytest.mark.parametrize(
    "children",
    [
        [[-1, -1]],
        [[-1, -3]],
        [[1, -1], [-2, -3], [-4, -5]],
        [[1, -1], [-2]],
        [[-1, -2], [1, -3]],
        [[1, 1], [-1, -2]],
        [[0, -1]],
    ],
)
def test_what_is_no_tree_is_refused(children):
    with pytest.raises(ValueError, match=r"tree"):
        from_lists(children)


def test_clusters_are_parted_first():
    rows = np.concatenate([np.full((4, 3), 5.0), np.full((4, 3), -5.0)]) + 0.1 * np.random.default_rng(
        0
    ).normal(size=(8, 3))
    order = np.random.default_rng(1).permutation(8)
    tree = two_means(rows[order])
    sides = [{int(order[leaf]) < 4 for leaf in leaves_below(tree, child)} for child in tree.children_NB[0]]
    assert sorted(map(list, sides)) == [[False], [True]]
    states = np.random.default_rng(2).normal(size=(400, 3)) * [2.0, 1.0, 0.0] + 1
    found = by_scores(rows, states)
    scores = (states - states.mean(0)) @ rows.T
    for a, b in ((0, 5), (1, 2)):
        assert np.linalg.norm(found[a] - found[b]) == pytest.approx(
            np.sqrt(((scores[:, a] - scores[:, b]) ** 2).mean()), rel=1e-3
        )


def head_on(tree, width=5):
    head = tree_head(tree, width).double()
    torch.manual_seed(0)
    with torch.no_grad():
        head.rows.weight[:-1].normal_()
        head.biases.weight[:-1].normal_()
    return head


@pytest.mark.parametrize(
    "tree", [by_id(9), widened(huffman(np.arange(1.0, 10.0)), 2)], ids=["binary", "wide"]
)
def test_sums_below_every_child_and_starting_means(tree):
    head = head_on(tree)
    values = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sums = {}
    for nodes, found in below(head, values, together=3):
        assert len(nodes) <= 3
        sums |= zip(nodes.tolist(), found, strict=True)
    assert len(sums) == len(tree.children_NB)
    for node, row in enumerate(tree.children_NB):
        for child, code in enumerate(row):
            wanted = (
                values[leaves_below(tree, code)].sum(0)
                if code != ABSENT
                else torch.zeros(5, dtype=torch.float64)
            )
            torch.testing.assert_close(sums[node][child], wanted)
    from_means(head, values)
    row = 0
    for node in range(len(tree.children_NB)):
        codes = [code for code in tree.children_NB[node] if code != ABSENT]
        first = leaves_below(tree, codes[0])
        for code in codes[1:]:
            own = leaves_below(tree, code)
            torch.testing.assert_close(
                head.rows.weight[row].detach(), values[own].mean(0) - values[first].mean(0)
            )
            assert float(head.biases.weight[row, 0].detach()) == pytest.approx(
                math.log(len(own) / len(first))
            )
            row += 1
    assert row == 8
    assert not head.rows.weight[8].any()


def test_starting_from_states_reaches_the_optimum():
    """With many rounds and no ridge, each decision is the logistic regression; against plain gradient
    descent."""
    torch.manual_seed(0)
    rows, states = torch.randn(4, 3, dtype=torch.float64), torch.randn(60, 3, dtype=torch.float64)
    logits = states @ rows.T
    head = head_on(by_id(4), 3)
    from_states(head, rows, states, logits, rounds=100, ridge=1e-9)
    found = -(logits.softmax(-1) * head.log_probabilities(states).detach()).sum(-1).mean()
    other = head_on(by_id(4), 3)
    optimiser = torch.optim.LBFGS(other.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -(logits.softmax(-1) * other.log_probabilities(states)).sum(-1).mean()
        value.backward()
        return value

    other.rows.sparse = other.biases.sparse = False
    optimiser.step(loss)
    assert float(found) == pytest.approx(float(loss().detach()), rel=1e-5)
    with pytest.raises(ValueError, match="GiB"):
        from_states(head, rows, torch.empty(2**31, 0), logits)


def test_tables_of_a_tree_belong_to_it():
    tree = widened(by_id(7), 2)
    head = tree_head(tree, 4)
    check_tree(head)
    assert tables(tree)["first_N"].tolist() == (np.cumsum(tree.counts_N - 1) - (tree.counts_N - 1)).tolist()
    for name in ("nodes_VL", "turns_VL", "first_N"):
        other = tree_head(tree, 4)
        other.get_buffer(name)[0] += 1
        with pytest.raises(ValueError, match=name):
            check_tree(other)


def test_a_uniform_number_chooses_a_child():
    shares = np.exp([0.0, 1.0, -2.0])
    shares /= shares.sum()
    ends = shares.cumsum()
    for number in np.linspace(0, 0.9999, 41):
        assert turn_of([1.0, -2.0], float(number)) == int(np.searchsorted(ends, number, side="right"))
    assert turn_of([0.0], 0.5) == 1
    assert turn_of([0.0], 0.49) == 0
    assert turn_of([1000.0, -1000.0], 0.5) == 1
    assert turn_of([-1000.0], 1.0) == 1


def generation(**settings):
    return GenerationConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (dict(do_sample=False), ("top", 1)),
        (dict(do_sample=False, num_beams=3), ("top", 6)),
        (dict(do_sample=False, num_beams=3, eos_token_id=4), ("top", 6)),
        (dict(do_sample=False, num_beams=3, eos_token_id=[4, 5]), ("top", 9)),
        (dict(do_sample=True, top_k=7), ("top", 7)),
        (dict(do_sample=True, top_k=7, num_beams=2), ("full", 0)),
        (dict(do_sample=True, top_k=0), ("draw", 1)),
        (dict(do_sample=True, top_k=0, temperature=1.0, top_p=1.0), ("draw", 1)),
        (dict(do_sample=True, top_k=0, temperature=0.5), ("full", 0)),
        (dict(do_sample=True, top_k=0, top_p=0.5), ("full", 0)),
        (dict(do_sample=False, repetition_penalty=1.2), ("full", 0)),
        (dict(do_sample=False, min_length=3), ("full", 0)),
    ],
)
def test_how_much_of_a_row_generation_reads(settings, wanted):
    assert needed(generation(**settings)) == wanted


def test_scores_of_the_best_and_the_rest():
    view = LogitsView(head_on(by_id(9)))
    hidden = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = view(hidden)
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    view.mode, view.count = "top", 3
    found = view(hidden)
    best = whole.topk(3).indices
    torch.testing.assert_close(found.gather(-1, best), whole.gather(-1, best))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    others = found.scatter(-1, best, -torch.inf)
    assert bool((others.max(-1).values <= found.gather(-1, best).min(-1).values + 1e-9).all())
    assert len(set(others[0, 0].exp().round(decimals=9).tolist()) - {0.0}) == 1
    view.count = 99
    torch.testing.assert_close(view(hidden), whole)
    view.mode = "draw"
    drawn = view(hidden)
    assert (drawn == 0).sum(-1).tolist() == [[1] * 3] * 2
    assert bool(((drawn == 0) | drawn.isneginf()).all())
    view.mode, view.count = "full", 1
    with view.asked(generation(do_sample=True, top_k=4)):
        assert (view.mode, view.count) == ("top", 4)
    with view.asked(generation(do_sample=True, top_k=4), every=True):
        assert view.mode == "full"
    assert (view.mode, view.count) == ("full", 1)


def test_grafts_stand_in_their_places_only_inside():
    model = opened("llama")
    embedding, head = model.parts.embedding, model.parts.head
    new, other = nn.Embedding(96, 32), nn.Linear(32, 96)
    with all_placed(model.hf, [(embedding, new), (head, other)]):
        assert model.hf.model.embed_tokens is new
        assert model.hf.lm_head is other
    assert model.hf.model.embed_tokens is embedding
    assert model.hf.lm_head is head
    with pytest.raises(RuntimeError), placed(model.hf, embedding, new):
        raise RuntimeError
    assert model.hf.model.embed_tokens is embedding
    same = nn.Embedding(96, 32)
    same.weight = embedding.weight
    assert tied(same, embedding)
    assert not tied(new, embedding)
    assert not tied(head, embedding)
    ids = torch.arange(5, 12)[None]
    with streams(model, [0, 2, 4]) as seen:
        model.hf(ids, **without_cache(model.hf))
    recording = model.record(ids)
    assert list(seen) == [0, 2, 4]
    for depth in (0, 2):
        torch.testing.assert_close(seen[depth].detach(), recording.pre(depth))
    torch.testing.assert_close(seen[4].detach(), recording.post(3))
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=f"depth {wrong}"), streams(model, [wrong]):
            pass
    two = opened("t5")
    assert {name: value.tolist() for name, value in forward_inputs(two, ids).items()} == {
        "input_ids": [[5, 6, 7]], "decoder_input_ids": [[8, 9, 10, 11]],
    }  # fmt: skip
    assert written(two, ids).tolist() == [[8, 9, 10, 11]]
    assert written(model, ids) is ids
    assert [len(trunk_blocks(m)) for m in (model, two)] == [4, 6]


def test_only_some_parameters_take_gradients_inside():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    extra = nn.Parameter(torch.zeros(1), requires_grad=False)
    model[1].bias.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with only_these(model, [model[0].bias, extra]):
        assert [p.requires_grad for p in model.parameters()] == [False, True, False, False]
        assert extra.requires_grad
    assert [p.requires_grad for p in model.parameters()] == before == [True, True, True, False]
    assert not extra.requires_grad
    held = []
    assert peak_bytes(lambda: held.append(torch.empty(100_000))) == pytest.approx(400_000, abs=4096)
