"""Activations of many prompts beside recordings made one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr

import naive
from regraft.core.files import RunFolderError
from regraft.jobs import activations_job
from regraft.model.sites import SiteError
from regraft.sweeps.routes import Route
from regraft.sweeps.variants import Add, Scale, Variant
from small import ids, opened

SITES = (
    "0.resid_pre",
    "1.resid_mid",
    "1.attn_out",
    "2.mlp_out",
    "2.z",
    "1.v",
    "1.mlp_act",
    "1.head.1",
    "2.neuron.3",
)


def prompts(*lengths):
    return [ids(length, 20 + i) for i, length in enumerate(lengths)]


def existing(model, sites):
    def there(site):
        try:
            model.site(site)
        except SiteError:
            return False
        return True

    return [site for site in sites if there(site)]


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "mixtral", "bert", "qwen3_5"]
)
def test_activations_are_those_of_recordings_one_by_one(name, monkeypatch):
    model, texts = opened(name), prompts(6, 3, 9, 4)
    sites = existing(model, [*SITES, "embed", "final_norm", "logits"])
    assert len(sites) >= 6
    before = model.fingerprint()
    data = model.activations(texts, sites)
    assert data.token.size == sum(map(len, texts))
    assert data.prompt.values.tolist() == [n for n, row in enumerate(texts) for _ in row]
    assert data.position.values.tolist() == [p for row in texts for p in range(len(row))]
    assert data.token_id.values.tolist() == [token for row in texts for token in row]
    for site in sites:
        alone = [model.record([row], attention_mask="all")[site][0] for row in texts]
        wanted = torch.cat(alone)
        assert tuple(data[site].shape) == tuple(wanted.shape), site
        torch.testing.assert_close(torch.from_numpy(data[site].values), wanted, atol=2e-5, rtol=1e-4)
    monkeypatch.setattr(activations_job, "HELD", 1)
    single = model.activations(texts, sites[0])
    assert np.array_equal(single.token_id, data.token_id)
    assert np.allclose(single[sites[0]], data[sites[0]], atol=2e-5)
    assert model.fingerprint() == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_both_stacks_of_an_encoder_decoder_are_read():
    model, texts, answers = opened("t5"), prompts(6, 3), prompts(4, 2)
    recorded = [model.record([a], [b], attention_mask="all") for a, b in zip(texts, answers, strict=True)]
    for site in ("encoder.1.resid_post", "decoder.1.cross_out", "logits"):
        data = model.activations(texts, site, completions=answers)
        wanted = torch.cat([one[site][0] for one in recorded])
        torch.testing.assert_close(torch.from_numpy(data[site].values), wanted, atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="the sites are in two stacks"):
        model.activations(texts, ["encoder.1.resid_post", "decoder.1.cross_out"], completions=answers)


def test_positions_are_chosen_in_every_prompt():
    model, texts = opened("llama"), prompts(6, 3)
    whole = model.activations(texts, "1.z")
    last = model.activations(texts, "1.z", positions=-1)
    assert last["1.z"].dims == ("token", "1.z head", "1.z feature")
    assert last.position.values.tolist() == [5, 2]
    assert np.array_equal(last["1.z"].values, whole["1.z"].values[[5, 8]])
    two = model.activations(texts, "1.z", positions=[0, -2])
    assert two.position.values.tolist() == [0, 4, 0, 1]
    for wrong in (3, -4):
        with pytest.raises(ValueError, match=f"prompt 1 has 3 tokens, so there is no position {wrong}"):
            model.activations(texts, "1.z", positions=wrong)
    with pytest.raises(SiteError, match="has two positions to each number"):
        load_eager().activations(texts, "1.pattern")
    with pytest.raises(ValueError, match="name at least one"):
        model.activations(texts, [])


def load_eager():
    model = opened("gpt2")
    model.taps.table[1]["pattern"] = model.taps.table[1]["attn_out"]
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_activations_of_a_changed_run_are_those_of_plain_hooks(name):
    """An edit in front is heard behind it, and itself where it is made; along a route too."""
    model, texts = opened(name), prompts(6, 3)
    shift = torch.randn(model.width, generator=torch.Generator().manual_seed(1))
    change = Variant([Add("1.resid_post", shift, -1), Scale("0.mlp_out", 2.0)])
    data = model.activations(texts, ["0.mlp_out", "1.resid_post", "logits"], variant=change)
    rows = []
    for row in texts:
        recording = model.record([row], attention_mask="all")
        rows.append(naive.logits(model, recording, change)[0])
    torch.testing.assert_close(torch.from_numpy(data["logits"].values), torch.cat(rows), atol=2e-5, rtol=1e-4)
    plain = model.activations(texts, ["0.mlp_out"])
    assert np.allclose(data["0.mlp_out"], 2 * plain["0.mlp_out"], atol=1e-5)
    way = Route.order([0, 2, 2])
    on_route = model.activations(texts, ["2.resid_post"], variant=way)
    recording = model.record([texts[0]], attention_mask="all")
    with torch.no_grad():
        stream = recording.pre(0)
        for block in (0, 2, 2):
            stream = recording.run_block(block, stream, 1)
    found = torch.from_numpy(on_route["2.resid_post"].values[: len(texts[0])])
    torch.testing.assert_close(found, stream[0], atol=2e-5, rtol=1e-4)


def test_a_folder_is_written_whole_in_batches_that_fit(tmp_path, monkeypatch):
    """What a batch keeps is bounded by its bytes, whatever the number of prompts; the order is that of the
    prompts."""
    model, texts = opened("llama"), prompts(*[3 + i % 7 for i in range(40)])
    width, held, real = model.width * 4, [], activations_job.run_heard
    monkeypatch.setattr(activations_job, "HELD", 40 * 2 * width)

    def counted(model, inputs):
        held.append(inputs["input_ids"].numel())
        real(model, inputs)

    monkeypatch.setattr(activations_job, "run_heard", counted)
    data = model.activations(texts, ["1.resid_post", "2.mlp_out"], out=tmp_path / "acts")
    assert max(held) <= 40
    assert len(held) < len(texts) // 2
    wanted = model.activations(texts, ["1.resid_post", "2.mlp_out"])
    for name in ("1.resid_post", "2.mlp_out", "prompt", "position", "token_id"):
        assert np.array_equal(data[name].values, wanted[name].values), name
    assert data.attrs["weights_sha256"] == model.weights_sha256
    assert set(data.coords) == {"prompt", "position", "token_id"}
    held.clear()
    monkeypatch.setattr(activations_job, "HELD", 1 << 28)
    monkeypatch.setattr(activations_job, "TOKENS", 30)
    model.activations(texts, ["1.resid_post", "2.mlp_out"])
    assert 20 < max(held) <= 30, "tokens of a batch are bounded, too"
    held.clear()
    again = model.activations(texts, ["1.resid_post", "2.mlp_out"], out=tmp_path / "acts")
    assert not held, "the same activations are opened, not made again"
    assert np.array_equal(again["2.mlp_out"].values, wanted["2.mlp_out"].values)
    mark = json.loads((tmp_path / "acts" / "activations.json").read_text())
    assert mark["experiment"] == "activations"
    for change in ({"positions": -1}, {"variant": Scale("1.mlp_out", 2.0)}):
        with pytest.raises(
            RunFolderError, match="holds activations of other prompts, sites, positions or weights"
        ):
            model.activations(texts, ["1.resid_post", "2.mlp_out"], out=tmp_path / "acts", **change)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="is not empty"):
        model.activations(texts, "1.z", out=tmp_path / "letters")
    assert not held


def test_a_run_that_breaks_leaves_no_folder(tmp_path, monkeypatch):
    model, texts = opened("llama"), prompts(3, 4, 5)

    def broken(model, inputs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(activations_job, "run_heard", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        model.activations(texts, "1.z", out=tmp_path / "acts")
    assert list(tmp_path.iterdir()) == []
    assert not any(m._forward_hooks for m in model.hf.modules())


def test_a_run_ends_behind_the_last_site():
    model, ran = opened("llama"), []
    handles = [b.module.register_forward_hook(lambda m, a, o, i=b.index: ran.append(i)) for b in model.blocks]
    data = model.activations([5, 6, 7], ["1.mlp_out", "0.resid_pre"])
    assert ran == [0, 1]
    assert isinstance(data, xr.Dataset)
    model.activations([5, 6, 7], ["1.mlp_out", "logits"])
    assert ran == [0, 1, 0, 1, 2, 3]
    for handle in handles:
        handle.remove()
