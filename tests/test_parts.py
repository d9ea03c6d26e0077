"""Parts are found by structure, proved by identities, and a planted fault is seen."""

from __future__ import annotations

import copy
from dataclasses import replace as with_changes

import pytest
import torch

import naive
from families import FAMILIES, VOCAB
from regraft.core.structure import largest_difference
from regraft.model.load import load
from regraft.model.selfcheck import check
from regraft.model.sites import SiteError, Tap, packed_taps
from regraft.model.summary import part_rows, site_rows
from regraft.sweeps.metric_kinds import LogitDifference
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Replace, Variant, Zero
from unknown_decoder import OwnConfig, OwnDecoder

METRIC = LogitDifference("d", "logits", tokens=(7, 9))


def opened(name, **options):
    torch.manual_seed(2)
    return load(FAMILIES[name]().eval(), pack=False, **options)


def ids(length, seed=0):
    return torch.randint(5, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_an_unknown_decoder_opens_and_sweeps():
    torch.manual_seed(0)
    model = load(OwnDecoder(OwnConfig()).eval(), pack=False)
    assert model.check.replay == 0.0
    assert model.parts.stacks[0].path == "tower"
    assert (model.parts.final_norm_path, model.parts.head_path, model.parts.embedding_path) == (
        "last_norm",
        "unembed",
        "words",
    )
    assert all(
        model.taps.exists(b, s)
        for b in range(3)
        for s in ("attn_out", "mlp_out", "q", "k", "v", "z", "mlp_act")
    )
    assert model.tap("1.z").heads == 3
    recording = model.record([ids(6), ids(5, 1)])
    variants = [
        Variant([Zero("1.head.2")]),
        Variant([Zero("0.neuron.7")]),
        Variant(route=Route.swap(3, 0, 2)),
    ]
    wanted = torch.stack(
        [naive.logits(model, recording, v)[range(2), recording.lengths_B - 1] for v in variants]
    )
    got = sweep(recording, variants, METRIC).values["d"]
    assert torch.allclose(got, wanted[..., 7] - wanted[..., 9], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parallel", "norms"),
    [("gpt_neox", True, "none"), ("gptj", True, "none"), ("cohere2", True, "none"), ("gpt2", False, "none"),
     ("gemma2", False, "out"), ("olmo2", False, "out"), ("bert", False, "sum"), ("bart", False, "sum")],
)  # fmt: skip
def test_shape_of_the_block_is_told_from_the_run(name, parallel, norms):
    block = opened(name).main_blocks[0]
    assert block.parallel is parallel
    found = {
        "out" if b.out_norm is not None else "sum" if b.sum_norm is not None else "none"
        for b in block.branches
    }
    assert found == {norms}


def test_hybrid_and_recurrent_blocks_have_only_the_sites_that_exist():
    hybrid = opened("qwen3_5")
    with pytest.raises(SiteError, match="linear attention forms no pattern"):
        hybrid.site("0.pattern")
    assert hybrid.site("0.attn_out").block == 0
    mamba = opened("mamba2")
    with pytest.raises(SiteError, match="this block has no attention"):
        mamba.site("1.z")
    with pytest.raises(SiteError, match="no MLP"):
        mamba.site("1.mlp_out")
    assert mamba.record([ids(5)])["1.mixer_out"].shape == (1, 5, 32)
    mixture = opened("mixtral")
    with pytest.raises(SiteError, match="mixture of experts"):
        mixture.site("0.neuron.3")


def test_patterns_come_from_eager_attention_and_mix_the_values():
    with pytest.raises(SiteError, match="attention='eager'"):
        opened("llama").site("0.pattern")
    model = opened("llama", attention="eager")
    recording = model.record([ids(6)])
    pattern, v = recording["1.pattern"], recording["1.v"]
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v.repeat_interleave(2, dim=2))
    assert torch.allclose(z, recording["1.z"], atol=1e-6)
    with pytest.raises(SiteError, match=r"can be read but not written.*CutAttention forbids"):
        sweep(recording, [Variant([Zero("1.pattern")])], METRIC)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (lambda w: w, True),
        (lambda w: None, False),
        (lambda w: w - 0.1, False),
        (lambda w: 1.01 * w, False),
        (lambda w: w[0], False),
    ],
)
def test_a_pattern_is_weights_that_are_shares(weights, told):
    """Of each key a share that is not negative, at most 1 in all, for each prompt, head and query: nothing
    else is shown."""
    torch.manual_seed(0)
    model = load(FAMILIES["llama"]().eval(), pack=False, attention="eager")
    attention = model.blocks[1].branch("attn").attention
    attention.register_forward_hook(lambda module, args, outcome: (outcome[0], weights(outcome[1])))
    recording = model.record(ids(6, 1))
    if told:
        assert recording["1.pattern"].shape == (1, 4, 6, 6)
    else:
        with pytest.raises(
            SiteError, match=r"1.pattern does not exist here: the attention returns no weights"
        ):
            recording["1.pattern"]


