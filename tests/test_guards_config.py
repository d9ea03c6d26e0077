"""What a configuration can say of another sequence of blocks, in each of its ways, and the first thing that
it cannot."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from families import _DECODER, FAMILIES
from regraft.export.block_config import _differs, _facts, _plain, _restated, adjusted, check_expressible
from regraft.export.route_model import check_writable_as, facts_of
from regraft.model.load import load
from small import opened


@pytest.mark.parametrize(
    ("name", "value", "kept", "wanted"),
    [
        ("layer_types", ["a", "b", "c", "d"], [3, 0], ["d", "a"]),
        ("mlp_only_layers", [0, 3], [3, 1, 0], [0, 2]),
        ("mlp_only_layers", [0, 3], [1, 2], []),
        ("mlp_only_layers", [], [1, 2], None),
        ("mlp_only_layers", [3, 0], [1, 2], None),
        ("mlp_only_layers", [1, 1], [1, 2], None),
        ("mlp_only_layers", [0, 4], [1, 2], None),
        ("mlp_only_layers", [-1, 2], [1, 2], None),
        ("mlp_only_layers", [0, True], [1, 2], None),
        ("layer_scales", [0.0, 1.0], [1, 2], None),
        ("attention_types", [[["x", "y"], 1], [["z"], 2]], [3, 1], [[["z"], 1], [["y"], 1]]),
        ("attention_types", [[["x", "y"], 1]], [1, 0], None),
        ("attention_types", [[["x", "y"], 2], 7], [1, 0], None),
        ("attention_types", [[["x", "y"], 1, 0], [["z"], 2]], [1, 0], None),
        ("attention_types", [[["x", "y"], "1"], [["z"], "2"]], [1, 0], None),
        ("hybrid_override_pattern", "M-*E", [2, 0], "*M"),
        ("layer_kind", "M-*E", [2, 0], None),
        ("hybrid_override_pattern", "M-*", [2, 0], None),
        ("first_k_dense_replace", 2, [0, 1, 3], 2),
        ("first_k_dense_replace", 2, [1, 3, 2], 1),
        ("first_k_dense_replace", 2, [2, 3], 0),
        ("first_k_dense_replace", 4, [3, 2, 1], 3),
        ("first_k_dense_replace", 2, [2, 0], None),
        ("first_k_dense_replace", 0, [2, 0], None),
        ("first_k_dense_replace", 5, [2, 0], None),
        ("first_k_dense_replace", True, [2, 0], None),
        ("decoder_sparse_step", 2, [2, 0], None),
    ],
)
def test_each_way_of_saying_it_is_said_again_or_left(name, value, kept, wanted):
    """Of four blocks: a list for each, numbers of some, pairs of kinds and times, a pattern, a count from the
    beginning."""
    assert _restated(name, value, 4, kept) == wanted


class Config:
    """A configuration whose text part says things of two blocks."""

    def __init__(self):
        self.text = SimpleNamespace(
            n_layer=2, layer_types=["a", "b"], first_k=1, eos_token_id=[0, 1], num_layers=9
        )

    def get_text_config(self):
        return self.text


def test_a_copy_is_adjusted_and_what_is_no_fact_of_blocks_stays():
    config = Config()
    found = vars(adjusted(config, 2, [1, 0, 1], decoder=False).text)
    assert found == {
        "n_layer": 3,
        "layer_types": ["b", "a", "b"],
        "first_k": 1,
        "eos_token_id": [0, 1],
        "num_layers": 9,
    }
    assert vars(config.text) == vars(Config().text)


def test_the_count_of_an_encoder_decoder_is_the_decoders():
    for name, count, encoder in (
        ("t5", "num_decoder_layers", "num_layers"),
        ("bart", "decoder_layers", "encoder_layers"),
    ):
        config = FAMILIES[name]().config
        found = adjusted(config, 3, [0, 2], decoder=True)
        assert (getattr(found, count), getattr(found, encoder)) == (2, 3)


def moe(**changes):
    torch.manual_seed(1)
    config = hf.Qwen3MoeConfig(
        **{**_DECODER, **changes}, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    )
    return load(hf.Qwen3MoeForCausalLM(config).eval(), pack=False)


def neo():
    torch.manual_seed(1)
    config = hf.GPTNeoConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_layers=4, num_heads=4,
        max_position_embeddings=128,
        attention_types=[[["global", "local"], 2]], window_size=4, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return load(hf.GPTNeoForCausalLM(config).eval(), pack=False)


def deep():
    torch.manual_seed(1)
    config = hf.DeepseekV3Config(
        **{**_DECODER, "num_key_value_heads": 4, "head_dim": 8}, first_k_dense_replace=2, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, n_group=1, topk_group=1, q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, n_shared_experts=1,
    )  # fmt: skip
    return load(hf.DeepseekV3ForCausalLM(config).eval(), pack=False)


def sequence(model, kept):
    blocks = [model.blocks[k] for k in kept]
    check_expressible(model, blocks, facts_of(model, blocks))


CANNOT = r"this sequence of blocks cannot be written as a checkpoint of \w+: block {} would have {} for {}"


def test_a_period_says_its_own_sequence_and_what_falls_on_it():
    """Blocks 1 and 3 are mixtures: places 1, 3, ... must be."""
    model = moe(decoder_sparse_step=2)
    for kept in ([0, 1, 2, 3], [2, 1], [0, 3, 2, 1, 0, 3]):
        sequence(model, kept)
    wanted = (
        CANNOT.format(1, "a Qwen3MoeSparseMoeBlock", "the Qwen3MoeMLP mlp")
        + "; the configuration says decoder_sparse_step=2$"
    )
    with pytest.raises(ValueError, match=wanted):
        sequence(model, [0, 2])
    with pytest.raises(ValueError, match=CANNOT.format(0, "a Qwen3MoeMLP", "the Qwen3MoeSparseMoeBlock mlp")):
        sequence(model, [1])


def test_numbers_of_blocks_kinds_and_times_say_any_sequence():
    for model in (moe(mlp_only_layers=[1, 3]), neo()):
        for kept in ([3], [1, 3, 0, 2], [2, 2, 1]):
            sequence(model, kept)


def test_a_count_from_the_beginning_says_what_begins_with_it():
    model = deep()
    for kept in ([0, 1, 2, 3], [1, 3], [0, 0, 1, 2], [2, 3], [1, 0]):
        sequence(model, kept)
    with pytest.raises(
        ValueError,
        match=CANNOT.format(0, "a DeepseekV3MLP", "the DeepseekV3MoE mlp") + "; .*first_k_dense_replace=2",
    ):
        sequence(model, [2, 0])


def test_a_window_of_a_block_is_a_fact_and_a_module_of_its_place_need_not_bear_it():
    """Mistral's blocks are alike; a plain fact that one keeps of itself is in no configuration."""
    model = opened("mistral")
    sequence(model, [3, 0])
    odd = model.blocks[2].module
    odd.self_attn.scaling *= 2.0
    with pytest.raises(ValueError, match=r"block 1 would have self_attn\.scaling 0\.35\d+ for 0\.70\d+$"):
        sequence(model, [0, 2])
    check_expressible(model, [model.blocks[0], odd], [0, 1])
    odd.mlp.up_proj = nn.Linear(32, 47, bias=False)
    with pytest.raises(
        ValueError, match=r"block 1 would have mlp\.up_proj\.weight of shape \(48, 32\) for \(47, 32\)$"
    ):
        check_expressible(model, [model.blocks[0], odd], [0, 1])


