"""The comparison rule: what other kernels do stays below it, what a fault does is far above."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch

from other_library import misalign_weights, misaligned, other_library
from regraft.core.tolerance import gap, rounding
from regraft.model.load import load

FAR = {"float32": 100, "float64": 100, "bfloat16": 3}
"""How many times the bound the least of the planted faults exceeds."""


def logits(hf, length=24):
    ids = torch.randint(5, 4000, (1, length), generator=torch.Generator().manual_seed(0))
    two = {"decoder_input_ids": ids} if hf.config.is_encoder_decoder else {}
    with torch.no_grad():
        return hf(input_ids=ids, **two).logits


def batched(hf):
    """The same prompt as the third of five, four tokens padded behind it."""
    ids = torch.randint(5, 4000, (1, 24), generator=torch.Generator().manual_seed(0))
    rows = torch.cat(
        [torch.randint(5, 4000, (5, 24), generator=torch.Generator().manual_seed(1)), torch.full((5, 4), 7)],
        1,
    )
    rows[2, :24] = ids[0]
    with torch.no_grad():
        return hf(input_ids=rows).logits[2:3, :24]


def exchanged_rows(model):
    model.parts.head.weight[[100, 101]] = model.parts.head.weight[[101, 100]]


def scaled_by_a_tenth(model):
    model.blocks[len(model.blocks) // 2].branch("mlp").projection.weight.mul_(1.1)


def without_a_block(model):
    for branch in model.blocks[1].branches:
        branch.projection.weight.zero_()


def heads_exchanged(model):
    weight = model.blocks[0].branch("attn").projection.weight
    half = weight.shape[1] // 2
    weight.copy_(torch.cat([weight[:, half:], weight[:, :half]], 1))


def shifted_embedding(model):
    weight = model.parts.embedding.weight
    weight.copy_(weight.roll(1, 0))


FAULTS = (exchanged_rows, without_a_block, heads_exchanged, shifted_embedding)
FINE = (scaled_by_a_tenth,)
"""What the eight bits of bfloat16 cannot tell from rounding."""


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_other_kernels_stay_below_the_bound_and_faults_far_above(dtype):
    model = load("specimen:qwen3", dtype=dtype, pack=False)
    model.hf.lm_head.weight = torch.nn.Parameter(model.hf.lm_head.weight.detach().clone())
    wanted = logits(model.hf)
    moved = misalign_weights(copy.deepcopy(model.hf))
    noise = [gap(batched(model.hf), wanted), gap(logits(moved), wanted)]
    with other_library():
        noise += [gap(logits(model.hf), wanted), gap(logits(moved), wanted), gap(batched(model.hf), wanted)]
    assert max(noise[2:]) > 0, "the other library does change the last bits"
    assert max(noise) <= model.rounding
    whole = copy.deepcopy(model.hf.state_dict())
    felt = {}
    for fault in FAULTS if dtype == "bfloat16" else FAULTS + FINE:
        with torch.no_grad():
            fault(model)
        felt[fault.__name__] = gap(logits(model.hf), wanted)
        model.hf.load_state_dict(whole)
    assert min(felt.values()) > FAR[dtype] * model.rounding, felt


def test_the_bound_grows_with_depth_width_and_coarseness():
    assert rounding(torch.float32, 12, 512) == pytest.approx(4 * 13**0.5 * (1 + 512**0.5) * 2**-23)
    assert rounding(torch.bfloat16, 12, 512) == pytest.approx(4 * 13**0.5 * (2**-7 + 512**0.5 * 2**-23))
    assert rounding(torch.float64, 1, 64) == pytest.approx(4 * 2**0.5 * 9 * 2**-52)


def test_a_gap_is_a_share_of_the_largest_wanted_value():
    wanted = torch.tensor([1.0, -4.0])
    assert gap(torch.tensor([1.0, -3.0]), wanted) == 0.25
    assert gap(wanted, wanted) == 0.0
    assert gap(torch.tensor([1.0, float("nan")]), wanted) == float("inf")
    assert gap(wanted[:1], wanted) == float("inf")
    assert gap(torch.zeros(2), torch.zeros(2)) == 0.0
    assert gap(torch.ones(2), torch.zeros(2)) > 1e9


PRODUCT = """
import torch
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
x, w = torch.randn(7, 384, generator=g), torch.randn(96, 384, generator=g)
print((x @ w.T).numpy().tobytes().hex())
"""


def test_a_setting_and_an_address_change_a_product_here():
    """Of the settings at least one makes this machine another one; the planted library feels batch and
    address anywhere."""
    made = {}
    for setting in (
        "",
        "MKL_CBWR=COMPATIBLE",
        "MKL_CBWR=AVX2",
        "ATEN_CPU_CAPABILITY=avx2",
        "ONEDNN_MAX_CPU_ISA=AVX2",
    ):
        name, _, value = setting.partition("=")
        env = {**os.environ, **({name: value} if name else {})}
        made[setting] = subprocess.run(
            [sys.executable, "-c", PRODUCT], capture_output=True, text=True, env=env, check=True
        ).stdout
        if len(set(made.values())) > 1:
            break
    assert len(set(made.values())) > 1, "no setting changes a product: the runs under them would show nothing"
    x, w = torch.randn(7, 48), torch.randn(48, 96)
    with other_library():
        plain = x @ w
        assert torch.equal(x @ w, plain), "the same call on the same tensors gives the same bits"
        assert not torch.equal(x @ misaligned(w), plain)
        assert not torch.equal(torch.cat([x, x])[:14] @ w, torch.cat([plain, plain]))
        assert gap(x @ misaligned(w), plain) <= rounding(torch.float32, 1, 48)
    assert misaligned(w).data_ptr() % 64 == 4
    assert torch.equal(misaligned(w), w)
