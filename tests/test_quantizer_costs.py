"""What quantizing itself takes, and two more of other libraries' quantizers."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch

from regraft.core.registry import experiments
from regraft.experiments.intervene.quantization.rounding import round_to_nearest
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from small import opened

RUN = partial(run_experiment, experiments()["quantizers"])
TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=4)


class Halved(torch.nn.Module):
    """What HQQ's layer is, as far as we look at it: codes, scales beside them, and the plain layer that it
    keeps."""

    def __init__(self, linear, config, compute_dtype, device, del_orig):
        super().__init__()
        bits, group = config
        assert (bits, compute_dtype, device, del_orig) == (4, torch.float32, "cpu", False)
        rounded = round_to_nearest(linear.weight.detach(), bits, group=group)
        self.rounded, self.bias, self.linear_layer = [rounded], linear.bias, linear
        self.W_q = torch.nn.Parameter(
            torch.zeros(rounded.numel() // 2, dtype=torch.uint8), requires_grad=False
        )
        self.meta = {"scale": torch.zeros(rounded.numel() // group), "nbits": 4}

    def forward(self, x):
        return torch.nn.functional.linear(x, self.rounded[0], self.bias)


def test_hqq_by_a_stand_in_of_its_library(monkeypatch):
    """The library is no part of the usual environment (with it, others import a compiler at every start): a
    stand-in of its layer shows that the layer is made as it asks, that the plain one is let go, and what is
    counted."""
    module = ModuleType("hqq.core.quantize")
    module.BaseQuantizeConfig = lambda nbits, group_size: (nbits, group_size)
    module.HQQLinear = Halved
    for name in ("hqq", "hqq.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "hqq.core.quantize", module)
    monkeypatch.setattr("regraft.experiments.intervene.quantization.quantizers.missing", lambda package: "")
    model = opened("llama")
    data = RUN(model, methods=["HQQ 4 bits", "RTN 4 bits"], group=16, **TEXT)
    one, ours = (data.sel(quantizer=name) for name in ("HQQ 4 bits", "RTN 4 bits"))
    assert float(one.loss) == pytest.approx(float(ours.loss), abs=1e-5), "the same rounding in this stand-in"
    numbers = sum(p.numel() for b in model.blocks for p in b.module.parameters() if p.dim() == 2)
    norms = sum(p.numel() for b in model.blocks for p in b.module.parameters() if p.dim() == 1)
    codes, scales = numbers / 2, 4 * numbers / 16
    assert float(one.bytes) == codes + scales + 4 * norms


def test_what_quantizing_takes():
    model = load("specimen:gpt2")
    data = RUN(model, methods=["RTN 8 bits", "bitsandbytes int8", "NF4"], count=2, tokens=4)
    assert np.isnan(data.seconds_to_quantize.values[0])
    assert (data.seconds_to_quantize.values[1:] > 0).all()
    block = sum(p.numel() * p.element_size() for p in model.blocks[0].module.parameters())
    peak = data.peak_memory.values[1:]
    assert (peak > block / 8).all()
    assert (peak < 4 * block).all(), "one block is held beside the model, not all of them"
    assert np.allclose(data.perplexity, np.exp(data.loss))
    int8 = data.sel(quantizer="bitsandbytes int8")
    assert abs(float(int8.increase)) < 0.01
    assert float(int8.bytes) < 0.3 * float(data.bytes[0])
    assert len(drawing_of(data).folded(data)) == 2