class Kept(nn.Module):
    def __init__(self, shape=(2,), buffer=False, **facts):
        super().__init__()
        (
            self.register_buffer("w", torch.zeros(shape))
            if buffer
            else setattr(self, "w", nn.Parameter(torch.zeros(shape)))
        )
        for name, value in facts.items():
            setattr(self, name, value)


class Other(Kept):
    pass


@pytest.mark.parametrize(
    ("meant", "made", "own", "wanted"),
    [
        (Kept(), Kept(), True, ""),
        (Kept(), Other(), True, "a Other for the Kept"),
        (Kept(), Other(), False, "a Other for the Kept"),
        (Kept(inner=Kept()), Kept(), True, "nothing for the Kept inner"),
        (Kept(), Kept(inner=Kept()), True, "inner.w of shape (2,) for None"),
        (Kept((3,)), Kept(), False, "w of shape (2,) for (3,)"),
        (Kept(more=nn.Parameter(torch.zeros(3))), Kept(), True, "more of shape None for (3,)"),
        (Kept((3,), buffer=True), Kept(), False, "w of shape (2,) for (3,)"),
        (Kept(kind="a"), Kept(kind="b"), True, "kind 'b' for 'a'"),
        (Kept(window=4), Kept(window=5), True, "window 5 for 4"),
        (Kept(scale=0.5), Kept(scale=1.0), True, "scale 1.0 for 0.5"),
        (Kept(local=True), Kept(local=False), True, "local False for True"),
        (Kept(inner=Kept(window=4)), Kept(inner=Kept(window=5)), True, "inner.window 5 for 4"),
        (Kept(inner=Kept(window=4)), Kept(inner=Kept(window=5)), False, ""),
        (Kept(window=4), Kept(), True, ""),
        (
            Kept(layer_idx=4, index=1, layer_id=3, idx=2),
            Kept(layer_idx=1, index=0, layer_id=0, idx=0),
            True,
            "",
        ),
        (Kept(sizes=[1]), Kept(sizes=[2]), True, ""),
        (Kept(_called=1), Kept(_called=2), True, ""),
        (Kept().eval(), Kept().train(), True, ""),
    ],
)
def test_blocks_differ_by_classes_then_facts_then_shapes(meant, made, own, wanted):
    assert _differs(meant, made, own) == wanted


