"""The observations on every family: measured, or refused in one sentence."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from families import FAMILIES
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from small import opened

RUN = {
    name: partial(run_experiment, experiments()[name])
    for name in ("lens", "geometry", "neurons", "completions")
}
ENCODERS = ("bert", "bert_headless", "roberta", "modernbert")
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=4)


@pytest.mark.parametrize("name", FAMILIES)
def test_lens_completions_and_geometry(name):
    model = opened(name)
    if name in ENCODERS:
        for experiment in ("lens", "completions"):
            with pytest.raises(ValueError, match="does not write text from left to right"):
                RUN[experiment](model, **TEXT)
        assert np.isfinite(RUN["geometry"](model, **TEXT).participation_ratio).all()
        return
    lens = RUN["lens"](model, **TEXT)
    assert ((lens["rank"] >= 0) & (lens["rank"] < model.vocabulary)).all()
    assert (lens["rank"].isel(depth=-1) == 0).all(), "greedy text is ranked first at the last depth"
    assert lens.attrs["last_depth_difference"] <= 1e-5
    assert lens.block.values.tolist() == [block.address for block in model.main_blocks]
    assert RUN["completions"](model, **TEXT).attrs["scored_tokens"] == lens.sizes["token"]
    for stack in ("encoder", "decoder") if model.two_stacks else ("",):
        geometry = RUN["geometry"](model, stack=stack, **TEXT)
        assert np.isfinite(geometry.mean_norm).all()
        spread = geometry.participation_ratio.values[1:]
        assert ((spread > 0.99) & (spread <= geometry.attrs["width"])).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_neurons(name):
    model = opened(name)
    texts = dict(prompts=["5 6 7", "5 6 8"], control=["20 21 22"], k=4)
    if name in MIXTURES:
        with pytest.raises(ValueError, match="one for each expert"):
            RUN["neurons"](model, **texts)
    elif name == "mamba2":
        with pytest.raises(ValueError, match="no MLP whose output is added to the stream"):
            RUN["neurons"](model, **texts)
    else:
        found = RUN["neurons"](model, **texts)
        assert found.consistent.values.max() <= 4
        assert torch.isfinite(torch.tensor(found.activation.values)).all()
