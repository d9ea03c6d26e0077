"""Activation and norm replacement: the model's own functions change nothing, others are what live models with
them are."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from families import FAMILIES
from regraft.core.registry import experiments
from regraft.data.evaluation import evaluation
from regraft.experiments.intervene.replacement import is_nonlinearity
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.model.norm_parameters import takes_mean_away
from regraft.sweeps.metrics import loss
from regraft.sweeps.sweep import sweep
from small import opened

RUN = partial(run_experiment, experiments()["replacement"])
TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=4)


def loss_of(model, batches):
    return sweep([model.record(*batch) for batch in batches], [], loss()).clean_mean("loss")


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "olmo2", "phi3", "mixtral"])
def test_the_own_function_changes_nothing(name):
    data = RUN(opened(name), changes=["silu", "identity"], **TEXT)
    assert np.abs(data.increase.sel(change="silu")).max() == 0
    assert float(data.everywhere.sel(change="silu")) == 0
    assert np.abs(data.increase.sel(change="identity")).max() > 0


@pytest.mark.parametrize(
    ("name", "attribute"), [("llama", "act_fn"), ("gemma2", "act_fn"), ("gpt2", "act"), ("gpt_neox", "act")]
)
def test_another_function_is_the_live_model_with_it(name, attribute):
    model = opened(name)
    data = RUN(model, changes=["relu", "tanh"], **TEXT)
    batches = evaluation(model, TEXT["prompts"], 2, 4).recordings.batches
    other = opened(name)
    setattr(other.blocks[2].module.mlp, attribute, ACT2FN["relu"])
    assert float(data.increase.sel(change="relu")[2]) == pytest.approx(
        loss_of(other, batches) - data.attrs["clean_loss"], abs=1e-5
    )
    for block in other.blocks:
        setattr(block.module.mlp, attribute, nn.Tanh())
    assert float(data.everywhere.sel(change="tanh")) == pytest.approx(
        loss_of(other, batches) - data.attrs["clean_loss"], abs=1e-5
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_other_norm_is_the_live_model_with_it(name):
    model = opened(name)
    width = model.width
    for block in model.blocks:
        for _, module in block.module.named_modules():
            if "norm" in type(module).__name__.lower():
                with torch.no_grad():
                    module.weight.copy_(torch.rand(width, generator=torch.Generator().manual_seed(0)) + 0.5)
    batches = evaluation(model, TEXT["prompts"], 2, 4).recordings.batches
    data = RUN(model, changes=["other norm"], **TEXT)
    eps = 1e-6 if name == "llama" else 1e-5
    block = model.blocks[1].module
    for attribute in ("input_layernorm", "post_attention_layernorm") if name == "llama" else ("ln_1", "ln_2"):
        own = getattr(block, attribute)
        made = nn.LayerNorm(width, eps=eps, bias=False) if name == "llama" else nn.RMSNorm(width, eps=eps)
        made.weight = own.weight
        assert takes_mean_away(own, len(own.weight)) == (name == "gpt2")
        setattr(block, attribute, made)
    wanted = loss_of(load(model.hf, pack=False), batches) - data.attrs["clean_loss"]
    assert float(data.increase.sel(change="other norm")[1]) == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted) > 1e-6


@pytest.mark.parametrize(
    "name", [n for n in FAMILIES if n not in ("bert", "bert_headless", "roberta", "modernbert")]
)
def test_every_family_or_the_reason(name):
    data = RUN(opened(name), changes=["identity", "other norm"], **TEXT)
    assert (
        np.isfinite(data.everywhere.sel(change="other norm"))
        or "other norm cannot be put" in data.attrs["notes"]
    )
    assert (
        np.isfinite(data.everywhere.sel(change="identity")) or "identity cannot be put" in data.attrs["notes"]
    )


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="there is no change 'swish'"):
        RUN(opened("llama"), changes=["swish"], **TEXT)
    with pytest.raises(ValueError, match="does not write text"):
        RUN(opened("bert"), **TEXT)
    assert is_nonlinearity(nn.GELU())
    assert not is_nonlinearity(nn.PReLU())