def test_facts_are_plain_and_told_are_those_that_cannot_be_rewritten():
    assert _plain(Kept(kind="a", window=4, layer_idx=3, sizes=[1], block_index_map=2)) == [
        "kind",
        "window",
        "block_index_map",
    ]
    config = SimpleNamespace(
        attn_layer_period=3, attn_layer_offset=1, expert_interval=2, full_attn_every_n=4, hidden_size=32,
        layer_freq=0,
        decoder_sparse_step=True, first_k_dense_replace=2, window_layers=[1], num_window_layers=5,
    )  # fmt: skip
    assert (
        _facts(config) == "attn_layer_period=3, attn_layer_offset=1, expert_interval=2, full_attn_every_n=4,"
        " first_k_dense_replace=2, num_window_layers=5"
    )


@pytest.mark.parametrize(
    "error", [ValueError("a\n  b"), TypeError("a b"), KeyError("a b"), StrictDataclassError("a b")]
)
def test_a_configuration_that_is_not_valid_is_a_sentence(error, monkeypatch):
    model = opened("llama")

    def refused(config):
        raise error

    monkeypatch.setattr(type(model.hf), "__init__", lambda self, config: refused(config))
    with pytest.raises(ValueError, match=r"its configuration would not be valid \('?a b'?\)"):
        sequence(model, [0, 2])


def test_a_configuration_that_gives_another_number_of_blocks_is_told(monkeypatch):
    model = opened("llama")
    own = type(model.hf).__init__

    def one_more(self, config):
        config.num_hidden_layers += 1
        own(self, config)

    monkeypatch.setattr(type(model.hf), "__init__", one_more)
    with pytest.raises(ValueError, match=r"its configuration would give 3 blocks for 2$"):
        sequence(model, [0, 2])


def test_it_is_asked_only_where_something_is_written(tmp_path):
    model = moe(decoder_sparse_step=2)
    blocks = [model.blocks[0], model.blocks[2]]
    check_writable_as(model, blocks, "")
    with pytest.raises(ValueError, match="cannot be written as a checkpoint"):
        check_writable_as(model, blocks, str(tmp_path / "new"))


def test_each_place_has_the_facts_of_its_block_or_of_its_own_place():
    model = opened("t5")
    decoder = model.parts.stacks[-1].blocks
    assert facts_of(model, [decoder[2], decoder[0]]) == [2, 0]
    assert facts_of(model, [b.module for b in (*decoder, *decoder)]) == [0, 1, 2, 2, 2, 2]
