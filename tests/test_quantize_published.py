"""Rounding as it was published: recipes in proportion to a score, by role, error of the weights, the loss of
running text, what goes with sensitivity."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from regraft.core.registry import experiments
from regraft.experiments.intervene.quantization.published_quantities import bits_of_role, passages_of
from regraft.experiments.intervene.quantization.recipes import (
    at_the_mean,
    ends_at_eight,
    proportional,
    unit_scale,
)
from regraft.experiments.intervene.quantization.rounding import role_block, round_to_nearest
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.model.weights import live_weights
from small import opened

RUN = partial(run_experiment, experiments()["quantize"])


@pytest.fixture(scope="module")
def model():
    return load("specimen:gpt2")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "story.txt"
    lines = [f"The capital of France is Paris. Anna has {n} coins and a lamp." for n in range(40)]
    file.write_text("\n\n".join(" ".join(lines[i : i + 4]) for i in range(0, 40, 4)))
    return file


@pytest.fixture(scope="module")
def data(model, story):
    return RUN(model, count=2, tokens=6, bits=[8, 4, 3, 2], corpus=str(story))


def test_what_the_published_script_ran_when_it_meant_to_protect_the_ends():
    """The correction takes back what was given: of 36 blocks one keeps five bits."""
    assert ends_at_eight(36) == [4] * 35 + [5]


def test_proportional_recipes_by_hand():
    """Step by step as the published script goes: scaled, rounded, clipped, then one bit at a time."""
    score = np.array([0.9, 0.1, 0.4, 0.2, 0.3, 0.8, 0.0, 0.5])
    scaled = [(x - 0.0) / (0.9 + 1e-8) for x in score]
    raw = [2 + 6 * x for x in scaled]
    bits = [min(8, max(2, round(4 * 8 * x / sum(raw)))) for x in raw]
    while abs(sum(bits) / 8 - 4) > 0.05:
        place = bits.index(max(bits)) if sum(bits) > 32 else bits.index(min(bits))
        bits[place] += -1 if sum(bits) > 32 else 1
    assert proportional(score) == bits
    assert sum(proportional(score)) == 32
    assert max(proportional(score)) > 4 > min(proportional(score))
    assert proportional(np.ones(6)) == [4] * 6
    assert unit_scale(np.array([1.0, np.nan, 3.0])).tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)


@pytest.mark.parametrize("bits", [[8, 8, 8], [2, 2, 2, 2], [2, 8], [4], [5]])
def test_the_correction_ends_and_comes_near(bits):
    found = at_the_mean(bits)
    assert abs(sum(found) / len(found) - 4) <= max(0.05, 0.5 / len(found))


def test_a_block_by_role_is_rounded_role_by_role():
    model = opened("llama")
    block = model.blocks[1]
    own = [m for m in live_weights(model).matrices if m.block == "1"]
    made = role_block(model, block, own, bits_of_role)
    plain = dict(block.module.named_parameters())
    for name, parameter in made.named_parameters():
        if parameter.dim() == 2:
            bits = 3 if "q_proj" in name or "k_proj" in name else 5
            assert torch.equal(parameter, round_to_nearest(plain[name], bits)), name
        else:
            assert torch.equal(parameter, plain[name])


def test_packed_roles_are_told_apart(model):
    """GPT-2 keeps queries, keys and values in one matrix: q and k get three bits there, v five."""
    own = [m for m in live_weights(model).matrices if m.block == "2"]
    made = role_block(model, model.blocks[2], own, bits_of_role)
    packed, plain = (m.attn.c_attn.weight.detach() for m in (made, model.blocks[2].module))
    width = plain.shape[0]
    for part, bits in ((slice(0, 2 * width), 3), (slice(2 * width, None), 5)):
        assert torch.equal(packed[:, part], round_to_nearest(plain, bits, axis=0)[:, part])


def test_the_recipe_by_role_costs_what_the_rounded_model_costs(model, data):
    text = data.attrs["completions"]
    assert text
    copied = copy.deepcopy(model.hf)
    held = live_weights(model)
    for block in model.blocks:
        own = [m for m in held.matrices if m.block == block.address]
        copied.get_submodule(block.path).load_state_dict(
            role_block(model, block, own, bits_of_role).state_dict()
        )
    other = load((copied, model.tokenizer), pack=False)
    assert RUN(other, count=2, tokens=6, bits=[8]).clean_loss != data.clean_loss
    wanted = plain_loss(copied, data)
    assert float(data.role_recipe_loss) == pytest.approx(wanted, rel=1e-4)
    sizes = {m.role: m.shape[0] * m.shape[1] for m in held.matrices}
    bits = {role: 3 if role in ("q", "k") else 5 for role in sizes}
    assert float(data.role_recipe_mean_bits[0]) == pytest.approx(np.mean(list(bits.values())))
    weighed = sum(bits[r] * sizes[r] for r in sizes) / sum(sizes.values())
    assert float(data.role_recipe_mean_bits[1]) == pytest.approx(weighed)
    assert weighed > np.mean(list(bits.values())), "the MLP's matrices are the larger ones"


@torch.no_grad()
def plain_loss(hf, data):
    """Mean loss of the same completions by a plain forward of each."""
    import json

    from regraft.data.generation import completions
    from regraft.data.prompts import Prompt

    told = json.loads(data.attrs["completions"])
    sums, count = 0.0, 0
    made = completions(load("specimen:gpt2"), [Prompt(one["prompt"], one["category"]) for one in told], 6)
    for one in made:
        ids = torch.tensor([[*one.prompt_ids, *one.completion_ids]])
        logp = hf(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(len(one.prompt_ids), ids.shape[1]):
            sums -= float(logp[place - 1, ids[0, place]])
            count += 1
    return sums / count


def test_error_of_the_weights(model, data):
    block = model.blocks[1].module
    shares = []
    for name, axis in (("attn.c_attn", 0), ("attn.c_proj", 0), ("mlp.c_fc", 0), ("mlp.c_proj", 0)):
        weight = block.get_submodule(name).weight.detach()
        rounded = round_to_nearest(weight, 3, axis=axis)
        parts = 3 if name == "attn.c_attn" else 1
        for w, r in zip(weight.chunk(parts, 1), rounded.chunk(parts, 1), strict=True):
            shares.append(float((w - r).norm() / w.norm()))
    assert float(data.weight_error.sel(block="1", bits=3)) == pytest.approx(np.mean(shares), rel=1e-4)
    assert (np.diff(data.weight_error.values, axis=1) > 0).all(), "fewer bits, larger errors"


@torch.no_grad()
def text_loss(model, passages):
    """Nats per token by plain calls, passage by passage."""
    sums, count = 0.0, 0
    for recording in passages:
        for row, length in zip(recording.ids_BT, recording.lengths_B.tolist(), strict=True):
            logp = model.hf(input_ids=row[None, :length]).logits[0].log_softmax(-1)
            own = logp[:-1].gather(1, row[1:length, None])
            sums, count = sums - float(own.sum()), count + length - 1
    return sums / count


def test_the_loss_of_running_text(model, data, story):
    assert float(data.corpus_loss) == pytest.approx(
        text_loss(model, passages_of(model, str(story))), rel=1e-5
    )
    assert data.corpus_increase.shape == data.increase.shape
    assert not np.allclose(data.corpus_increase, data.increase, atol=1e-3), "another text"
    uniform = data.corpus_recipe_loss.sel(recipe="uniform")
    assert float(uniform) == pytest.approx(float(data.corpus_whole_loss.sel(bits=4)), abs=1e-6)


@torch.no_grad()
def test_the_loss_of_running_text_with_one_matrix_rounded(data, story):
    """In a model of its own, whose matrix is written over."""
    twin = load("specimen:gpt2")
    passages = passages_of(twin, str(story))
    weight = twin.blocks[1].module.get_submodule("mlp.c_proj").weight
    clean = text_loss(twin, passages)
    weight.copy_(round_to_nearest(weight, 3, axis=0))
    wanted = np.exp(text_loss(twin, passages)) - np.exp(clean)
    assert float(data.corpus_matrix_increase.sel(role="down", block="1")) == pytest.approx(wanted, abs=1e-3)
    assert abs(wanted) > 5e-3


def test_at_most_so_many_tokens_are_read(model, tmp_path, monkeypatch):
    from regraft.experiments.intervene.quantization import published_quantities

    monkeypatch.setattr(published_quantities, "CORPUS_TOKENS", 50)
    file = tmp_path / "long.txt"
    file.write_text("\n\n".join(["The capital of France is Paris."] * 40))
    total = sum(int(r.lengths_B.sum()) for r in passages_of(model, str(file)))
    assert 40 <= total <= 50


def test_what_goes_with_sensitivity(model, data):
    from regraft.experiments.running import measured

    two = data.increase.sel(bits=2).values
    spectra = measured(model, "spectra")
    wanted = spearmanr(two, spectra.mean_rank_ratio.values).statistic
    assert float(data.sensitivity_rho.sel(compared="mean rank ratio")) == pytest.approx(wanted)
    own = spearmanr(data.matrix_increase.sel(role="down"), spectra.rank_ratio.sel(role="down")).statistic
    assert float(data.role_sensitivity_rho.sel(role="down")) == pytest.approx(own)


def test_every_recipe_can_be_written(model, tmp_path):
    """A recipe in proportion to the sensitivity at two bits is measured before it is written."""
    done = RUN(
        model, recipe="proportional to sensitivity", save=str(tmp_path / "out"), format="float",
        count=2, tokens=4,
    )  # fmt: skip
    assert sum(done.recipe_bits.values) == 16
    assert (tmp_path / "out" / "config.json").is_file()
