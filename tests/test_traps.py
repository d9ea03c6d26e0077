"""Mistakes planted in the source of rebuilt models: each is found at its stage and named, and no other."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rebuilding import WORDS, saved
from regraft.checkpoint.hub import resolve
from regraft.reference.checkpoint_reader import Rebuilt, model_inputs, open_rebuilt, token_ids
from regraft.reference.diagnose import causes
from regraft.reference.official import Order, answer
from regraft.reference.stage_compare import SameTensorError, compare, matching_decimals
from regraft.reference.verify import TEXTS, order_of, verify_stages
from regraft.reporting.figures.rebuild_figures import split


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Specimens and a random BERT with their official tensors, asked for once."""
    folder = tmp_path_factory.mktemp("bert")
    saved("bert, masked head", folder)
    found = {}
    for name, source in (
        ("gpt2", "specimen:gpt2"),
        ("qwen3", "specimen:qwen3"),
        ("t5", "specimen:t5"),
        ("bert", str(folder)),
    ):
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
    ("t5", 'resid_BQD, sees_BQQ, bias_1HQQ', 'resid_BQD, sees_BQQ, bias_1HQQ if i == 0 else bias_1HQQ * 0', "encoder.1.scores",
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
     "resid_BTD = resid_BTD + layer_norm(attn_BTD, w, f\"{p}attention.output.LayerNorm\", s.epsilon)",
     "0.attn_norm",
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


@pytest.mark.parametrize(("name", "old", "new", "stage", "sentence"), PLANTED)
def test_carried_on_it_parts_where_the_trap_is_and_nowhere_else(name, old, new, stage, sentence, clean):
    """A mistake in every block parts in every block, at its own stage; what stands behind it agrees."""
    rebuilt, inputs, official = clean[name]
    weights = {key: tensor.clone() for key, tensor in rebuilt.weights.items()}
    module = planted(rebuilt, (old, new))
    torch.manual_seed(0)
    with torch.no_grad():
        verdict = verify_stages(
            module.stages(weights, rebuilt.settings, inputs), official, weights, rebuilt.heads, carry=True
        )
    assert verdict.stuck == ""
    assert verdict.parted == stage
    kinds = {split(one.stage)[1].removeprefix("cross_") for one in verdict.partings}
    small = "epsilon" in sentence  # passes in some blocks, and a matrix behind it makes it larger
    assert kinds == {split(stage)[1]} or small, "of T5's decoder both attentions"
    assert all(one.carried for one in verdict.partings)
    assert len(verdict.rows) >= len(list(rebuilt.stages(inputs))) - 1, "to the end"
    assert verdict.rows[-1].stage == "logits" or name == "bert"
    assert all(torch.equal(tensor, rebuilt.weights[key]) for key, tensor in weights.items())


def test_what_cannot_stand_in_ends_the_comparison(clean):
    rebuilt, inputs, official = clean["gpt2"]
    turned = (
        (stage, tensor.transpose(1, 2).contiguous() if stage == "0.qkv" else tensor)
        for stage, tensor in rebuilt.stages(inputs)
    )
    with torch.no_grad():
        verdict = verify_stages(turned, official, rebuilt.weights, 4, carry=True)
    assert verdict.rows[-1].stage == "0.qkv"
    assert verdict.stuck.startswith("the official tensor has the shape ")
    assert not verdict.partings[-1].carried


def test_a_copy_that_is_yielded_is_not_reached(clean):
    """What the code goes on with is its own: the stages behind part as well, rather than seem right."""
    rebuilt, inputs, official = clean["gpt2"]
    module = planted(
        rebuilt,
        (
            'yield "embed.sum", resid_BTD',
            'resid_BTD = resid_BTD + 0.01; yield "embed.sum", resid_BTD.clone()',
        ),
    )
    with torch.no_grad():
        verdict = verify_stages(
            module.stages(rebuilt.weights, rebuilt.settings, inputs), official, rebuilt.weights, 4, carry=True
        )
    assert [one.stage for one in verdict.partings][:2] == ["embed.sum", "0.resid_mid"]


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
        with pytest.raises(
            SameTensorError, match=r"stage 0\.mlp_act: the rebuilt tensor lies in the official one's memory"
        ):
            verify_stages(reading(), official, {}, 4)
        view = (
            (stage, official["embed.sum"][:, :] if stage == "embed.sum" else t)
            for stage, t in rebuilt.stages(inputs)
        )
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
    assert causes("0.attn_out", official + 1e-4 * torch.randn(1, 5, 8), official, {}, {}, 2)[0].startswith(
        "no known trap"
    )
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
    assert [matching_decimals(d) for d in (0.0, 4.9e-6, 5.1e-6, 0.4, 3.0, float("inf"), float("nan"))] == [
        17,
        5,
        4,
        0,
        0,
        0,
        0,
    ]
