"""Folders of whole models with adapters in them, in the layout of the published ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import regraft
from families import FAMILIES
from regraft.checkpoint.locate import CheckpointError
from small import ids


@pytest.fixture
def folder(tmp_path):
    """A small model saved with adapters' tensors and the published configuration."""
    torch.manual_seed(2)
    hf = FAMILIES["qwen2"]().eval()
    hf.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    width, blocks = hf.config.hidden_size, hf.config.num_hidden_layers
    for block in range(blocks):
        place = f"model.layers.{block}.mlp.transcoder"
        tensors |= {
            f"{place}_enc.weight": torch.randn(12, width) / 8, f"{place}_enc.bias": torch.randn(12) / 8,
            f"{place}_dec.weight": torch.randn(width, 12) / 8, f"{place}_dec.bias": torch.randn(width) / 8,
        }  # fmt: skip
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"transcoder_n_features": 12, "transcoder_dec_bias": True}
    config["architectures"] = ["Qwen2ForCausalLMWithTranscoder"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def by_hand(folder, hf, prompt):
    """The logits with every MLP's output raised by its adapter's, computed in a hook."""
    tensors = load_file(folder / "model.safetensors")

    def adding(place):
        enc, bias = tensors[f"{place}_enc.weight"], tensors[f"{place}_enc.bias"]
        dec, out = tensors[f"{place}_dec.weight"], tensors[f"{place}_dec.bias"]
        return lambda module, args, outcome: outcome + torch.relu(args[0] @ enc.T + bias) @ dec.T + out

    handles = [
        layer.mlp.register_forward_hook(adding(f"model.layers.{number}.mlp.transcoder"))
        for number, layer in enumerate(hf.model.layers)
    ]
    with torch.no_grad():
        logits = hf(torch.tensor([prompt])).logits
    for handle in handles:
        handle.remove()
    return logits


def test_a_published_folder_opens_with_its_adapters(folder):
    model, graft = regraft.open_transcoder(folder)
    torch.manual_seed(2)
    plain = FAMILIES["qwen2"]().eval()
    with torch.no_grad():
        found = model.hf(torch.tensor([ids(7, 1)])).logits
        with graft.switch(strength=0.0):
            off = model.hf(torch.tensor([ids(7, 1)])).logits
        torch.testing.assert_close(off, plain(torch.tensor([ids(7, 1)])).logits)
    torch.testing.assert_close(found, by_hand(folder, plain, ids(7, 1)), atol=1e-5, rtol=1e-4)
    assert model.record([ids(7, 1)])["1.feature"].shape[-1] == 12


def test_a_plain_model_is_not_opened_without_them(folder):
    with pytest.raises(CheckpointError, match=r"would drop: open it with regraft\.open_transcoder"):
        regraft.load(folder)


def test_adapters_that_do_not_fit_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    for change, said in (
        (
            lambda t: t.pop("model.layers.1.mlp.transcoder_enc.bias"),
            "lacks model.layers.1.mlp.transcoder_enc.bias",
        ),
        (lambda t: t.update({"model.layers.9.mlp.transcoder_enc.bias": torch.zeros(12)}), "has no such MLP"),
        (
            lambda t: t.update({"model.layers.0.mlp.transcoder_enc.bias": torch.zeros(13)}),
            "calls for \\(12,\\)",
        ),
    ):
        changed = dict(tensors)
        change(changed)
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=said):
            regraft.open_transcoder(folder)
