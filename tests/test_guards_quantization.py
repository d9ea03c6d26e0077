"""Rounding and budgets of bits by hand or by trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import xarray as xr

from regraft.experiments.intervene.quantization import quantize
from regraft.experiments.intervene.quantization.recipes import by_score, ends_protected, oracle, uniform
from regraft.experiments.intervene.quantization.rounding import (
    block_bytes,
    matrix_axes,
    quantized_block,
    quantized_bytes,
    round_to_nearest,
)
from regraft.experiments.intervene.shuffle.order_weights import Blocks, _spectrum_distance
from small import opened


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_group_has_its_own_evenly_spaced_levels(bits, axis):
    weight = torch.randn(7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    found = round_to_nearest(weight, bits, axis, group=4)
    rows, wanted = (weight.T, found.T) if axis == 0 else (weight, found)
    levels = 2 ** (bits - 1) - 1
    for row, made in zip(rows.tolist(), wanted.tolist(), strict=True):
        for start in range(0, len(row), 4):
            step = max(map(abs, row[start : start + 4])) / levels
            expected = [round(value / step) * step for value in row[start : start + 4]]
            assert made[start : start + 4] == pytest.approx(expected, abs=1e-5)
    assert torch.equal(round_to_nearest(torch.zeros(2, 4), 4), torch.zeros(2, 4))
    assert round_to_nearest(weight.bfloat16(), bits).dtype == torch.bfloat16


def test_bytes_of_codes_and_scales():
    assert quantized_bytes((6, 10), 1, 4, 4) == 30 + 2 * 6 * 3
    assert quantized_bytes((6, 10), 0, 3, 4) == 22.5 + 2 * 10 * 2
    assert quantized_bytes((2, 6, 8), 2, 8, 4) == 96 + 2 * 2 * 6 * 2
    for bits in (1, 17):
        with pytest.raises(ValueError, match=f"{bits} bits"):
            round_to_nearest(torch.ones(2, 2), bits)
    round_to_nearest(torch.ones(2, 2), 16)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_a_rounded_block_is_a_copy_with_its_matrices_rounded(name):
    model = opened(name)
    block = model.blocks[1]
    before = {n: p.clone() for n, p in block.module.named_parameters()}
    axes = matrix_axes(block, model.width)
    made = quantized_block(model, block, 3, group=16)
    assert all(torch.equal(p, before[n]) for n, p in block.module.named_parameters())
    plain, bytes_ = 0, 0.0
    for parameter_name, parameter in made.named_parameters():
        old = before[parameter_name]
        plain += old.numel() * 4
        if parameter_name in axes:
            axis = axes[parameter_name]
            assert old.dim() >= 2
            torch.testing.assert_close(parameter, round_to_nearest(old, 3, axis, 16))
            assert not torch.equal(parameter, old)
            bytes_ += quantized_bytes(tuple(old.shape), axis, 3, 16)
        else:
            assert torch.equal(parameter, old)
            bytes_ += old.numel() * 4
    assert block_bytes(model, block, None) == plain
    assert block_bytes(model, block, 3, 16) == bytes_
    down = next(n for n in axes if "down_proj" in n or "mlp.c_proj" in n)
    inputs = {"llama": 48, "gpt2": 128, "qwen3_moe": 24}[name]
    assert before[down].shape[axes[down]] == inputs, "the axis of the inputs"


def test_budgets_of_bits():
    assert uniform(3) == [4, 4, 4]
    assert ends_protected(2) == [4, 4]
    assert ends_protected(3) == [4, 4, 4], "one block cannot pay for two bits"
    assert ends_protected(4) == [6, 3, 3, 4]
    assert ends_protected(5) == [6, 3, 3, 4, 4], "one end only, and the middle pays"
    assert ends_protected(6) == [6, 3, 3, 3, 3, 6]
    assert ends_protected(8) == [6, 4, 3, 3, 3, 3, 4, 6]
    for blocks in range(1, 12):
        assert sum(ends_protected(blocks)) == 4 * blocks
    assert by_score(np.array([1.0, 6, 3, 2, 5, 4, 7])) == [3, 5, 4, 3, 4, 4, 5]
    assert by_score(np.array([np.nan, 1.0, 3.0])) == [4, 3, 5]
    assert by_score(np.array([2.0, 1.0])) == [4, 4]


def test_the_best_bits_by_trying_all():
    draw = np.random.default_rng(0)
    widths = [2, 3, 4, 5, 8]
    for blocks in (1, 2, 4):
        costs = draw.random((blocks, 5)) * np.array([5, 3, 2, 1, 0.1])
        fitting = [
            c for c in itertools.product(range(5), repeat=blocks) if sum(widths[i] for i in c) <= 4 * blocks
        ]
        best = min(fitting, key=lambda c: sum(costs[b, i] for b, i in enumerate(c)))
        assert oracle(costs, widths) == [widths[i] for i in best]
    assert oracle(np.array([[0.0, 1.0], [1.0, 0.0]]), [3, 5]) == [3, 5]


def test_each_recipe_spends_its_bits_by_its_own_measure(monkeypatch):
    """Least sensitive first for the inverse one; scores of blocks in another order, or of none, go where they
    belong."""
    model = opened("llama")
    increase = np.array([[0.0, 0.1, 9.0], [0.0, 0.4, 8.0], [0.0, 0.2, 7.0], [0.0, 0.3, 6.0]])
    ranks = {5: xr.DataArray([4.0, 1.0, 3.0, 2.0], {"block": list("2013")})}
    monkeypatch.setattr(quantize, "_mean_rank", lambda model, seed: ranks[seed])

    def lacking(model, read):
        assert read == {"prompts": ["a"], "count": 2, "seed": 5}
        raise ValueError("no\ngap")

    monkeypatch.setattr(quantize, "_gap", lacking)
    with pytest.raises(ValueError, match="gap"):
        quantize._recipes(
            model, list(model.blocks), increase, [8, 3, 2], {"prompts": ["a"], "count": 2, "seed": 5}
        )
    monkeypatch.setattr(quantize, "refused", lambda error, name: name == "quantize")
    found, without = quantize._recipes(
        model, list(model.blocks), increase, [8, 3, 2], {"prompts": ["a"], "count": 2, "seed": 5}
    )
    assert found == {
        "uniform": [4, 4, 4, 4],
        "ends protected": [6, 3, 3, 4],
        "oracle": [3, 3, 3, 3],
        "inverse": [5, 3, 4, 4],
        "rank-guided": [3, 4, 5, 4],
        "ends at eight": [4, 4, 4, 4],
        "proportional to rank": [2, 5, 6, 3],
        "proportional to sensitivity": [6, 5, 3, 2],
    }
    lacking = ("linearity-guided", "proportional to gap", "combined")
    assert without == [f"{name} is left out: no gap" for name in lacking]


@pytest.mark.parametrize(
    ("name", "matrices"),
    [
        (
            "llama",
            lambda m: [
                m.self_attn.q_proj.weight,
                m.self_attn.k_proj.weight,
                m.self_attn.v_proj.weight,
                m.mlp.gate_proj.weight,
            ],
        ),
        ("gpt2", lambda m: [*m.attn.c_attn.weight.split(32, 1), m.mlp.c_fc.weight]),
    ],
)
def test_spectra_of_blocks_are_those_of_q_k_v_and_gate_or_up(name, matrices):
    model = opened(name)
    rows = [
        np.concatenate([torch.linalg.svdvals(w.detach().double()) for w in matrices(b.module)])
        for b in model.blocks
    ]
    wanted = [[float(np.linalg.norm(a - b)) for b in rows] for a in rows]
    assert np.allclose(_spectrum_distance(Blocks(model, list(model.blocks), 0)), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        (
            "llama",
            {
                "q": "self_attn.q_proj",
                "k": "self_attn.k_proj",
                "v": "self_attn.v_proj",
                "o": "self_attn.o_proj",
            },
        ),
        ("gpt2", {"o": "attn.c_proj", "down": "mlp.c_proj"}),
    ],
)
def test_a_roles_matrix_of_one_block_is_rounded_and_no_other(name, paths):
    model = opened(name)
    blocks = list(model.blocks)[1:]
    seen = []

    def losses(copies):
        for copy in copies:
            ((index, module),) = copy.items()
            made = module.make()
            own = dict(model.blocks[index].module.named_parameters())
            seen.append((index, [n for n, p in made.named_parameters() if not torch.equal(p, own[n])]))
        return np.arange(len(seen) - len(copies), len(seen), dtype=float)

    roles, table = quantize._matrices(model, blocks, 16, losses)
    assert sorted(table.ravel().tolist()) == list(range(len(roles) * len(blocks)))
    for role, path in paths.items():
        for column, block in enumerate(blocks):
            assert seen[int(table[roles.index(role), column])] == (block.index, [f"{path}.weight"])
