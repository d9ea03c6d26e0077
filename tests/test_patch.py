"""Patching grids and attribution: every site against hooks, windows, several pairs, gradients against
differences."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch

import naive
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.figures.patch_figures import patch_finding
from regraft.sweeps.metrics import logit_difference
from regraft.sweeps.variants import Replace, Variant
from small import ids, opened

RUN = functools.partial(run_experiment, experiments()["patch"])
CLEAN, CORRUPT = (" ".join(map(str, ids(6, seed))) for seed in (3, 4))
CASE = dict(clean=CLEAN, corrupt=CORRUPT, answer="7", wrong="9")
FIVE = ("llama", "gpt2", "gemma2", "gpt_neox", "phi3", "olmo2")
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_act")


def difference(logits):
    return float(logits[0, -1, 7] - logits[0, -1, 9])


kept = functools.cache(opened)
"""For tests that leave the model as it is."""


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("site", SITES)
def test_every_site_against_hooks(name, site):
    model = kept(name)
    if site == "resid_mid" and name == "gpt_neox":
        with pytest.raises(ValueError, match="side by side"):
            RUN(model, site=site, **CASE)
        return
    data = RUN(model, site=site, **CASE)
    clean, corrupt = model.record(CLEAN), model.record(CORRUPT)
    for block, position in ((0, 2), (2, 5)):
        address = f"{block}.{site}"
        edit = Replace(address, clean[address].flatten(2)[0, position], position=position)
        wanted = difference(naive.logits(model, corrupt, Variant([edit])))
        assert float(data.logit_difference[block, position]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", FIVE)
def test_nothing_gives_zero_and_everything_one_to_the_bit(name):
    model = opened(name)
    whole = RUN(model, grid="block", exact=True, **CASE)
    assert float(whole.effect[0, 0]) == 1.0
    same = model.record(CORRUPT)
    assert difference(same["logits"]) == pytest.approx(whole.attrs["target_value"], abs=1e-5)
    early = RUN(
        model,
        exact=True,
        clean=f"{CLEAN} 11",
        corrupt=f"{CLEAN.rpartition(' ')[0]} 40 11",
        answer="7",
        wrong="9",
    )
    assert (early.effect.values[:, :5] == 0.0).all(), (
        "before the first different token there is nothing to carry over"
    )
    assert np.abs(early.effect.values[:, 5:]).max() > 0.1


def test_windows_are_several_blocks_at_once():
    model = opened("llama")
    data = RUN(model, site="mlp_out", window=3, **CASE)
    clean, corrupt = model.record(CLEAN), model.record(CORRUPT)
    for block in (0, 3):
        edits = [
            Replace(f"{b}.mlp_out", clean[f"{b}.mlp_out"][0, 4], position=4)
            for b in range(block, min(block + 3, 4))
        ]
        wanted = difference(naive.logits(model, corrupt, Variant(edits)))
        assert float(data.logit_difference[block, 4]) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(ValueError, match="a window of 5 blocks does not fit: choose 1 to 4"):
        RUN(model, window=5, **CASE)


def test_neurons_of_a_block_against_hooks():
    model = opened("gpt2")
    data = RUN(model, grid="neuron", block=1, **CASE)
    assert data.sizes == {"block": 1, "neuron": 128}
    clean, corrupt = model.record(CLEAN), model.record(CORRUPT)
    for neuron in (0, 77):
        edit = Replace(f"1.neuron.{neuron}", clean[f"1.neuron.{neuron}"][0])
        wanted = difference(naive.logits(model, corrupt, Variant([edit])))
        assert float(data.logit_difference[0, neuron]) == pytest.approx(wanted, abs=1e-5)


def same_twice(file):
    other = file.with_name("twice.json")
    other.write_text(json.dumps([CASE, CASE]))
    return other


def test_several_pairs_are_averaged_with_their_error(tmp_path):
    model = opened("llama")
    others = [" ".join(map(str, ids(6, seed))) for seed in (5, 6, 7, 8)]
    cases = [CASE, dict(clean=others[0], corrupt=others[1], answer="7", wrong="9")]
    cases.append(dict(clean=others[2], corrupt=others[3], answer="8", wrong="5"))
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(cases))
    data = RUN(model, pairs=str(file))
    alone = np.stack([RUN(model, **case).effect.values for case in cases])
    assert np.allclose(data.effect, alone.mean(0), atol=1e-6)
    assert np.allclose(data.effect_error, alone.std(0, ddof=1) / np.sqrt(3), atol=1e-6)
    assert np.allclose(data.pair_effect, alone, atol=1e-6)
    assert list(data.token.values) == [f"token {i}" for i in range(6)], (
        "the texts have no token in common in any place"
    )
    assert set(data.token_id.values.tolist()) == {-1}
    assert "minus the wrong one, mean over 3 pairs: " in patch_finding(data)
    assert "mean over 3 pairs" in data.effect.attrs["units"]
    twice = RUN(model, pairs=str(same_twice(file)))
    assert list(twice.token.values) == [model.token_text(i) for i in twice.token_id.values]
    assert twice.token_id.values.tolist() == list(map(int, CASE["corrupt"].split()))
    file.write_text(json.dumps([CASE, dict(clean="5 6 7", corrupt="5 6 8", answer="7", wrong="9")]))
    with pytest.raises(ValueError, match="the pairs differ in their numbers of positions"):
        RUN(model, pairs=str(file))
    assert RUN(model, pairs=str(file), grid="head").attrs["pairs"] == 2
    file.write_text('[{"clean": "5 6", "corrupt": "5 7", "answer": 7, "wrong": "9"}]')
    with pytest.raises(
        ValueError, match=r"pair 0 of .* has a field that is empty or no text: write a list of objects"
    ):
        RUN(model, pairs=str(file))
    file.write_text('{"clean": 1}')
    with pytest.raises(ValueError, match="holds no pairs"):
        RUN(model, pairs=str(file))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "phi3", "mixtral", "bloom", "t5"])
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "z", "v"])
def test_gradients_against_differences(name, site):
    """A tenth of a percent of a random change, up and down, in the live model with hooks, against gradient
    times change."""
    model = opened(name)
    recording = model.record(CLEAN)
    stack = model.parts.stacks[0]
    address = f"{stack.blocks[1].address}.{site}"
    slope = recording.gradients(logit_difference(7, 9), address)[address].flatten(2)[0]
    value = recording[address].flatten(2)
    assert slope.shape == value.shape[1:]
    change = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * value.std() * 1e-2
    up, down = (
        difference(naive.logits(model, recording, Variant([Replace(address, value + sign * change)])))
        for sign in (1, -1)
    )
    assert float((slope * change[0]).sum()) == pytest.approx((up - down) / 2, rel=0.03, abs=2e-6)


def test_attribution_is_the_effect_of_a_small_difference():
    """Where the two runs differ by little, the first-order estimate is the measured effect; a large one bends
    away."""
    model = opened("llama")
    with torch.no_grad():
        model.parts.embedding.weight[41] = model.parts.embedding.weight[40] * 1.001
    near = RUN(model, clean="5 6 40 7 8", corrupt="5 6 41 7 8", answer="7", wrong="9")
    assert np.allclose(near.attribution, near.effect, atol=0.02)
    assert near.attrs["attribution_correlation"] > 0.999
    far = RUN(model, **CASE)
    assert not np.allclose(far.attribution, far.effect, atol=0.02)
    assert np.isfinite(far.attrs["attribution_correlation"])


def test_attribution_of_heads_neurons_and_windows():
    model = opened("gpt2")
    position = RUN(model, site="z", **CASE)
    heads, blocks = RUN(model, grid="head", **CASE), RUN(model, grid="block", site="z", **CASE)
    assert np.allclose(heads.attribution.sum("head"), position.attribution.sum("position"), atol=1e-5)
    assert np.allclose(blocks.attribution[:, 0], position.attribution.sum("position"), atol=1e-5)
    neurons = RUN(model, grid="neuron", block=2, **CASE)
    acts = RUN(model, site="mlp_act", **CASE)
    assert float(neurons.attribution.sum()) == pytest.approx(float(acts.attribution[2].sum()), abs=1e-5)
    wide = RUN(model, site="z", window=2, **CASE)
    assert np.allclose(wide.attribution[0], position.attribution[0] + position.attribution[1], atol=1e-6)
    with pytest.raises(ValueError, match="there is no block 9"):
        RUN(model, grid="neuron", block=9, **CASE)


def test_the_specimen_keeps_its_landmark():
    """The time of day moves from its token to the last position between blocks 6 and 7, and attribution
    agrees in shape."""
    data = RUN(load())
    last = data.sizes["position"] - 1
    told = int(data.effect.values[0].argmax())
    assert data.effect.values[:6, told].min() > 0.5
    assert data.effect.values[8:, last].min() > 0.5
    assert data.attrs["attribution_correlation"] > 0.5


@pytest.mark.parametrize(("grid", "its_own"), [("head", "z"), ("neuron", "mlp_act")])
def test_a_grid_of_parts_takes_no_other_site(grid, its_own):
    model = load()
    with pytest.raises(
        ValueError, match=f"the {grid} grid patches {its_own}, part by part, not q: leave site out"
    ):
        RUN(model, grid=grid, site="q")
    named, silent = RUN(model, grid=grid, site=its_own), RUN(model, grid=grid)
    assert np.array_equal(named.effect, silent.effect, equal_nan=True)
