"""Other libraries' quantizers on copies of blocks, and checkpoints of packed integers."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import weakref
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from regraft.checkpoint.locate import CheckpointError
from regraft.core.registry import experiments
from regraft.core.tolerance import gap
from regraft.data.evaluation import evaluation
from regraft.experiments.intervene.quantization import packed_checkpoint as packed
from regraft.experiments.intervene.quantization.libraries import (
    METHODS,
    Method,
    held_bytes,
    linears,
    packed_when_run,
    quiet,
    whole_group,
    with_linears,
)
from regraft.experiments.intervene.quantization.packed_checkpoint import steps, write_packed
from regraft.experiments.intervene.quantization.quantizers import (
    WRITTEN,
    Clock,
    PackedWhenTimed,
    _Measured,
    _speeds,
    _turn,
)
from regraft.experiments.intervene.quantization.rounding import (
    MadeWhenRun,
    matrix_axes,
    quantized_block,
    round_to_nearest,
    rounded_when_run,
)
from regraft.experiments.running import run_experiment
from regraft.model.cpu_pack import packed as packed_layers
from regraft.model.cpu_pack import packed_layer, packing_applies
from regraft.model.load import load
from regraft.model.parts import in_width, matrix_OI
from regraft.sweeps.metrics import loss
from regraft.sweeps.sweep import sweep
from small import ids, opened
from unknown_decoder import OwnConfig, OwnDecoder

TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=4)
RUN = partial(run_experiment, experiments()["quantizers"])
QUANTIZE = partial(run_experiment, experiments()["quantize"])
BY_NAME = {method.name: method for method in METHODS}


@pytest.mark.parametrize(
    ("name", "method"),
    [("llama", "torchao int8"), ("gpt2", "torchao int4"), ("gemma2", "torchao int8"), ("t5", "torchao int4")]
    + [(f"specimen:{name}", "NF4") for name in ("qwen3", "gpt2", "t5")],
)
def test_losses_are_those_of_the_live_model_with_the_quantized_layers_in_it(name, method):
    model, twin = (load(name, pack=False) if ":" in name else opened(name) for _ in range(2))
    before = model.fingerprint()
    data = RUN(model, methods=[method], **TEXT)
    assert model.fingerprint() == before
    assert data.quantizer.values.tolist() == ["as loaded", method]
    batches = evaluation(model, TEXT["prompts"], 2, 4).recordings.batches
    blocks = twin.parts.stacks[-1].blocks
    copies = BY_NAME[method].copies(twin, blocks, 128)
    for block, made in zip(blocks, copies, strict=True):
        small = made.make()
        for path, _ in linears(with_linears(block.module)):
            block.module.get_submodule(path).forward = small.get_submodule(path).forward
    wanted = sweep([twin.record(*batch) for batch in batches], [], loss()).clean_mean("loss")
    assert float(data.loss.sel(quantizer=method)) == pytest.approx(wanted, abs=1e-5)
    assert wanted != pytest.approx(data.loss[0].item(), abs=1e-5)


def test_bytes_and_speed():
    model = load("specimen:gpt2")
    data = RUN(model, count=4, tokens=6)
    share = data.bytes / float(data.bytes.sel(quantizer="as loaded"))
    assert float(share.sel(quantizer="torchao int8")) == pytest.approx(0.255, abs=0.02)
    assert float(share.sel(quantizer="NF4")) == pytest.approx(0.14, abs=0.02)
    runs = data.quantizer.isin(["as loaded", "torchao int8", "torchao int4", "bitsandbytes int8", "NF4"])
    assert (np.isfinite(data.writing) == runs).all(), "no speed is claimed for what runs as plain floats"
    assert (data.reading.values[runs] > 0).all()
    gone = [
        "GPTQ 4 bits is left out: llmcompressor is not installed",
        "HQQ 4 bits is left out: hqq is not installed",
    ]
    assert data.attrs["without"] == "; ".join(gone)


def test_each_library_changes_every_matrix_and_nothing_else():
    model = load("specimen:gpt2")
    block = model.blocks[1]
    axes = matrix_axes(block, model.width)
    for name in ("torchao int8", "NF4"):
        made = BY_NAME[name].copies(model, [block], 128)[0].make()
        assert held_bytes(made) < held_bytes(block.module)
        kept = {
            n for n, p in made.named_parameters() if type(p.data) is torch.Tensor and p.dtype == torch.float32
        }
        assert kept == {n for n, _ in block.module.named_parameters()} - set(axes), name


def test_transposed_maps_become_plain_ones_with_the_same_outputs():
    block = opened("gpt2").blocks[0].module
    made, x = with_linears(block), torch.randn(2, 5, 32)
    assert len(linears(made)) == 4, "c_attn, c_proj, c_fc, c_proj"
    assert len(linears(block)) == 0
    torch.testing.assert_close(made.mlp.c_fc(x), block.mlp.c_fc(x))


def test_wrong_methods_and_unsuited_models():
    with pytest.raises(
        ValueError, match="no method 'gold': choose among RTN 8 bits, RTN 4 bits, torchao int8"
    ):
        RUN(opened("llama"), methods=["gold"], **TEXT)
    data = RUN(opened("mixtral"), methods=["torchao int8", "RTN 4 bits"], **TEXT)
    assert data.quantizer.values.tolist() == ["as loaded", "RTN 4 bits"]
    assert "knows linear layers only" in data.attrs["without"]
    data = RUN(opened("llama"), methods=["torchao int4"], group=7, **TEXT)
    assert "groups of 7 do not divide 32 inputs" in data.attrs["without"]
    data = RUN(opened("llama"), methods=["NF4"], **TEXT)
    assert data.sizes["quantizer"] == 1
    assert "it needs inputs in blocks of 64, and a matrix has 32" in data.attrs["without"]
    with pytest.raises(ValueError, match="does not write text"):
        RUN(opened("bert"), **TEXT)


def test_a_method_whose_loss_is_not_a_number_is_left_out(monkeypatch):
    def poisoned(model, blocks, group):
        made = [with_linears(block.module) for block in blocks]
        with torch.no_grad():
            linears(made[0])[0][1].weight.fill_(float("nan"))
        return [MadeWhenRun(partial(lambda block: block, block)) for block in made]

    method = Method("poisoned", "", 8, poisoned)
    monkeypatch.setattr(
        "regraft.experiments.intervene.quantization.quantizers.METHODS", (method, BY_NAME["RTN 8 bits"])
    )
    data = RUN(opened("llama"), **TEXT)
    assert data.quantizer.values.tolist() == ["as loaded", "RTN 8 bits"]
    assert "poisoned is left out: its loss is not a number" in data.attrs["without"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_block_that_is_rounded_while_the_model_is_packed_computes_with_its_own_numbers(name):
    """Copied with the forward of the packed layer, it would compute what the original computes."""
    model = opened(name)
    block = model.blocks[1]
    place = rounded_when_run(model, block, 3, group=16)
    wanted = place.make().state_dict()
    layers = [layer for layer in block.module.modules() if packing_applies(layer)]
    assert layers
    x = torch.randn(2, 4, in_width(layers[0]), generator=torch.Generator().manual_seed(0))
    with packed_layers({layer: packed_layer(layer) for layer in layers}):
        made = place.make()
        assert all(torch.equal(value, wanted[name]) for name, value in made.state_dict().items())
        (other,) = [
            copy for copy, own in zip(made.modules(), block.module.modules(), strict=True) if own is layers[0]
        ]
        bias = 0 if other.bias is None else other.bias
        torch.testing.assert_close(other(x), x @ matrix_OI(other).T + bias)
        assert gap(other(x), layers[0](x)) > 1e-3
    assert not any("forward" in vars(part) for part in block.module.modules())


@pytest.mark.parametrize("name", ["RTN 4 bits", "torchao int8", "torchao int4", "NF4"])
def test_one_block_is_held_beside_the_model(name, monkeypatch):
    """Whenever a block is copied, for its size, its loss or its speed, no part of a block that was copied
    before is left: also where a library's own parts hold themselves."""
    model = load("specimen:gpt2")
    kind, alive, most = type(model.blocks[0].module), [], []

    def copied(thing, *memo):
        if type(thing) is not kind:
            return deepcopy(thing, *memo)
        before = sum(any(ref() is not None for ref in parts) for parts in alive)
        found = deepcopy(thing, *memo)
        alive.append([weakref.ref(part) for part in found.modules()])
        most.append(before)
        return found

    monkeypatch.setattr(copy, "deepcopy", copied)
    monkeypatch.setattr("regraft.experiments.intervene.quantization.rounding.SMALL_BYTES", 0)
    before = model.fingerprint()
    gc.collect()
    gc.disable()
    try:
        data = RUN(model, methods=[name], **TEXT)
    finally:
        gc.enable()
    assert data.quantizer.values.tolist() == ["as loaded", name]
    rounds = 1 + 1 + 3 * 5 if BY_NAME[name].packed else 1
    assert len(most) >= rounds * len(model.blocks)
    assert max(most) == 0
    assert model.fingerprint() == before
    assert not any("forward" in vars(part) for part in model.hf.modules())


