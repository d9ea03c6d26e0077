"""Facts of single blocks in a configuration, types on disk, encoders, and recipes that are written without
measuring others."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from families import _DECODER, FAMILIES
from regraft import load
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.export.block_config import adjusted
from regraft.reporting.drawings import drawing_of
from regraft.sweeps import sweep as engine
from small import opened

pytestmark = pytest.mark.usefixtures("quick_linearity")

PRUNE, REORDER, QUANTIZE = (
    partial(run_experiment, experiments()[name]) for name in ("prune", "reorder", "quantize")
)
TEXT = dict(prompts=["5 6 7 8 9", "10 11 12"], tokens=3)


class Config:
    """A configuration of four blocks that says things of them in every way."""

    def __init__(self):
        self.num_hidden_layers = 4
        self.layer_types = ["a", "b", "c", "d"]
        self.mlp_only_layers = [0, 3]
        self.attention_types = [[["global", "local"], 2]]
        self.hybrid_override_pattern = "M-*E"
        self.first_k_dense_replace = 2
        self.eos_token_id = [2, 3]
        self.rope_layers = 7

    def get_text_config(self):
        return self


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        ([0, 2, 3], (["a", "c", "d"], [0, 2], [["global"], ["global"], ["local"]], "M*E", 1)),
        ([3, 1, 1], (["d", "b", "b"], [0], [["local"], ["local"], ["local"]], "E--", 2)),
        ([0, 1, 2, 3], (["a", "b", "c", "d"], [0, 3], [["global"], ["local"]] * 2, "M-*E", 2)),
    ],
)
def test_facts_of_blocks_follow_the_blocks(kept, wanted):
    found = adjusted(Config(), 4, kept, decoder=False)
    kinds = [kind for kind, times in found.attention_types for _ in range(times)]
    assert (
        found.layer_types,
        found.mlp_only_layers,
        kinds,
        found.hybrid_override_pattern,
        found.first_k_dense_replace,
    ) == wanted
    assert found.num_hidden_layers == len(kept)
    assert (found.eos_token_id, found.rope_layers) == ([2, 3], 7), "what is not about blocks stays"


def moe(**changes):
    torch.manual_seed(1)
    return hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(
            **{**_DECODER, **changes}, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        )
    ).eval()


def neo():
    torch.manual_seed(1)
    return hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=4, num_heads=4,
            max_position_embeddings=128,
            attention_types=[[["global", "local"], 2]], window_size=4, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    "made", [lambda: moe(mlp_only_layers=[0]), neo], ids=["mlp_only_layers", "attention_types"]
)
def test_blocks_of_two_kinds_are_pruned_and_stay_what_they_were(made, tmp_path):
    model = load(made(), pack=False)
    PRUNE(model, drop=[0], save=str(tmp_path / "pruned"), **TEXT)
    read = load(tmp_path / "pruned", pack=False)
    for place, block in enumerate((1, 2, 3)):
        whole = model.blocks[block].module
        assert [type(m) for m in read.blocks[place].module.modules()] == [type(m) for m in whole.modules()]
    said = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert said.get("mlp_only_layers", []) == []
    if "attention_types" in said:
        assert [kind for kinds, times in said["attention_types"] for kind in kinds * times] == [
            "local",
            "global",
            "local",
        ]


def test_what_a_period_cannot_say_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    model = load(moe(decoder_sparse_step=2), pack=False)
    monkeypatch.setattr(type(model), "record", lambda *args, **kwargs: pytest.fail("something was measured"))
    sentence = r"block 0 would have .* for the .*; the configuration says .*decoder_sparse_step=2"
    with pytest.raises(ValueError, match=sentence) as told:
        PRUNE(model, drop=[0], save=str(tmp_path / "pruned"), **TEXT)
    assert str(tmp_path) not in str(told.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["prune", "quantize"])
def test_half_precision_stays_half_precision_on_disk(change, tmp_path):
    torch.manual_seed(1)
    small = FAMILIES["qwen3"]().eval().to(torch.bfloat16)
    small.save_pretrained(tmp_path / "given")
    model = load(tmp_path / "given", pack=False)
    assert model.dtype == torch.float32, "on a processor it computes in float32"
    out = tmp_path / "made"
    if change == "prune":
        PRUNE(model, drop=[1], save=str(out), **TEXT)
    else:
        QUANTIZE(model, recipe="uniform", save=str(out), format="float", group=16, **TEXT)
    with safe_open(out / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    if change == "prune":
        for place, block in enumerate((0, 2, 3)):
            for name, p in small.model.layers[block].named_parameters():
                assert torch.equal(tensors[f"model.layers.{place}.{name}"], p), name
        whole, made = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("given", "made"))
        assert made < whole


@pytest.mark.parametrize("name", ["bert", "modernbert", "bert_headless"])
def test_encoders_are_pruned_and_reordered_by_the_distance_of_their_stream(name, tmp_path):
    model = opened(name)
    texts = ["5 6 7 8 9", "10 11 12"]
    data = PRUNE(model, drop=[1], prompts=texts, save=str(tmp_path / "pruned") if name == "bert" else "")
    away = []
    for text in texts:
        recording = model.record(text)
        stream = recording.pre(0)
        for block in (0, 2, 3):
            stream = recording.run_block(block, stream, rows=1)
        clean = recording.post(3)
        away += ((stream - clean).norm(dim=-1) / clean.norm(dim=-1))[0].tolist()
    assert float(data.distance[1]) == pytest.approx(sum(away) / len(away), rel=1e-4)
    assert data.attrs["control_deviation"] <= 1e-5
    swapped = REORDER(model, order=[0, 2, 1, 3], prompts=texts)
    assert float(swapped.distance[1]) > 0
    with pytest.raises(ValueError, match="name them with --drop"):
        PRUNE(model, prompts=texts)
    assert "of its length away from the whole model's" in drawing_of(data).finding(data)
    assert drawing_of(data).figures(data)


def test_one_recipe_is_written_without_measuring_the_others(tmp_path, monkeypatch):
    rows = []
    own = engine._Sweep.run

    def counted(self):
        rows.append(1)
        return own(self)

    monkeypatch.setattr(engine._Sweep, "run", counted)
    model = opened("qwen3")
    data = QUANTIZE(model, recipe="uniform", save=str(tmp_path / "u"), format="float", group=16, **TEXT)
    few = len(rows)
    rows.clear()
    whole = QUANTIZE(opened("qwen3"), group=16, **TEXT)
    assert few < len(rows) / 5
    at = whole.recipe.values.tolist().index("uniform")
    assert float(data.loss[1]) == pytest.approx(float(whole.recipe_loss[at]), abs=1e-5)
    assert data.recipe_bits.values.tolist() == whole.recipe_bits[at].values.tolist() == [4] * 4
    assert "opens with transformers" in data.attrs["saved"]
    with pytest.raises(
        ValueError, match="there is no recipe 'best': choose among uniform, ends protected, oracle"
    ):
        QUANTIZE(model, recipe="best", save=str(tmp_path / "v"), **TEXT)
