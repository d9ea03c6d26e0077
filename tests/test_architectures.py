"""Architectures far beyond the test families: opened, self-checked, and swept beside full forwards with plain
hooks."""

from __future__ import annotations

import pytest
import torch

from regraft.model.load import load
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Replace, Scale, Variant, Zero
from small import METRIC, ids, recorded, reference
from tools.small_architectures import tiny
from variants import all_sites

SWEPT = {
    "causal": (
        """afmoe apertus arcee bitnet bloom biogpt cohere cohere2 ctrl codegen deepseek_v2 diffllama
        doge ernie4_5 exaone4 falcon falcon_mamba gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo
        gpt_neox
        gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoehybrid helium hunyuan_v1_dense
        inkling_text jamba jetmoe
        lfm2 llama llama4_text mamba mamba2 minicpm3 minimax ministral mistral mixtral modernbert-decoder
        moshi mpt nanochat
        nemotron olmo olmo2 olmo3 olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
        qwen3_moe
        recurrent_gemma rwkv seed_oss smollm3 stablelm starcoder2 vaultgemma xglm xlstm youtu""".split()
    ),
    "masked": (
        """bert camembert convbert deberta deberta-v2 distilbert electra ernie esm fnet layoutlm megatron-bert
        modernbert mpnet mra nystromformer rembert roberta roc_bert roformer tapas xlm-roberta yoso""".split()
    ),
    "seq2seq": (
        """bart bigbird_pegasus blenderbot blenderbot-small led longt5 m2m_100 marian mbart mt5 nllb-moe
        pegasus plbart
        switch_transformers t5 umt5""".split()
    ),
}
NAMED = [(kind, name) for kind, names in SWEPT.items() for name in names]
QUICK = ("falcon", "granite", "llama4_text", "recurrent_gemma", "rwkv", "jetmoe", "moshi", "xlstm", "gpt_neo")
"""Found without a table of names: additions in place, constant factors, sums, norms between; and kinds of
blocks."""


def some(model, other):
    """Every site of the outer blocks set to zero, and replaced at one position; a block left out, two
    exchanged."""
    count = len(model.blocks)
    sites = [site for block in sorted({0, count - 1}) for site in all_sites(model, block)]
    variants = [
        Variant([edit]) for site in sites for edit in (Zero(site), Replace(site, other[site], position=2))
    ]
    return [
        *variants,
        Variant(route=Route.skip(count, {count - 1})),
        Variant(route=Route.swap(count, count - 2, count - 1)),
    ]


def check_swept(kind, name):
    model = load(tiny(kind, name), pack=False)
    assert model.check.replay == 0.0
    assert model.check.closure <= model.rounding
    recording, other = recorded(model, 7, 7), recorded(model, 7, 7, seed=50)
    variants = some(model, other)
    wanted = reference(model, recording, variants)
    assert float((sweep(recording, variants, METRIC).values["d"] - wanted).abs().max()) <= 1e-5 * max(
        1.0, float(wanted.abs().max())
    )


@pytest.mark.parametrize("name", QUICK)
def test_architectures_without_the_usual_names_are_swept_as_by_hooks(name):
    check_swept("causal", name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), NAMED, ids=[f"{kind}-{name}" for kind, name in NAMED])
def test_every_architecture_is_swept_as_by_hooks(kind, name):
    check_swept(kind, name)


def test_blocks_that_cannot_be_called_again_are_one_sentence():
    with pytest.raises(
        ValueError,
        match="the blocks of PegasusXForConditionalGeneration cannot be called again by themselves",
    ):
        load(tiny("seq2seq", "pegasus_x"), pack=False)


def test_additions_in_place_are_heard_before_they_are_written_to():
    """Falcon adds the attention's output to the MLP's in place: what was returned is the sum afterwards."""
    model = load(tiny("causal", "falcon"), pack=False)
    recording = model.record([ids(7, 1)])
    block = model.blocks[0]
    found = recording["0.attn_out"] + recording["0.mlp_out"]
    assert torch.allclose(found, recording.post(0) - recording.pre(0), atol=1e-6)
    mlp = block.branch("mlp")
    with torch.no_grad():
        assert torch.allclose(mlp.projection(recording["0.mlp_act"]), recording["0.mlp_out"], atol=1e-6)


