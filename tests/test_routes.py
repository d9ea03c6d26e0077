"""Repetition and noise: the clean run inside them, the naive reference, planted behaviours."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch

import naive
from regraft.core.registry import experiments
from regraft.data.evaluation import evaluation
from regraft.experiments.intervene.repeat import _updates, behaviour
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.sweeps.routes import Route
from regraft.sweeps.variants import Noise, Variant
from small import opened

NAMES = ("repeat", "noise", "knockout", "swap", "prune", "reorder", "transplant")
REPEAT, NOISE, KNOCKOUT, SWAP, PRUNE, REORDER, TRANSPLANT = (
    partial(run_experiment, experiments()[name]) for name in NAMES
)
FOUR = ("llama", "gpt2", "gemma2", "t5", "gpt_neox", "olmo2")
TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=4)


def naive_loss(model, text, variant):
    """Mean cross-entropy over all scored tokens by full forwards with hooks."""
    losses = []
    for recording in text.recordings:
        logits = naive.logits(model, recording, variant).log_softmax(-1)
        rows, columns = recording.scored_BT.nonzero(as_tuple=True)
        losses.append(-logits[rows, columns - 1, recording.ids_BT[rows, columns]])
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("name", FOUR)
def test_repetition_against_full_forwards(name):
    model = opened(name)
    text = evaluation(model, TEXT["prompts"], 2, 4)
    data = REPEAT(model, times=3, **TEXT)
    assert np.allclose(data.loss[:, 0], data.attrs["clean_loss"], atol=1e-6), "once is the clean run"
    for block in (0, len(model.blocks) - 1):
        wanted = naive_loss(model, text, Variant(route=Route.repeat(len(model.blocks), block, 3)))
        assert float(data.loss[block, 2]) == pytest.approx(wanted, abs=1e-5)


def test_updates_of_repetitions_by_hand():
    model = opened("llama")
    data = REPEAT(model, times=3, prompts=["5 6 7 8"], tokens=3)
    (recording,) = evaluation(model, ["5 6 7 8"], 1, 3).recordings
    x = recording.pre(2)
    with torch.no_grad():
        y = recording.run_block(2, x, 1)
        z = recording.run_block(2, y, 1)
    assert float(data.update_length[2, 1]) == pytest.approx(
        float(((z - y).norm(dim=-1) / x.norm(dim=-1)).mean()), rel=1e-5
    )


@pytest.mark.parametrize("times", [2, 4])
def test_updates_one_and_two_repetitions_apart_position_by_position(times):
    """Prompts of two lengths: every real position counts once, and none that only fills up."""
    model = opened("llama")
    text = evaluation(model, TEXT["prompts"], 2, 4)
    found = _updates(model, text, times)
    for block in range(4):
        apart = {1: [[] for _ in range(times)], 2: [[] for _ in range(times - 1)]}
        for recording in text.recordings:
            steps = [recording.pre(block)]
            for _ in range(times):
                with torch.no_grad():
                    steps.append(recording.run_block(block, steps[-1], 1))
            for row, length in enumerate(recording.lengths_B.tolist()):
                for t in range(length):
                    size = float(steps[0][row, t].norm())
                    for far, rows in apart.items():
                        for n, values in enumerate(rows):
                            values.append(float((steps[n + far][row, t] - steps[n][row, t]).norm()) / size)
        for far, rows in apart.items():
            assert np.allclose(found[far - 1][block], [np.mean(values) for values in rows], rtol=1e-4)


def test_behaviours_of_planted_blocks():
    """What each kind of block does, from its own updates: a projection, a contraction, a reflection, a
    growth, a drift."""

    def follow(step, times=6):
        xs = [torch.randn(4, 3, generator=torch.Generator().manual_seed(0))]
        for _ in range(times):
            xs.append(step(xs[-1]))
        size = [float((b - a).norm()) for a, b in itertools.pairwise(xs)]
        back = [float((b - a).norm()) for a, b in zip(xs, xs[2:], strict=False)]
        return behaviour(np.array(size), np.array(back))

    flat = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    assert follow(lambda x: x @ flat) == "idempotent"
    assert follow(lambda x: 0.6 * x) == "convergent"
    assert follow(lambda x: -x) == "cyclic"
    assert follow(lambda x: 1.5 * x) == "explosive"
    assert follow(lambda x: x + 1) == "drifting"
    assert behaviour(np.array([1.0, np.inf]), np.array([1.0])) == "explosive"


@pytest.mark.parametrize("name", FOUR)
def test_noise_against_full_forwards(name):
    model = opened(name)
    text = evaluation(model, TEXT["prompts"], 2, 4)
    data = NOISE(model, levels=[0.0, 0.2], **TEXT)
    assert np.allclose(data.loss[:, 0], data.attrs["clean_loss"], atol=1e-6), "noise 0 is the clean run"
    for block in (0, len(model.blocks) - 1):
        address = model.blocks[block].address
        losses, weights = [], []
        for recording in text.recordings:
            before = recording.pre(block)
            drawn = Noise("", 0.2, data.attrs["seed"]).operand(before, lambda v: v)
            planted = Variant([naive_add(address, drawn)])
            logits = naive.logits(model, recording, planted).log_softmax(-1)
            rows, columns = recording.scored_BT.nonzero(as_tuple=True)
            losses.append(-logits[rows, columns - 1, recording.ids_BT[rows, columns]].sum())
            weights.append(len(rows))
        assert float(data.loss[block, 1]) == pytest.approx(float(sum(losses) / sum(weights)), abs=1e-5)


def naive_add(address, value):
    from regraft.sweeps.variants import Add

    return Add(f"{address}.resid_pre", value)


def test_the_denoising_ratio_of_known_blocks():
    """A block that adds nothing passes noise on as it is; one that takes its input away removes it."""
    model = opened("llama")
    with torch.no_grad():
        model.blocks[1].module.mlp.down_proj.weight.zero_()
        model.blocks[1].module.self_attn.o_proj.weight.zero_()
    data = NOISE(model, levels=[0.1, 0.5], **TEXT)
    assert np.allclose(data.ratio[1], 1.0, atol=1e-4)
    handle = model.blocks[2].module.register_forward_hook(lambda m, a, out: out * 0)
    try:
        damped = NOISE(model, levels=[0.1], **TEXT)
    finally:
        handle.remove()
    assert np.allclose(damped.ratio[2], 0.0)


def test_noise_is_of_the_level_asked_for():
    model = load("specimen:gpt2")
    (recording, *_) = evaluation(model, None, 4, 6).recordings
    before = recording.pre(2)
    drawn = Noise("", 0.3, 0).operand(before, lambda v: v)
    relative = drawn.norm(dim=-1) / before.norm(dim=-1)
    assert float(relative.mean()) == pytest.approx(0.3, rel=0.03)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="1 repetitions are too few"):
        REPEAT(opened("llama"), times=1, **TEXT)
    with pytest.raises(ValueError, match="is no standard deviation"):
        NOISE(opened("llama"), levels=[-0.1], **TEXT)
    with pytest.raises(ValueError, match="does not write text from left to right"):
        REPEAT(opened("bert"), **TEXT)


@pytest.mark.parametrize("name", FOUR)
def test_knockouts_swaps_and_orders_against_full_forwards(name):
    """Single losses, synergy by its definition, exchanged pairs, and what prune and reorder measure."""
    model = opened(name)
    text = evaluation(model, TEXT["prompts"], 2, 4)
    count, first = len(model.blocks), model.parts.stacks[-1].first

    def by_hand(route):
        return naive_loss(model, text, Variant(route=route))

    clean = naive_loss(model, text, Variant())
    alone = [by_hand(Route.skip(count, {i})) - clean for i in range(count)]
    pairs = KNOCKOUT(model, mode="pairs", **TEXT)
    assert np.allclose(np.diag(pairs.increase), alone, atol=1e-5)
    for i, j in ((0, 1), (first, first + 1), (first, count - 1)):
        wanted = by_hand(Route.skip(count, {i, j})) - clean - (alone[i] + alone[j])
        assert float(pairs.synergy[i, j]) == pytest.approx(wanted, abs=2e-5)
    cost = SWAP(model, **TEXT).cost
    for i, j in ((first, first + 1), (first, count - 1)):
        assert float(cost[i, j]) == pytest.approx(by_hand(Route.swap(count, i, j)) - clean, abs=1e-5)
    assert float(PRUNE(model, drop=[1], **TEXT).loss[1]) == pytest.approx(
        by_hand(Route.skip(count, {first + 1})), abs=1e-5
    )
    exchanged = REORDER(model, **TEXT).loss[1]
    assert float(exchanged) == pytest.approx(by_hand(Route.swap(count, first + 1, first + 2)), abs=1e-5)


@pytest.mark.parametrize("name", FOUR)
def test_transplants_against_full_forwards_of_a_model_changed_by_hand(name, tmp_path):
    """The donor's block copied into the live model gives the loss of the cell, on the completions of the
    model as it was."""
    model, donor, changed = opened(name), opened(name, seed=7), opened(name)
    donor.hf.save_pretrained(tmp_path / "donor")
    text = evaluation(model, TEXT["prompts"], 2, 4)
    data = TRANSPLANT(model, donor=str(tmp_path / "donor"), **TEXT)
    place, given = changed.parts.stacks[-1].blocks[1], donor.parts.stacks[-1].blocks[2]
    place.module.load_state_dict(given.module.state_dict(), strict=False)
    losses = []
    for batch in text.recordings.batches:
        recording = changed.record(*batch)
        logits = naive.logits(changed, recording, Variant()).log_softmax(-1)
        rows, columns = recording.scored_BT.nonzero(as_tuple=True)
        losses.append(-logits[rows, columns - 1, recording.ids_BT[rows, columns]])
    wanted = float(torch.cat(losses).mean())
    assert float(data.loss[2, 1]) == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted - data.attrs["clean_loss"]) > 1e-3