@pytest.mark.parametrize(
    ("name", "interleaved"), [("gpt_neox", True), ("bloom", True), ("gpt2", False), ("phi3", False)]
)
def test_packed_projections_divide_as_the_values_prove(name, interleaved):
    model = opened(name)
    tap = model.tap("0.v")
    width = tap.module.weight.shape[0 if name != "gpt2" else 1]
    assert torch.equal(tap.features, packed_taps(tap.module, 4, 8, interleaved)["v"].features)
    other = packed_taps(tap.module, 4, 8, not interleaved)["v"]
    assert isinstance(other, str) or not torch.equal(tap.features, other.features)
    assert len(tap.features) < width


def test_the_wrong_packed_layout_is_refused_by_the_values():
    model = opened("gpt_neox")
    for block in model.blocks:
        wrong = packed_taps(model.tap(f"{block.address}.v").module, 4, 8, interleaved=False)
        model.taps.table[block.index] |= {
            "v": Tap(wrong["v"].module, "output", wrong["v"].features.flip(0), 4)
        }
        model.taps.table[block.index]["z"] = Tap(block.branch("attn").projection, "input", None, 4)
    before = model.taps.table[0]["v"].features.clone()
    check(model)
    assert not torch.equal(model.taps.table[0]["v"].features, before)


def test_a_site_whose_identity_fails_is_refused():
    model = opened("llama")
    block = model.blocks[2]
    attn = block.branches[0]
    object.__setattr__(
        block, "branches", (with_changes(attn, projection=attn.attention.q_proj), block.branches[1])
    )
    found = check(model)
    assert "2.z" in found.refused
    with pytest.raises(SiteError, match="its projection does not give attn_out"):
        model.site("2.head.1")


def test_a_branch_that_does_not_close_is_refused():
    model = opened("llama")
    block = model.blocks[1]
    attn = with_changes(block.branches[0], module=block.branches[0].attention.q_proj)
    object.__setattr__(block, "branches", (attn, block.branches[1]))
    model.taps.table[1]["attn_out"] = Tap(attn.module, "output")
    found = check(model)
    assert "does not close" in found.refused["1.attn_out"]


def replay_gap(recording):
    stream = recording.pre(0)
    for block in recording.model.blocks:
        stream = recording.run_block(block.index, stream, 1)
    return largest_difference(stream, recording.post(len(recording.model.blocks) - 1))


def test_planted_faults_in_a_recording_are_seen():
    model = opened("llama")
    recording = model.record([ids(7), ids(4, 1)])
    assert replay_gap(recording) == 0.0
    swapped = copy.copy(recording)
    swapped.taken = copy.deepcopy(recording.taken)
    cos, sin = swapped.taken.calls[1].kwargs["position_embeddings"]
    swapped.taken.calls[1].kwargs["position_embeddings"] = (sin, cos)
    assert replay_gap(swapped) > 1e-4
    stale = copy.copy(recording)
    stale.taken = copy.deepcopy(recording.taken)
    stale.taken.calls[2].kwargs["attention_mask"] = recording.taken.calls[2].kwargs["attention_mask"].flip(0)
    assert replay_gap(stale) > 1e-4
    elsewhere = copy.copy(recording)
    elsewhere.taken = copy.deepcopy(recording.taken)
    elsewhere.taken.stream[1] = recording.taken.stream[2]
    wrong = elsewhere.run_block(1, elsewhere.pre(1), 1)
    assert largest_difference(wrong, recording.post(1)) > 1e-4