def test_a_block_that_writes_to_its_own_input_does_not_spoil_the_recording():
    model = load(tiny("causal", "llama"), pack=False)
    wanted = model.record([ids(7, 1)])["logits"]
    own = type(model.blocks[1].module).forward

    def in_place(module, hidden_states, *args, **kwargs):
        out = own(module, hidden_states, *args, **kwargs)
        hidden_states.copy_(out)
        return hidden_states

    hf = tiny("causal", "llama")
    hf.model.layers[1].forward = in_place.__get__(hf.model.layers[1])
    changed = load(hf, pack=False)
    assert changed.parts.written == {1}
    recording = changed.record([ids(7, 1)])
    before = recording.pre(1).clone()
    assert torch.allclose(recording["logits"], wanted, atol=1e-6)
    sweep(recording, [Variant([Zero("2.mlp_out")]), Variant([Scale("1.resid_pre", 2.0)])], METRIC)
    assert torch.equal(recording.pre(1), before)


def test_a_constant_factor_is_what_is_added_and_must_be_the_blocks_own():
    model = load(tiny("causal", "granite"), pack=False)
    recording = model.record([ids(7, 1)])
    branch = model.blocks[1].branch("mlp")
    assert branch.factor == 0.22
    with torch.no_grad():
        raw = branch.projection(recording["1.mlp_act"])
    assert torch.allclose(recording["1.mlp_out"], 0.22 * raw, atol=1e-7)
    assert torch.allclose(recording["1.resid_mid"] + recording["1.mlp_out"], recording.post(1), atol=1e-6)
    neurons = [Variant([Zero(f"{block}.neuron.{n}")]) for block in range(4) for n in (0, 11, 40)]
    assert torch.allclose(
        sweep(recording, neurons, METRIC).values["d"], reference(model, recording, neurons), atol=1e-5
    )
    hf = tiny("causal", "granite")
    for block in hf.model.layers:
        block.residual_multiplier = torch.tensor(0.22)
    foreign = load(hf, pack=False)
    assert foreign.blocks[0].branches == (), "a factor that is no constant of the block is not believed"


REASONS = {
    "granitemoehybrid": (
        r"it adds three at once \(mamba.out_proj, block_sparse_moe.experts, shared_mlp.output_linear\)"
    ),
    "minimax": r"lets go of the stream that came in and adds to post_attention_layernorm",
    "rwkv": r"lets go of the stream that came in and adds to pre_ln \(attention.output, feed_forward\)",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_block_that_does_more_than_add_says_what(name):
    model = load(tiny("causal", name), pack=False)
    with pytest.raises(ValueError, match=REASONS[name]):
        model.site("0.mlp_out")


def test_values_are_known_by_what_the_attention_is_given_where_a_gate_or_a_norm_stands_behind():
    gated = load(tiny("causal", "afmoe"), pack=False)
    recording = gated.record([ids(7, 1)])
    assert all(gated.taps.exists(block.index, name) for block in gated.blocks for name in "qkv")
    other = gated.record([ids(7, 2)])
    variants = [Variant([Replace(f"2.{name}", other[f"2.{name}"], position=3)]) for name in "qkv"]
    assert torch.allclose(
        sweep(recording, variants, METRIC).values["d"], reference(gated, recording, variants), atol=1e-5
    )
    told = load(tiny("causal", "diffllama"), pack=False)
    with pytest.raises(
        ValueError, match=r"not their value \(between them stand groupnorm\), so roles are not sure"
    ):
        told.site("1.v")


def test_the_token_table_is_the_one_that_was_given_the_ids():
    """Tables of positions are called with whole numbers too, before the token table where a model is built
    so."""
    hf = tiny("causal", "gpt2")
    names = [name for name, _ in hf.transformer.named_children()]
    assert names.index("wte") < names.index("wpe")
    own = hf.transformer.forward

    def positions_first(*args, **kwargs):
        hf.transformer.wpe(torch.arange(3)[None])
        return own(*args, **kwargs)

    hf.transformer.forward = positions_first
    assert load(hf, pack=False).parts.embedding is hf.transformer.wte
