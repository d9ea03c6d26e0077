"""Neuron ablation and push: each against hooks and full forwards, on several families."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import naive
from regraft.cli.main import app, spread_lists
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.figures.component_figures import neuron_square, ranked
from regraft.sweeps.variants import Replace, Variant, Zero
from small import ids, opened

ABLATE, PUSH = (
    partial(run_experiment, experiments()["ablate"]),
    partial(run_experiment, experiments()["push"]),
)
NINE = ("llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "phi3", "t5", "bloom", "qwen3_5")


def words(length, seed):
    return " ".join(map(str, ids(length, seed)))


def last(model, recording, variant):
    return naive.logits(model, recording, variant)[0, -1].softmax(-1)


@pytest.mark.parametrize("name", NINE)
def test_every_neuron_against_hooks(name):
    model = opened(name)
    prompt = words(6, 4)
    data = ABLATE(model, prompt=prompt, layer="0,2", threshold=1e-4)
    recording = model.record(prompt, "" if model.two_stacks else None)
    clean = last(model, recording, Variant())
    target = data.attrs["target_id"]
    assert target == int(clean.argmax())
    for row, block in enumerate((0, 2)):
        address = model.main_blocks[block].address
        for neuron in range(0, data.sizes["neuron"], 7):
            wanted = last(model, recording, Variant([Zero(f"{address}.neuron.{neuron}")]))
            assert float(data.change[row, neuron]) == pytest.approx(
                float(wanted[target] - clean[target]), abs=1e-6
            )
            assert bool(data.top1_changed[row, neuron]) == (int(wanted.argmax()) != target)
    assert data.attrs["large"] == int((np.abs(data.change.values) > 1e-4).sum())


def test_a_planted_neuron_that_carries_the_answer():
    """One neuron made to write the answer's direction: its ablation, and no other, changes the answer."""
    model = opened("llama")
    prompt = words(5, 8)
    block = model.blocks[3].module
    with torch.no_grad():
        block.mlp.down_proj.weight[:, 11] = model.parts.head.weight[42] * 400
        block.mlp.gate_proj.weight[11] = 0
        block.mlp.up_proj.weight[11] = 0
    handle = block.mlp.down_proj.register_forward_pre_hook(
        lambda m, a: (a[0].index_fill(-1, torch.tensor([11]), 3.0),)
    )
    try:
        data = ABLATE(model, prompt=prompt, layer="3")
    finally:
        handle.remove()
    assert data.attrs["target_id"] == 42
    assert int(np.abs(data.change.values).argmax()) == 11


def test_layers_by_number_several_and_all():
    model = opened("gpt2")
    assert ABLATE(model, prompt="5 6 7").block.values.tolist() == ["0"]
    assert ABLATE(model, prompt="5 6 7", layer="1, 2").block.values.tolist() == ["1", "2"]
    assert ABLATE(model, prompt="5 6 7", layer="all").sizes["block"] == 4
    with pytest.raises(ValueError, match="'4' is no block: write a number from 0 to 3"):
        ABLATE(model, prompt="5 6 7", layer="4")
    with pytest.raises(ValueError, match="does not write text from left to right"):
        ABLATE(opened("bert"), prompt="5 6 7")
    with pytest.raises(ValueError, match="one for each expert"):
        ABLATE(opened("mixtral"), prompt="5 6 7", layer="all")


def test_the_square_holds_every_neuron_once():
    square = neuron_square(np.arange(10.0))
    assert square.shape == (3, 4)
    assert sorted(square[np.isfinite(square)].tolist()) == list(range(10))


@pytest.mark.parametrize("name", NINE)
def test_every_push_against_hooks(name):
    model = opened(name)
    question, baseline = words(7, 1), words(4, 2)
    data = PUSH(model, question=question, baseline=baseline, targets=["7", "9"])
    charged, neutral = (model.record(t, "" if model.two_stacks else None) for t in (question, baseline))
    clean = last(model, neutral, Variant()).log()
    for component in range(data.sizes["component"]):
        one = data.isel(component=component)
        block, head = str(one.component_block.values), int(one["head"])
        kind = str(one.kind.values)
        sites = {
            "mlp": [f"{block}.mlp_out"],
            "head": [f"{block}.head.{head}"],
            "attention": [f"{block}.attn_out"],
            "block": [f"{block}.{b.kind}_out" for b in model.main_blocks[int(block.split(".")[-1])].branches],
        }[kind]
        label = {"mlp": "MLP", "head": "L", "attention": "ATT", "block": "BLOCK"}[kind] + block
        assert str(one.component.values) == (f"{label}H{head}" if kind == "head" else label)
        edits = [Replace(site, charged[site][0, -1], position=-1) for site in sites]
        wanted = last(model, neutral, Variant(edits)).log() - clean
        assert torch.allclose(torch.tensor(one.push.values), wanted[[7, 9]].double(), atol=1e-5), sites


def test_pushing_a_text_into_itself_pushes_nothing():
    model = opened("llama")
    same = words(6, 3)
    assert np.abs(PUSH(model, question=same, baseline=same, targets=["7"]).push.values).max() < 1e-5


def test_the_specimen_is_asked_about_capitals():
    """Right and wrong capitals end in yes and no; heads that carry the answer push it into an unrelated
    text."""
    model = load()
    right = PUSH(model)
    wrong = PUSH(model, question="Question: Is Madrid the capital of Thailand? Answer:")
    assert right.on_question.sel(target=" yes") > right.on_question.sel(target=" no")
    assert wrong.on_question.sel(target=" no") > wrong.on_question.sel(target=" yes")
    difference = (right.push.sel(target=" yes") - right.push.sel(target=" no")) - (
        wrong.push.sel(target=" yes") - wrong.push.sel(target=" no")
    )
    assert float(difference.max()) > 1
    first = ranked(right, "head", 4)
    assert [abs(v) for _, v in first] == sorted((abs(v) for _, v in first), reverse=True)


def test_list_options_take_several_words():
    assert spread_lists(["push", "--targets", " yes", " no", "--seed", "1"]) == [
        "push", "--targets", " yes", "--targets", " no", "--seed", "1",
    ]  # fmt: skip
    assert spread_lists(["push", "--question", "a", "b"]) == ["push", "--question", "a", "b"]
    assert spread_lists([]) == []
    done = CliRunner().invoke(
        app, spread_lists(["push", "--targets", " yes", " no", "--model", "specimen:gpt2"])
    )
    assert done.exit_code == 0, done.output
    refused = CliRunner().invoke(app, ["push", "--targets", " yes indeed"])
    assert refused.exit_code == 2
    assert "choose one that is one token" in " ".join(refused.stderr.split())