@pytest.mark.parametrize("kept", [True, False])
def test_small_blocks_are_rounded_once_and_others_whenever_they_run(kept, monkeypatch):
    made = []
    monkeypatch.setattr(
        "regraft.experiments.intervene.quantization.rounding.quantized_block",
        lambda *words: made.append(words) or quantized_block(*words),
    )
    model = opened("llama")
    size = sum(p.numel() * p.element_size() for block in model.blocks for p in block.module.parameters())
    monkeypatch.setattr(
        "regraft.experiments.intervene.quantization.rounding.SMALL_BYTES", size if kept else size - 1
    )
    place = rounded_when_run(model, model.blocks[1], 3, group=16)
    recording = model.record([[5, 6, 7]])
    first, again = (recording.run_block(1, recording.pre(1), 1, module=place) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-6)
    assert len(made) == (1 if kept else 2)


def test_seconds_of_packing_are_no_seconds_of_running(monkeypatch):
    """By a clock that ticks once whenever it is read and a hundred times at a layer's first call, a block
    that is packed costs what a block that is not packed costs."""
    ticks = itertools.count()

    class Late(nn.Linear):
        called = False

        def forward(self, x):
            for _ in range(0 if self.called else 100):
                next(ticks)
            self.called = True
            return super().forward(x)

    def small(linear):
        return Late(linear.in_features, linear.out_features, linear.bias is not None)

    monkeypatch.setattr(
        "regraft.experiments.intervene.quantization.quantizers._now", lambda: float(next(ticks))
    )
    monkeypatch.setattr("regraft.experiments.intervene.quantization.rounding.SMALL_BYTES", 0)
    model = opened("llama")
    inputs = evaluation(model, TEXT["prompts"], 2, 4).recordings[0].inputs
    packing = Clock()
    made = packed_when_run(model.blocks, small)
    standing = {b.module: PackedWhenTimed(one, packing) for b, one in zip(model.blocks, made, strict=True)}
    layers = len(linears(model.blocks[0].module))
    with packed_layers(standing):
        reading, _ = _turn(model, inputs, packing)
    # Two readings around the whole, and two around each block, of which the one between them is packing.
    each = 1 + 100 * layers
    assert packing.seconds == (1 + WRITTEN) * len(model.blocks) * each, "one reading, and tokens written"
    assert reading == 1 + 2 * len(model.blocks) - len(model.blocks)


