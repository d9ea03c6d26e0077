"""What vLLM's plugin knows without vLLM: switches, and how an exported folder's config is read (with vLLM:
`test_vllm`)."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
import torch

import regraft
from regraft.export.grafted_model import grafted_config
from regraft.modules.backbone import mlps_of
from regraft.modules.hf_model import GraftedConfig
from regraft.modules.transcoder import Transcoders, TranscoderShape
from regraft.serving.vllm_plugin import (
    EXTENSION,
    ServedConfig,
    Switches,
    adapters_of,
    check_features,
    mlp_at,
    place_of,
    share_of,
    switch,
    switches_of,
)


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
        ({"strength": float("nan")}, "nan is no finite number"),
        ({"scaled": {"5.feature.3": "a"}}, "'a' is no finite number"),
    ],
)
def test_switches_say_what_is_wrong(given, said):
    with pytest.raises(ValueError, match=said):
        Switches(**given)
    with pytest.raises(ValueError, match=said):
        switch(None, **given)


def test_places_are_read():
    assert place_of("5.feature.317") == (5, 317)


def test_what_an_option_says_is_looked_at():
    assert switches_of({"strength": 0.5}) == Switches(0.5)
    with pytest.raises(ValueError, match="switched says 'strengh': it may say strength, scaled, clamped"):
        switches_of({"strengh": 0.5})
    with pytest.raises(
        ValueError, match=r"there is no feature 12\.feature\.0: there are blocks 0 to 11 with"
    ):
        check_features(Switches(scaled={"12.feature.0": 0.0}), 12, 8)
    check_features(Switches(scaled={"11.feature.7": 0.0}), 12, 8)


def test_features_part_over_processes_or_are_refused():
    assert [share_of(12, 3, rank) for rank in range(3)] == [range(4), range(4, 8), range(8, 12)]
    with pytest.raises(ValueError, match="12 features do not part evenly over 5 processes: choose a tensor"):
        share_of(12, 5, 0)


def test_an_mlp_that_is_not_there_is_named():
    root = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert mlp_at(root, "0.0") == (root[0], "0", root[0][0])
    with pytest.raises(ValueError, match=r"vLLM's Sequential has no module 0\.mlp, which an adapter could"):
        mlp_at(root, "0.mlp")


def engine(folder, extension=EXTENSION, kept=True):
    """As much of an engine as a switch asks."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=ServedConfig.from_pretrained(folder)),
        parallel_config=SimpleNamespace(worker_extension_cls=extension),
    )
    calls = []
    return SimpleNamespace(
        llm_engine=SimpleNamespace(vllm_config=config), reset_prefix_cache=lambda: kept, calls=calls,
        collective_rpc=lambda name, kwargs: calls.append((name, kwargs)),
    )  # fmt: skip


def test_an_engine_is_switched_or_says_why_not(folder):
    one = engine(folder)
    switch(one, 0.5, clamped={"3.feature.7": 1.5})
    wanted = {"strength": 0.5, "scaled": {}, "clamped": {"3.feature.7": 1.5}}
    assert one.calls == [("switch_adapters", wanted)]
    for wrong, given, said in (
        (engine(folder), {"scaled": {"3.feature.8": 0.0}}, "there is no feature 3.feature.8"),
        (engine(folder, extension=""), {}, "make it with worker_extension_cls="),
        (engine(folder, kept=False), {}, "still in use: switch when nothing is written"),
    ):
        with pytest.raises(ValueError, match=said):
            switch(wrong, **given)
    assert one.calls == [("switch_adapters", wanted)]


def test_transformers_opens_what_vllm_made_known(folder):
    """In a process of its own, since what transformers knows is the process's."""
    code = (
        "import sys, transformers, regraft; from regraft.serving.vllm_plugin import known_to_transformers;"
        " known_to_transformers(); known_to_transformers();"
        " config = transformers.AutoConfig.from_pretrained(sys.argv[1]);"
        " model = transformers.AutoModelForCausalLM.from_config(config);"
        " print(type(config).__name__, type(model).__name__, len(model.base.model.layers))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["ServedConfig", "GraftedModel", "12"], done.stderr[-2000:]
