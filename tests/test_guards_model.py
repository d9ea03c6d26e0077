"""Recordings, sites, parts and identities: what is counted, spread over rows, refused and left out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regraft.checkpoint.roles import side_of
from regraft.model.block_call import over_rows
from regraft.model.hooks import reading, writing
from regraft.model.parts import close, matrix_OI
from regraft.model.selfcheck import _official, _replay_differences, check, sample_ids
from regraft.model.sites import SiteError, Tap, head_count, packed_taps, parse_site
from regraft.model.weights import live_weights
from small import ids, opened, recorded


def test_prompts_in_every_form():
    model = opened("llama")
    rows = torch.tensor([[5, 6], [7, 8]])
    for given, wanted in (
        ("5,6", [[5, 6]]), ([5, 6], [[5, 6]]), ([[5], [6]], [[5], [6]]), (["5,6", "7 8"], [[5, 6], [7, 8]]),
        ((5, 6), [[5, 6]]),
        (rows, [[5, 6], [7, 8]]), (rows[0], [[5, 6]]), (list(rows), [[5, 6], [7, 8]]),
    ):  # fmt: skip
        assert model.record(given).ids_BT.tolist() == wanted


def test_what_a_recording_counts():
    model = opened("llama")
    recording = model.record([[5, 6, 7], [8]], [[9, 10], [11]])
    pad = model.hf.config.pad_token_id
    assert recording.ids_BT.tolist() == [[5, 6, 7, 9, 10], [8, 11, pad, pad, pad]]
    assert recording.mask_BT.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert recording.scored_BT.tolist() == [
        [False, False, False, True, True],
        [False, True, False, False, False],
    ]
    assert recording.inputs["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert (recording.prompts, recording.positions, recording.lengths_B.tolist()) == (2, 5, [5, 2])
    assert recording.lengths_of(0) == (5, 2)
    assert recording.real_at(2).tolist() == recording.mask_BT.tolist()
    alone = model.record([5, 6, 7])
    assert alone.scored_BT.tolist() == [[False, True, True]]
    assert set(alone.inputs) == {"input_ids"}
    assert not alone.scored_is_given
    given = model.record([5, 6, 7], scored=torch.tensor([[True, False, True]]))
    assert given.scored_is_given
    assert given.scored_BT.tolist() == [[True, False, True]]
    for block in range(4):
        alone_pre = model.record([8, 11]).pre(block)
        torch.testing.assert_close(recording.pre(block)[1:, :2], alone_pre, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        wanted = model.hf.model(recording.ids_BT[:1], output_hidden_states=True).hidden_states
    torch.testing.assert_close(recording.pre(2)[:1], wanted[2], rtol=1e-4, atol=1e-5)
    assert torch.equal(recording.post(1), recording.pre(2))
    torch.testing.assert_close(model.parts.final_norm(recording.post(3))[:1], wanted[4], rtol=1e-4, atol=1e-5)


def test_a_decoder_behind_an_encoder_has_its_own_tokens():
    model = opened("t5")
    recording = model.record([[5, 6, 7], [8]], [[9], [10, 11, 12, 13]])
    start, pad = model.hf.config.decoder_start_token_id, model.hf.config.pad_token_id
    assert recording.inputs["input_ids"].tolist() == [[5, 6, 7], [8, pad, pad]]
    assert recording.ids_BT.tolist() == [[start, 9, pad, pad, pad], [start, 10, 11, 12, 13]]
    assert recording.scored_BT.tolist() == [
        [False, True, False, False, False],
        [False, True, True, True, True],
    ]
    assert [recording.lengths_of(block) for block in (0, 2, 3, 5)] == [(3, 1), (3, 1), (2, 5), (2, 5)]
    assert [recording.positions_of(block) for block in (2, 3)] == [3, 5]
    assert recording.real_at(0).tolist() == [[True] * 3, [True, False, False]]
    assert model.record([[5, 6], [7, 8]], [[9], [9]]).lengths_of(0) == (2, 2)
    assert not torch.equal(recording.post(2)[:, :1], recording.pre(3)[:, :1])
    model.hf.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        model.record([[5]], [[6]])


def test_what_cannot_be_recorded():
    model = opened("llama")
    model.record([1, 95])
    for prompts, completions, word in (
        ([], None, "no prompt"), ([[]], None, "empty"), ([[5], [6]], [[7]], "2 prompts but 1"),
        ([[96]], None, "96"),
        ([[-1]], None, "-1"), ([[5]], [[96]], "96"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            model.record(prompts, completions)
    with pytest.raises(ValueError, match="129 tokens"):
        opened("gpt2").record([[5] * 129])
    assert model.record([[5], [6]], [[7], []]).scored_BT.sum(1).tolist() == [1, 0]


def test_texts_become_ids():
    model = opened("llama")
    assert model.encode("5, 6 7") == [5, 6, 7]
    assert model.single_token("7") == 7
    assert model.token_text(7) == "7"
    for wrong in ("five", ""):
        with pytest.raises(ValueError, match=r"tokenizer|empty"):
            model.encode(wrong)
    with pytest.raises(ValueError, match="tokenizer"):
        model.single_token("seven")
    letters = {"a": 7, "b": 8, " ": 9, "$": 2}
    model.tokenizer = type("Letters", (), {
        "__call__": lambda self, text, **more: {"input_ids": [letters.get(letter, 20) for letter in text]},
        "decode": lambda self, ids,
        **more: "".join(letter for i in ids for letter, number in letters.items() if number == i),
        "convert_ids_to_tokens": lambda self, i: self.decode([i]),
        "all_special_ids": [2],
    })()  # fmt: skip
    assert model.single_token("b") == 8
    assert model.token_text(8) == "b"
    with pytest.raises(ValueError, match="tokens"):
        model.single_token("ab")
    assert model.encode("a b") == [7, 9, 8]
    two = opened("t5")
    two.hf.config.eos_token_id = 2
    two.tokenizer = model.tokenizer
    assert two.encode("ab") == [7, 8, 2], "an encoder's input is closed"
    assert two.encode("a$") == [7, 2]


def test_a_weight_that_changes_changes_the_hash():
    model = opened("llama")
    first = model.weights_sha256
    assert model.weights_sha256 == first == opened("llama").weights_sha256
    with torch.no_grad():
        model.blocks[0].module.mlp.up_proj.weight[0, 0] += 1
    assert model.weights_sha256 != first


def test_rows_of_arguments():
    one, two = torch.arange(3.0)[None], torch.arange(6.0).view(2, 3)
    assert over_rows(one, 4, 4).tolist() == one.repeat(4, 1).tolist()
    assert over_rows(one, 4, 4).data_ptr() == one.data_ptr(), "no copy of one row"
    assert over_rows(two, 2, 4).tolist() == [[0, 1, 2], [3, 4, 5]] * 2


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "gpt_neox"])
def test_activations_of_several_prompts_equal_those_of_each_alone(name):
    model = opened(name)
    recording = recorded(model, 6, 4)
    for row in range(2):
        length = (6, 4)[row]
        source = (
            recording.inputs["input_ids"][row : row + 1, :length]
            if model.two_stacks
            else recording.ids_BT[row : row + 1, :length]
        )
        written = (
            [recording.ids_BT[row, 1 : int(recording.lengths_B[row])].tolist()] if model.two_stacks else None
        )
        alone = model.record(source.tolist(), written)
        block = len(model.blocks) - 1
        real = int(recording.lengths_of(block)[row])
        address = model.blocks[block].address
        for site in ("resid_pre", "attn_out", "z", "mlp_act", "mlp_out", "q", "resid_post"):
            found = recording[f"{address}.{site}"][row, :real]
            torch.testing.assert_close(found, alone[f"{address}.{site}"][0], rtol=1e-3, atol=1e-4)


def test_sites_inside_a_block_by_hand():
    model = opened("llama")
    recording = model.record([ids(7, 1)])
    block = model.blocks[1].module
    pre = recording.pre(1)
    with torch.no_grad():
        normed = block.input_layernorm(pre)
        q, v = block.self_attn.q_proj(normed), block.self_attn.v_proj(normed)
        mid = pre + recording["1.attn_out"]
        inner = block.post_attention_layernorm(mid)
        act = torch.nn.functional.silu(block.mlp.gate_proj(inner)) * block.mlp.up_proj(inner)
    close_to = torch.testing.assert_close
    close_to(recording["1.q"], q.unflatten(-1, (4, 8)))
    close_to(recording["1.v"], v.unflatten(-1, (2, 8)))
    close_to(recording["1.resid_mid"], mid)
    close_to(recording["1.mlp_act"], act)
    close_to(recording["1.neuron.5"], act[..., 5:6])
    close_to(recording["1.head.2"], recording["1.z"][:, :, 2])
    close_to(recording["1.resid_post"], mid + recording["1.mlp_out"])
    close_to(recording["embed"], recording.pre(0))
    close_to(recording["final_norm"], model.parts.final_norm(recording.post(3)))
    close_to(recording["logits"], model.hf(recording.ids_BT).logits)


def test_addresses_that_exist_and_that_do_not():
    model, two = opened("llama"), opened("t5")
    for address, block, name, index in (
        ("3.head.2", 3, "head", 2),
        ("0.resid_pre", 0, "resid_pre", None),
        ("embed", None, "embed", None),
    ):
        site = parse_site(address, model.parts)
        assert (site.block, site.name, site.index) == (block, name, index)
    assert parse_site("decoder.1.z", two.parts).block == 4
    for wrong in (
        "4.z",
        "x",
        "1.head",
        "1.z.3",
        "1.none",
        "encoder.1.z",
        "1.neuron",
        "-1.z",
        "1.z.",
        "01.z.2",
    ):
        with pytest.raises(SiteError):
            parse_site(wrong, model.parts)
    for wrong in ("1.z", "encoder.3.z", "embed"):
        with pytest.raises(SiteError):
            two.site(wrong)
    for there in ("3.head.3", "3.neuron.47"):
        model.site(there)
    for wrong in ("3.head.4", "3.neuron.48", "3.cross_out", "3.mixer_out", "3.pattern"):
        with pytest.raises(SiteError):
            model.site(wrong)
    for name, sites in (
        ("gpt_neox", ["1.resid_mid"]),
        ("bert_headless", ["logits"]),
        ("mamba2", ["1.attn_out", "1.z"]),
        ("mixtral", ["1.mlp_act"]),
    ):
        other = opened(name)
        for site in sites:
            with pytest.raises(SiteError):
                other.site(site)
    assert model.tap("1.head.2").features.tolist() == list(range(16, 24))


def test_heads_are_counted_by_module_width_or_configuration():
    def count(width, config=None, **attributes):
        return head_count(
            SimpleNamespace(attention=SimpleNamespace(**attributes)), SimpleNamespace(**(config or {})), width
        )

    assert count(32, num_heads=4, head_dim=16) == 4
    assert count(32, num_heads=5, head_dim=16) == 2
    assert count(32, num_heads=0, head_dim=16) == 2
    assert count(32, {"num_attention_heads": 8}, head_dim=5) == 8
    assert count(32, {"num_attention_heads": 8}, head_dim=0) == 8
    assert count(32, {"num_attention_heads": 5}) == 0
    assert count(32) == 0


def test_packed_projections_divide_by_heads():
    def parts(width, heads, head_width, interleaved):
        return packed_taps(nn.Linear(3, width), heads, head_width, interleaved)

    plain = parts(16, 4, 2, False)
    assert [plain[site].features.tolist() for site in "qkv"] == [
        list(range(8)),
        list(range(8, 12)),
        list(range(12, 16)),
    ]
    assert [plain[site].heads for site in "qkv"] == [4, 2, 2]
    thin = parts(6, 4, 1, False)
    assert [thin[site].features.tolist() for site in "qkv"] == [[0, 1, 2, 3], [4], [5]], "heads of one number"
    woven = parts(24, 4, 2, True)
    assert woven["k"].features.tolist() == [2, 3, 8, 9, 14, 15, 20, 21]
    assert woven["v"].features.tolist() == [4, 5, 10, 11, 16, 17, 22, 23]
    for width, heads, head_width, interleaved in (
        (15, 4, 2, False),
        (8, 4, 2, False),
        (14, 4, 2, False),
        (16, 4, 2, True),
        (6, 4, 2, False),
    ):
        assert all(
            isinstance(reason, str) for reason in parts(width, heads, head_width, interleaved).values()
        )


def test_sides_by_names():
    for name, side in (
        ("self_attn.o_proj", "attn"), ("attention.dense", "attn"), ("mlp.attn_proj", "mlp"),
        ("output.dense", "mlp"),
        ("encoder_attn.out_proj", "cross"), ("layer.1.EncDecAttention.o", "cross"),
        ("crossattention.dense", "cross"),
    ):  # fmt: skip
        assert side_of(name) == side
    assert matrix_OI(nn.Linear(3, 5)).shape == (5, 3)


def test_hooks_read_and_write_one_tap():
    layer = nn.Linear(4, 3)
    x = torch.randn(6, 4)
    plain = layer(x)
    with writing(Tap(layer, "output"), lambda y: y * 2, (2, 3)):
        torch.testing.assert_close(layer(x), 2 * plain)
    with writing(Tap(layer, "input"), lambda y: y.flip(1), (2, 3)):
        torch.testing.assert_close(layer(x), layer.forward(x.view(2, 3, 4).flip(1).reshape(6, 4)))
    with reading(
        {"in": Tap(layer, "input"), "some": Tap(layer, "output", torch.tensor([2, 0]))}, (2, 3)
    ) as seen:
        layer(x)
    assert torch.equal(seen["in"], x.view(2, 3, 4))
    assert torch.equal(seen["some"], plain.view(2, 3, 3)[..., [2, 0]])
    assert torch.equal(layer(x), plain), "hooks are taken off"


def test_a_block_is_closed_by_its_branches():
    pre, outs = torch.randn(1, 2, 4), [torch.randn(1, 2, 4), torch.randn(2, 4)]
    norm = nn.LayerNorm(4)
    one, other = SimpleNamespace(sum_norm=None), SimpleNamespace(sum_norm=norm)
    torch.testing.assert_close(close((one, one), pre, outs, pre.shape), pre + outs[0] + outs[1])
    torch.testing.assert_close(close((other, one), pre, outs, pre.shape), norm(pre + outs[0]) + outs[1])
    assert close((one,), pre, [torch.randn(1, 1, 4)], pre.shape) is None


def test_identities_are_measured_and_what_fails_is_refused():
    model = opened("llama")
    assert model.check.replays
    assert model.check.batches
    assert model.check.causal
    assert model.check.width == 32
    recording = model.record([sample_ids(96, 8)])
    assert [model.check.replay] == _replay_differences(recording, _official(recording), (1,)) == [0]
    assert model.check.projections <= 1e-5
    assert not opened("bert").check.causal
    assert not model.check.refused
    model.blocks[2].module.register_forward_hook(
        lambda module, args, out: out * 1.01 if isinstance(out, torch.Tensor) else (out[0] * 1.01,)
    )
    found = check(model)
    assert found.closure == pytest.approx(0.01, rel=0.1)
    assert set(found.refused) == {"2.attn_out", "2.mlp_out", "2.resid_mid"}
    model.site("1.mlp_out")
    with pytest.raises(SiteError, match="does not close"):
        model.site("2.mlp_out")
    assert sample_ids(96, 8) == sample_ids(96, 8)
    assert sample_ids(96, 8) != sample_ids(96, 8, seed=1)
    assert min(sample_ids(96, 2000)) == 5
    assert max(sample_ids(96, 2000)) == 95
    assert set(sample_ids(3, 50)) == {2}


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "qwen3_moe", "t5", "gpt_neox"])
def test_matrices_by_role_make_the_models_activations(name):
    """Each role's matrix times what enters it is the site of that name."""
    model = opened(name)
    recording = recorded(model, 5)
    found = {}
    for matrix, values in live_weights(model).walk():
        assert tuple(values.shape) == tuple(matrix.shape)
        found[(matrix.block, matrix.role, matrix.expert)] = values
    block = model.blocks[1]
    for role in ("q", "k", "v"):
        if not model.taps.exists(1, role):
            continue
        tap = model.tap(f"{block.address}.{role}")
        given = recording.read(1, Tap(tap.module, "input"))
        bias = getattr(tap.module, "bias", None)
        bias = 0 if bias is None else bias if tap.features is None else bias[tap.features]
        held = next(v for (b, r, _), v in found.items() if b == block.address and r == role)
        made = given @ (held if name == "gpt2" else held.T) + bias
        torch.testing.assert_close(
            made, recording[f"{block.address}.{role}"].flatten(2), rtol=1e-4, atol=1e-5
        )
    down = [v for (b, r, _), v in found.items() if b == block.address and r == "down"]
    assert len(down) == (4 if name == "qwen3_moe" else 1)
    assert all(v.shape[name == "gpt2"] == model.width for v in down)