def test_two_methods_are_measured_without_a_copy_of_the_model(monkeypatch):
    """Each in a copy of the whole model for its speed, memory was that of many models."""
    whole = []

    def copies(model, blocks, group):
        return [MadeWhenRun(partial(with_linears, block.module)) for block in blocks]

    monkeypatch.setattr(
        copy, "deepcopy", lambda thing, *memo: whole.append(type(thing)) or deepcopy(thing, *memo)
    )
    methods = tuple(Method(name, "", 8, copies, packed=True) for name in ("one", "other"))
    monkeypatch.setattr("regraft.experiments.intervene.quantization.quantizers.METHODS", methods)
    model = opened("llama")
    before = [block.module for block in model.blocks]
    data = RUN(model, **TEXT)
    assert not any(issubclass(kind, PreTrainedModel) for kind in whole)
    assert data.quantizer.values.tolist() == ["as loaded", "one", "other"]
    assert np.isfinite(data.reading.values).all()
    assert (data.reading.values > 0).all()
    loss = torch.tensor(data.loss.values)
    assert gap(loss[1:], loss[:1].expand(2)) <= model.rounding, "copies with the model's own numbers"
    now = [block for block in model.hf.model.layers]
    assert all(one is other for one, other in zip(before, now, strict=True)), "the model is as it was"


