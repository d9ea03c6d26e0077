"""Features that adapters are held against: neurons and random directions, read by the adapters' code."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import regraft
from regraft.features import feature_sources
from regraft.features.feature_pass import feature_pass
from regraft.features.feature_sources import adapter_features, neuron_features, random_features
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import beside
from small import opened
from test_features import text_of
from transcoder_models import pair, trained

DOWN = {"llama": "down_proj", "gpt2": "c_proj", "qwen3": "down_proj", "gpt_neox": "dense_4h_to_h"}


@pytest.mark.parametrize("name", list(DOWN))
def test_neurons_are_what_the_last_projection_is_given(name):
    """By hooks of our own, adapters in place; a neuron's direction is its column of the projection."""
    base, _ = pair(name)
    graft, text = trained(base), text_of(6)
    source = neuron_features(base, graft)
    inputs = {"input_ids": text.rows(range(6))[:, 0]}
    with torch.no_grad():
        found = source.values(inputs)
    seen, hooks = [], []
    for mlp in mlps_of(base):
        down = mlp.get_submodule(DOWN[name])
        hooks.append(down.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach())))
    with torch.no_grad(), beside(base.hf, mlps_of(base), graft):
        base.hf(**inputs)
    for hook in hooks:
        hook.remove()
    assert source.blocks == len(seen) == len(found)
    for block, (ours, theirs) in enumerate(zip(found, seen, strict=True)):
        torch.testing.assert_close(ours, theirs.view_as(ours), atol=1e-5, rtol=1e-4)
        weight = mlps_of(base)[block].get_submodule(DOWN[name]).weight.detach()
        rows_FD = weight if name == "gpt2" else weight.T
        assert rows_FD.shape[0] == source.features
        torch.testing.assert_close(source.columns(block), rows_FD, atol=1e-5, rtol=1e-4)


def test_random_directions_are_as_frequent_and_as_long_as_the_features():
    base, _ = pair("llama")
    graft, text = trained(base), text_of(40)
    own = feature_pass(base, adapter_features(base, graft), {"all": text}, most=40)
    drawn = random_features(base, graft, [text], seed=3)
    found = feature_pass(base, drawn, {"all": text}, most=40)
    for block in range(4):
        np.testing.assert_allclose(found.frequency_F(block), own.frequency_F(block), atol=1 / own.tokens)
        lengths = drawn.columns(block).norm(dim=1)
        torch.testing.assert_close(lengths, graft[block].dec.weight.detach().norm(dim=0))
        cosine = torch.cosine_similarity(drawn.columns(block), graft[block].dec.weight.detach().T)
        assert float(cosine.mean().abs()) < 0.2, "they point elsewhere"
    assert 0.02 < np.mean([own.frequency_F(block).mean() for block in range(4)]) < 0.98
    again = random_features(base, graft, [text], seed=3)
    other = random_features(base, graft, [text], seed=4)
    torch.testing.assert_close(again.columns(2), drawn.columns(2))
    assert float((other.columns(2) - drawn.columns(2)).abs().max()) > 0.01


def test_a_direction_in_the_place_of_a_dead_feature_is_dead():
    base, _ = pair("llama")
    graft, text = trained(base), text_of(20)
    with torch.no_grad():
        graft[1].enc.bias[5] = -1e6
    found = feature_pass(base, random_features(base, graft, [text]), {"all": text}, most=20)
    assert found.frequency_F(1)[5] == 0.0
    assert found.frequency_F(1)[6] > 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_pairs")
def test_a_page_of_each_kind_and_no_files_of_what_is_no_adapter(tmp_path, monkeypatch):
    from test_transcoder_jobs import SHORT

    monkeypatch.setattr(feature_sources, "MATCHED", 8)  # sequences that random directions are measured on
    base, target = regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")
    regraft.fit_transcoder(base, target, tmp_path / "a", features=8, plan=SHORT)
    folder = tmp_path / "a" / "graft"
    for of, count, title, noun in (
        ("neurons", 512, "Neurons of the MLPs", "neuron"),
        ("random", 8, "Random directions in the", "random"),
    ):
        data = regraft.describe_features(folder, tmp_path / of, most=4, k=2, of=of)
        assert data.sizes["feature"] == count
        assert data.attrs["of"] == of
        page = (tmp_path / of / "page" / "index.html").read_text()
        assert title in page
        assert f'NOUN = "{noun}"' in page
    with pytest.raises(ValueError, match="neighbours' files hold adapters, not neurons: leave out --neigh"):
        regraft.describe_features(folder, tmp_path / "n", most=4, of="neurons", neighbours=True)
    with pytest.raises(ValueError, match="of is 'neuron': choose of adapters, random, neurons"):
        regraft.describe_features(folder, tmp_path / "n", most=4, of="neuron")
    assert not (tmp_path / "n").exists()


def test_blocks_of_other_widths_have_no_common_page():
    model = opened("llama")
    small = torch.nn.Linear(5, model.width, bias=False)
    model.blocks[1].module.mlp.down_proj = small
    taps = SimpleNamespace(
        main_blocks=model.main_blocks,
        tap=lambda site: SimpleNamespace(
            module=small if site.startswith("1.") else model.blocks[0].module.mlp.down_proj
        ),
    )
    with pytest.raises(ValueError, match=r"the blocks' MLPs have \[5, \d+\] neurons: one page needs equally"):
        neuron_features(taps, None)
