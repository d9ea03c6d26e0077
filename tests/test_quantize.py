"""Round-to-nearest, recipes and sensitivity: bounds, equal bytes, exact optimum, routes against rounded live
models."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import transformers

from regraft.core.registry import experiments
from regraft.experiments.intervene.quantization.recipes import by_score, ends_protected, oracle, uniform
from regraft.experiments.intervene.quantization.rounding import (
    block_bytes,
    matrix_axes,
    quantized_block,
    quantized_bytes,
    round_to_nearest,
)
from regraft.experiments.running import measured, run_experiment
from regraft.model.load import load
from regraft.model.weights import live_weights
from small import ids, opened

pytestmark = pytest.mark.usefixtures("quick_linearity")

RUN = partial(run_experiment, experiments()["quantize"])
TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=4)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_no_value_moves_by_more_than_half_a_step_of_its_group(bits, axis):
    torch.manual_seed(0)
    weight = torch.randn(300, 280)
    rounded = round_to_nearest(weight, bits, axis, group=128)
    w, r = weight.movedim(axis, -1), rounded.movedim(axis, -1)
    for begin in range(0, w.shape[-1], 128):
        part, found = w[:, begin : begin + 128], r[:, begin : begin + 128]
        step = part.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert float(((part - found).abs() / step).max()) <= 0.5 + 1e-4
        assert all(len(row.unique()) <= 2**bits - 1 for row in found)
        assert torch.allclose(part.abs().amax(-1), found.abs().amax(-1)), (
            "the largest value of a group is kept"
        )


def test_groups_lie_along_the_inputs():
    """One huge input column: grouped along the inputs it spoils its group only; along the outputs it would
    spoil nothing else."""
    weight = torch.full((4, 256), 0.1)
    weight[:, 0] = 100.0
    rounded = round_to_nearest(weight, 4, axis=1, group=128)
    assert (rounded[:, 1:128] == 0).all()
    assert torch.allclose(rounded[:, 128:], weight[:, 128:])
    assert torch.equal(round_to_nearest(torch.zeros(2, 4), 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="1 bits cannot be rounded to"):
        round_to_nearest(weight, 1)


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(other, marks=pytest.mark.slow) for other in ("gpt2", "mixtral"))]
)
def test_sixteen_bits_are_the_clean_run_within_rounding(name):
    data = RUN(opened(name), bits=[16], **TEXT)
    assert np.abs(data.increase.sel(bits=16)).max() < 1e-3
    assert float(data.whole_loss.sel(bits=16)) == pytest.approx(data.attrs["clean_loss"], abs=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "gpt2"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("gpt_neox", "mixtral", "gemma2", "phi3", "gpt_oss", "qwen3_5", "t5")
        ),
    ],
)
def test_a_route_through_rounded_blocks_is_the_model_with_rounded_weights(name):
    """Every matrix of one block written into the live model by hand gives the loss of the cell."""
    model = opened(name)
    data = RUN(model, bits=[2], **TEXT)
    block = model.parts.stacks[-1].blocks[1]
    axes = matrix_axes(block, model.width)
    twins = opened(name)
    place = twins.parts.stacks[-1].blocks[1].module
    with torch.no_grad():
        for parameter_name, axis in axes.items():
            parameter = place.get_parameter(parameter_name)
            parameter.copy_(round_to_nearest(block.module.get_parameter(parameter_name), 2, axis))
    from regraft.data.evaluation import evaluation
    from regraft.sweeps.metrics import loss
    from regraft.sweeps.sweep import sweep

    batches = evaluation(model, TEXT["prompts"], 2, 4).recordings.batches
    records = [twins.record(*batch) for batch in batches]
    wanted = sweep(records, [], loss()).clean_mean("loss")
    assert float(data.loss.sel(bits=2)[1]) == pytest.approx(wanted, abs=1e-5)
    changed = {n for n, p in place.named_parameters() if not torch.equal(p, block.module.get_parameter(n))}
    assert changed == set(axes)
    assert np.isfinite(data.matrix_increase.sel(role="o")).any()


def test_one_role_of_a_packed_matrix_alone():
    model = opened("phi3")
    block = model.blocks[1]
    keys = [m for m in live_weights(model).matrices if m.block == "1" and m.role == "k"]
    made = quantized_block(model, block, 2, keys)
    before, after = block.module.self_attn.qkv_proj.weight, made.self_attn.qkv_proj.weight
    rows = keys[0].rows.parts["k"]
    others = torch.tensor([i for i in range(len(before)) if i not in set(rows.tolist())])
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[rows], after[rows])
    assert torch.equal(after[rows], round_to_nearest(before, 2)[rows])


@pytest.mark.slow
def test_the_model_is_not_changed_and_packed_layers_do_not_hide_the_rounding():
    model = load("specimen:gpt2")
    before = model.fingerprint()
    data = RUN(model, count=4, tokens=6)
    assert model.fingerprint() == before
    assert float(data.whole_loss.sel(bits=2)) > data.attrs["clean_loss"] + 1
    assert data.increase.sel(bits=2).values.max() > data.increase.sel(bits=8).values.max()


def test_recipes_cost_the_same_and_the_oracle_is_the_best_of_all_by_its_own_measure():
    for blocks in (1, 2, 3, 4, 7, 12, 36):
        score = np.random.default_rng(blocks).random(blocks)
        for plan in (uniform(blocks), ends_protected(blocks), by_score(score)):
            assert sum(plan) == 4 * blocks, (blocks, plan)
    assert by_score(np.array([3.0, 1.0, 2.0])) == [5, 3, 4]
    assert ends_protected(12)[0] == ends_protected(12)[-1] == 6
    widths = [8, 6, 4, 3, 2]
    increase = np.sort(np.random.default_rng(0).random((5, 5)), axis=1)
    best = oracle(increase, widths)
    cost = {w: c for c, w in enumerate(widths)}
    every = [p for p in product(widths, repeat=5) if sum(p) <= 20]
    lowest = min(sum(increase[i, cost[w]] for i, w in enumerate(p)) for p in every)
    assert sum(increase[i, cost[w]] for i, w in enumerate(best)) == pytest.approx(lowest)


def test_bytes_are_counted():
    assert quantized_bytes((10, 256), 1, 4, 128) == 10 * 256 / 2 + 10 * 2 * 2
    assert quantized_bytes((10, 130), 1, 8, 128) == 1300 + 10 * 2 * 2
    model = opened("llama")
    block = model.blocks[0]
    plain = sum(p.numel() * 4 for p in block.module.parameters())
    assert block_bytes(model, block, None) == plain
    assert block_bytes(model, block, 4) < plain / 6
    data = RUN(model, **TEXT)
    assert len(set(data.recipe_bytes.values.tolist())) <= 2, "equal bytes; the oracle may leave some unspent"


def test_a_recipe_is_saved_with_its_measured_loss(tmp_path):
    model = opened("qwen3")
    data = RUN(model, recipe="uniform", save=str(tmp_path / "four"), format="float", **TEXT)
    assert "opens with transformers" in data.attrs["saved"]
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "four").eval()
    weight = plain.model.layers[2].mlp.up_proj.weight
    assert torch.equal(weight, round_to_nearest(model.blocks[2].module.mlp.up_proj.weight, 4))
    card = (tmp_path / "four" / "README.md").read_text(encoding="utf-8")
    assert f"{float(data.loss[1]):,.4f}" in card
    assert torch.isfinite(plain(torch.tensor([ids(6, 1)])).logits).all()
    with pytest.raises(ValueError, match="there is no recipe 'gold'"):
        RUN(model, recipe="gold", save=str(tmp_path / "gold"), **TEXT)
    with pytest.raises(ValueError, match="name a folder with --save"):
        RUN(model, recipe="uniform", **TEXT)
    with pytest.raises(ValueError, match="does not write text"):
        RUN(opened("bert"), **TEXT)


@pytest.mark.slow
def test_sensitivity_takes_part_in_the_correlations():
    model = load("specimen:gpt2")
    names = run_experiment(experiments()["correlations"], model)["quantity"].values.tolist()
    assert "quantize: sensitivity" in names
    assert measured(model, "quantize").sensitivity.dims == ("block",)