def test_a_machine_that_slows_down_between_two_methods_slows_both_sides():
    """Each method runs at half the speed of the model beside it, though the second had a machine of a third
    of the speed."""
    text = SimpleNamespace(recordings=[SimpleNamespace(mask_BT=torch.ones(3, 4, dtype=torch.bool))])
    one = _Measured("one", 1.0, None, [(2.0, 4.0)] * 3, [(1.0, 2.0)] * 3)
    other = _Measured("other", 1.0, None, [(6.0, 12.0)] * 2, [(3.0, 6.0)] * 2)
    reading, writing = _speeds(None, text, [one, _Measured("plain floats", 1.0), other])
    assert reading == [12.0, 6.0, pytest.approx(float("nan"), nan_ok=True), 6.0]
    assert writing == [WRITTEN / 2, WRITTEN / 4, pytest.approx(float("nan"), nan_ok=True), WRITTEN / 4]


def test_a_packed_checkpoint_is_small_and_holds_exactly_the_rounded_weights(tmp_path):
    model = load("specimen:qwen3")
    plan = [3, 4, 5, 6, 8, 2] * 2
    write_packed(copy.deepcopy(model.hf), tmp_path, model.blocks, plan, 128)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.4 * 4 * sum(
        p.numel() for p in model.hf.parameters()
    )
    again = load(str(tmp_path))
    for block, bits in zip(again.blocks, plan, strict=True):
        original = model.blocks[block.index].module
        for name, linear in linears(block.module):
            wanted = round_to_nearest(original.get_submodule(name).weight, bits, group=128)
            assert torch.equal(linear.weight, wanted), (block.index, name)
    with quiet():
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        row = torch.tensor([ids(6, 1)])
        assert gap(plain(row).logits, again.hf(row).logits) <= again.rounding


def test_a_recipe_is_saved_as_packed_integers_with_its_measured_loss(tmp_path):
    folder = tmp_path / "packed"
    data = QUANTIZE(opened("qwen3"), recipe="uniform", save=str(folder), **TEXT)
    assert "largest difference 0)" in data.attrs["saved"]
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "compressed-tensors"
    assert {group["weights"]["num_bits"] for group in said["config_groups"].values()} == {4}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{float(data.loss[1]):,.4f}" in card
    assert f"{(folder / 'model.safetensors').stat().st_size:,} bytes" in card
    with pytest.raises(ValueError, match="16 bits cannot be packed: at most 8"):
        write_packed(
            copy.deepcopy(opened("qwen3").hf), tmp_path / "wide", opened("qwen3").blocks, [16] * 4, 128
        )


def test_a_last_shorter_group_keeps_its_own_step():
    """192 inputs in groups of 128: the last 64 have a step of their own, and the first one is said twice."""
    weight = torch.randn(3, 192)
    weight[:, 128:] *= 10
    found = steps(weight, 4, 128, whole_group(192, 128))
    assert found.shape == (3, 3)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 2], weight[:, 128:].abs().amax(-1) / 7)


def test_what_cannot_be_packed_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn\.weight cannot be packed: .* --format float"):
        QUANTIZE(opened("gpt2"), save=str(tmp_path / "x"), **TEXT)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        QUANTIZE(opened("qwen3"), save=str(tmp_path / "full"), **TEXT)
    monkeypatch.setattr(packed, "PACKAGE", "no_such_package")
    with pytest.raises(
        ValueError, match=r"no-such-package is not installed: `pip install 'regraft\[quantize\]'`"
    ):
        QUANTIZE(opened("qwen3"), save=str(tmp_path / "y"), **TEXT)


def test_opening_packed_integers_without_the_package_says_what_is_missing(tmp_path, monkeypatch):
    def absent(*args, **kwargs):
        raise ImportError("Using `compressed_tensors` quantized models requires compressed-tensors")

    model = load("specimen:gpt2")
    model.hf.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", absent)
    with pytest.raises(
        CheckpointError, match="cannot be opened here: Using `compressed_tensors` quantized models requires"
    ):
        load(str(tmp_path))


def test_a_model_that_cannot_generate_is_timed_without_writing():
    """A report on one broke off here once, with all its chapters."""
    torch.manual_seed(0)
    model = load(OwnDecoder(OwnConfig()).eval(), pack=False)
    assert not isinstance(model.hf, transformers.GenerationMixin)
    data = RUN(model, prompts=["5 6 7"], tokens=2)
    assert np.isnan(data.writing).all()
    assert np.isfinite(data.reading).any()
