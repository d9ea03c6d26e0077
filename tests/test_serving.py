"""What vLLM's plugin knows without vLLM: switches, and how an exported folder's config is read (with vLLM:
`test_vllm`)."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import pytest

import regraft
from regraft.export.grafted_model import grafted_config
from regraft.modules.backbone import mlps_of
from regraft.modules.hf_model import GraftedConfig
from regraft.modules.transcoder import Transcoders, TranscoderShape
from regraft.serving.vllm_plugin import ServedConfig, Switches, adapters_of, place_of, switch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = regraft.load("specimen:qwen3")
    graft = Transcoders(TranscoderShape(model.width, 8, len(mlps_of(model)), dec_bias=False))
    out = tmp_path_factory.mktemp("served")
    grafted_config(model, [graft]).save_pretrained(out)
    return out


def test_the_entry_point_is_there_and_costs_no_vllm():
    (found,) = entry_points(group="vllm.general_plugins", name="regraft")
    assert found.load().__name__ == "register"
    assert "vllm" not in sys.modules


def test_sizes_are_the_plain_models(folder):
    config = ServedConfig.from_pretrained(folder)
    plain = config.get_text_config()
    assert (plain.model_type, plain.architectures) == ("qwen3", ["Qwen3ForCausalLM"])
    assert plain.num_hidden_layers == 12
    assert plain is config.get_text_config(), "vLLM writes into it, so it is one"
    assert plain.tie_word_embeddings is bool(GraftedConfig.from_pretrained(folder).ties)
    assert config.switched == {}
    again = ServedConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict(), "what was made of it is not a part of it"
    shape, places = adapters_of(config)
    assert shape == {"width": 192, "features": 8, "blocks": 12, "dec_bias": False}
    assert places == [f"model.layers.{block}.mlp" for block in range(12)]


def test_other_grafts_are_for_transformers():
    config = ServedConfig(
        base={"model_type": "qwen3"},
        grafts=[{"sizes": {"kind": "byte embedding"}, "places": ["model.embed_tokens"]}],
    )
    with pytest.raises(ValueError, match="this folder holds byte embedding: open it with transformers"):
        adapters_of(config)
    with pytest.raises(ValueError, match="this folder holds no graft"):
        adapters_of(ServedConfig(base={"model_type": "qwen3"}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"scaled": {"5.feature.3": 0.0}, "clamped": {"5.feature.3": 1.0}},
            "5.feature.3 is to be scaled and",
        ),
        ({"scaled": {"5.features.3": 0.0}}, "'5.features.3' is no feature: write BLOCK.feature.NUMBER"),
        ({"clamped": {"5.feature.-3": 0.0}}, "'5.feature.-3' is no feature"),
    ],
)
def test_switches_say_what_is_wrong(given, said):
    with pytest.raises(ValueError, match=said):
        Switches(**given)
    with pytest.raises(ValueError, match=said):
        switch(None, **given)


def test_places_are_read():
    assert place_of("5.feature.317") == (5, 317)