def test_a_wrong_block_in_the_parts_is_seen():
    model = opened("llama")
    first, second = model.blocks[:2]
    one, two = first.module, second.module
    object.__setattr__(first, "module", two)
    object.__setattr__(second, "module", one)
    with pytest.raises(ValueError, match="block 1 was called out of order"):
        check(model)


def test_a_model_that_cannot_be_replayed_is_not_swept():
    model = opened("llama")
    whole = model.blocks[1].module.forward
    model.blocks[1].module.forward = lambda *args, **kwargs: whole(*args, **kwargs) + 0.1 * torch.rand(1)
    model.check = check(model)
    assert model.check.replay > 1e-4
    with pytest.raises(ValueError, match="cannot be replayed"):
        sweep(model.record([ids(5)]), [Variant()], METRIC)


def test_an_argument_that_forgets_the_batch_is_seen():
    """Were BLOOM's alibi (batch x heads rows) not repeated, two rows could not be replayed together."""
    model = opened("bloom")
    alibi = {
        (block, path) for block, path in model.batched if path[-1] == "alibi" or path == ("kwargs", "alibi")
    }
    assert len(alibi) == 4
    model.batched = model.batched - alibi
    with pytest.raises(RuntimeError, match=r"must match|shape|size"):
        check(model)


def test_addresses_say_what_is_wrong_with_them():
    model = opened("t5")
    for address, words in {
        "resid_pre": "is no site",
        "3.resid_pre": "sites begin with 'encoder' or 'decoder'",
        "encoder.3.resid_pre": "3 blocks here, 0 to 2",
        "decoder.0.head": "needs a number",
        "encoder.0.head.9": "4 heads, 0 to 3",
        "encoder.0.neuron.48": "48 neurons, 0 to 47",
        "encoder.0.cross_out": "no cross-attention",
        "embed": "two stacks read one table",
        "decoder.0.nonsense": "is no site",
    }.items():
        with pytest.raises(SiteError, match=words):
            model.site(address)
    with pytest.raises(SiteError, match="no norm follows"):
        opened("bert").site("final_norm")


def test_recorded_sites_add_up():
    model = opened("gemma2")
    recording = model.record([ids(6)])
    assert torch.equal(recording["1.resid_mid"], recording["1.resid_pre"] + recording["1.attn_out"])
    assert torch.equal(recording["1.resid_mid"] + recording["1.mlp_out"], recording["1.resid_post"])
    assert torch.equal(recording["1.head.2"], recording["1.z"][:, :, 2])
    assert torch.equal(recording["1.neuron.5"][..., 0], recording["1.mlp_act"][..., 5])
    assert torch.equal(recording["logits"], model.hf(torch.tensor([ids(6)])).logits.detach())
    assert recording["embed"].shape == recording["final_norm"].shape == (1, 6, 32)


def test_wrong_edit_values_show_the_shapes():
    model = opened("llama")
    recording = model.record([ids(6)])
    with pytest.raises(ValueError, match=r"has shape \(5, 32\): give \(width,\)"):
        sweep(recording, [Variant([Replace("1.resid_pre", torch.zeros(5, 32), position=2)])], METRIC)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_anatomy_counts_every_parameter_once(name):
    model = opened(name)
    rows = part_rows(model)
    assert (
        sum(row.parameters for row in rows[:-1])
        == rows[-1].parameters
        == sum(p.numel() for p in model.hf.parameters())
    )
    assert all(row.parameters >= 0 for row in rows)
    assert {row.site for row in site_rows(model)} >= {"resid_pre", "z", "pattern"}
