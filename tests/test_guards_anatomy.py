"""Anatomies of checkpoints that are only headers, and tables of parts, by hand."""

from __future__ import annotations

import re

import pytest
import torch
import transformers as hf

from regraft.checkpoint.dissection import _use, component, numbered
from regraft.checkpoint.headers import Entry, Headers
from regraft.checkpoint.roles import role_of
from regraft.model.load import load
from regraft.model.summary import _alike, part_rows, site_rows, weigh
from regraft.model.weights import _IN_A_BLOCK, _divided, _is_map, _place, _stack_names
from small import opened


def headers(shapes, config=None, dtypes=None, part=""):
    dtypes = dtypes or {}
    return Headers(
        part,
        {name: Entry(name, dtypes.get(name, "F32"), shape, "f") for name, shape in shapes.items()},
        config,
        [],
    )


def block(number, width=64, prefix="model.layers", **changes):
    shapes = {
        "self_attn.q_proj.weight": (64, width),
        "self_attn.k_proj.weight": (32, width),
        "self_attn.v_proj.weight": (32, width),
        "self_attn.o_proj.weight": (width, 64),
        "mlp.up_proj.weight": (160, width),
        "mlp.down_proj.weight": (width, 160),
        "input_layernorm.weight": (width,),
    }
    return {f"{prefix}.{number}.{name}": shape for name, shape in {**shapes, **changes}.items()}


def whole(blocks=3, **more):
    shapes = {"model.embed_tokens.weight": (500, 64), "model.norm.weight": (64,), **more}
    for number in range(blocks):
        shapes |= block(number)
    return shapes


EACH = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 2 * 160 * 64 + 64


def facts(found):
    return {fact.what: fact.value for fact in found}


def test_a_model_in_its_headers():
    found = component(headers(whole(), {"num_attention_heads": 4}))
    (stack,) = found.stacks
    assert (stack.path, stack.count, stack.parameters, stack.bytes) == (
        "model.layers",
        3,
        3 * EACH,
        12 * EACH,
    )
    (kind,) = stack.kinds
    assert (kind.blocks, kind.parameters) == ((0, 1, 2), EACH)
    assert facts(kind.facts) == {
        "width": 64, "attention": "separate q, k, v", "queries for each key": 2, "heads": 4,
        "width of a head": 16,
        "key/value heads": 2, "neurons": 160, "MLP": "plain", "biases": "none",
            "norms of queries and keys": "absent", "norms": "1, without a shift, as root-mean-square norms",
    }  # fmt: skip
    assert facts(stack.facts) == {"blocks": 3}
    assert {o.name: o.use for o in found.outside} == {
        "model.embed_tokens.weight": "token table",
        "model.norm.weight": "norm",
    }
    total = 3 * EACH + 500 * 64 + 64
    assert (found.parameters, found.bytes, found.dtypes, found.odd) == (total, 4 * total, {"F32": total}, ())
    said = facts(found.facts)
    assert (said["parameters"], said["in blocks"], said["rows of model.embed_tokens.weight"]) == (
        total,
        3 * EACH,
        500,
    )
    assert said["head"] == "tied to the token table, or missing"


def test_heads_of_the_whole():
    own = component(headers(whole(**{"lm_head.weight": (500, 64)})))
    assert facts(own.facts)["head"].endswith("lm_head.weight")
    assert (
        facts(component(headers(whole(), {"tie_word_embeddings": True})).facts)["head"]
        == "tied to the token table"
    )
    other = component(headers(whole(**{"classifier.weight": (3, 64)})))
    assert "missing" in facts(other.facts)["head"]
    assert "head" not in facts(
        component(headers({k: v for k, v in whole().items() if "embed" not in k})).facts
    )


def test_integers_are_told_apart():
    found = component(
        headers(
            whole(**{"codes": (10, 3), "mask": (4,)}),
            dtypes={"codes": "I32", "mask": "BOOL", "model.norm.weight": "BF16"},
        )
    )
    said = facts(found.facts)
    assert said["integers"] == 34
    assert said["parameters"] == 3 * EACH + 500 * 64 + 64
    assert found.bytes == 4 * (3 * EACH + 500 * 64) + 2 * 64 + 4 * 30 + 4


def test_what_is_odd_is_said():
    shapes = whole(8)
    assert not component(headers(shapes)).odd
    rare = {**shapes, "model.layers.5.extra.weight": (64, 64)}
    found = component(headers(rare))
    assert len(found.stacks[0].kinds) == 2
    assert facts(found.stacks[0].facts)["kinds of blocks"] == 2
    assert any("layers.5 differs" in odd and "extra" in odd for odd in found.odd)
    few = {**whole(7), "model.layers.5.extra.weight": (64, 64)}
    assert not any("differs" in odd for odd in component(headers(few)).odd)
    for count in (3, 4):
        some = {f"model.layers.{5 * i}.extra.weight": (64, 64) for i in range(count)}
        said = [odd for odd in component(headers({**whole(20), **some})).odd if "differs" in odd]
        assert len(said) == (count == 3), "15% of the blocks are few, 20% are not"
    gap = {name: shape for name, shape in shapes.items() if ".layers.3." not in name}
    assert any("no block 3" in odd for odd in component(headers(gap)).odd)
    assert any("empty" in odd for odd in component(headers({**shapes, "nothing": (0, 4)})).odd)


def entries(names):
    return [Entry(name, "F32", (4, 4), "f") for name in names]


def test_what_makes_a_list_of_blocks():
    parts = ("attn.q.weight", "attn.k.weight", "mlp.up.weight", "norm.weight")

    def lists(names):
        found, left = numbered(entries(names))
        return {path: sorted(blocks) for path, blocks in found.items()}, {e.name for e in left}

    assert lists([f"h.{i}.{p}" for i in range(3) for p in parts]) == ({"h": [0, 1, 2]}, set())
    assert lists([f"h.{i}.{p}" for i in (0, 4, 9) for p in parts])[0] == {}, "more gaps than blocks"
    assert lists([f"h.{i}.{p}" for i in (0, 1, 4) for p in parts])[0] == {"h": [0, 1, 4]}
    assert lists([f"h.{i}.{p}" for i in (1, 2) for p in parts])[0] == {"h": [1, 2]}
    assert lists([f"h.{i}.{p}" for i in (2, 3) for p in parts])[0] == {}
    assert lists([f"h.0.{p}" for p in parts])[0] == {"h": [0]}
    assert lists([f"h.0.{p}" for p in parts[:3]])[0] == {}, "a single block needs more to be one"
    assert lists([f"h.{i}.{p}" for i in range(3) for p in parts[:2]])[0] == {}
    assert lists([f"h.{i}.part{i}{j}" for i in range(3) for j in range(4)])[0] == {}
    assert lists([f"h.{i}" for i in range(3)])[1] == {"h.0", "h.1", "h.2"}
    inside = [f"h.{i}.experts.{e}.{p}" for i in range(2) for e in range(3) for p in parts]
    found, left = numbered(entries(inside))
    assert {name: len(group) for name, group in found["h"][1].items()} == {f"experts.#.{p}": 3 for p in parts}
    assert not left


@pytest.mark.parametrize(
    ("name", "shape", "use"),
    [
        ("wte.weight", (500, 64), "token table"),
        ("wpe.weight", (500, 64), "position table"),
        ("token_type_embeddings.weight", (2, 64), "type table"),
        ("embed.weight", (8, 64), "other"),
        ("embed.weight", (9, 64), "token table"),
        ("embeddings.norm.weight", (64,), "norm"),
        ("lm_head.weight", (500, 64), "head"),
        ("patch_embed.proj.weight", (64, 64), "other"),
        ("time_embedding.weight", (64, 64), "other"),
        ("ln_f.bias", (64,), "norm"),
        ("embed.weight", (500,), "other"),
        ("position_embeddings", (500, 64), "position table"),
    ],
)
def test_what_stands_outside(name, shape, use):
    assert _use(Entry(name, "F32", shape, "f")) == use


@pytest.mark.parametrize(
    ("rest", "role"),
    [
        ("self_attn.q_proj", "q"),
        ("attention.self.key", "k"),
        ("attn.c_attn", "qkv"),
        ("attn.c_proj", "o"),
        ("mlp.c_proj", "down"),
        ("intermediate.dense", "up"),
        ("output.dense", "down"),
        ("attention.output.dense", "o"),
        ("mlp.gate", "router"),
        ("mlp.gate_proj", "gate"),
        ("mlp.gate_up_proj", "gate_up"),
        ("encoder_attn.q_proj", "cross_q"),
        ("block_sparse_moe.experts.0.w2", "down"),
        ("mixer.in_proj", "in_proj"),
        ("mlp.strange", "strange"),
        ("mlp.w1", "gate"),
        ("mlp.w3", "up"),
    ],
)
def test_roles_by_names(rest, role):
    assert role_of(rest) == role


def test_which_tensors_are_matrices():
    for name, shape, fits in (
        ("h.0.mlp.up.weight", (4, 4), True),
        ("h.0.mlp.up.weight", (4,), False),
        ("h.0.mlp.up.weight", (1, 4), False),
        ("h.0.mlp.up.weight", (2, 4), True),
        ("h.0.norm.weight", (4, 4), False),
        ("h.0.mlp.experts.up", (3, 4, 4), True),
        ("h.0.conv.weight", (3, 4, 4), False),
        ("h.0.relative_attention_bias.weight", (4, 4), False),
        ("h.0.q.scales", (4, 4), False),
    ):
        assert _is_map(name, shape) == fits
    made = list(_divided("t", (3, 4, 5), "7", "mlp.experts.down_proj", {}))
    assert [(m.expert, m.shape, m.role) for m in made] == [
        (0, (4, 5), "down"),
        (1, (4, 5), "down"),
        (2, (4, 5), "down"),
    ]
    assert next(_divided("t", (4, 5), "7", "mlp.experts.11.down_proj", {})).expert == 11
    assert next(_divided("t", (4, 5), "7", "mlp.down_proj", {})).expert == -1
    assert _place(made[1]) == ("", 7, 1, 6, "down")


def stacks(names, paths=None):
    maps = [(name, re.match(_IN_A_BLOCK, name)) for name in names]
    return _stack_names(maps, dict.fromkeys(names, (4, 4)), paths or {})


def test_lists_of_blocks_are_named():
    long = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(4)]
    short = [f"vision.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    assert stacks(long) == {"model.layers": ""}
    assert stacks([*long, *short]) == {"model.layers": "", "vision.layers": "vision.layers"}
    assert stacks(long, {"model.layers": "encoder"}) == {"model.layers": "encoder"}
    two = [f"{side}.block.{i}.attn.q.weight" for side in ("encoder", "decoder") for i in range(2)]
    assert stacks(two) == {"encoder.block": "encoder", "decoder.block": "decoder"}
    assert stacks(["head.0.strange.weight", *long]) == {"model.layers": ""}
    assert stacks(["head.0.up_proj.weight", *long]) == {"model.layers": "", "head": "head"}


def test_parts_are_weighed_once():
    model = opened("t5")
    rows = {row.part: row for row in part_rows(model)}
    total = sum(p.numel() for p in model.hf.parameters())
    assert rows["whole model"].parameters == total
    assert rows["whole model"].bytes == 4 * total
    assert sum(row.parameters for name, row in rows.items() if name != "whole model") == total
    assert rows["encoder block 0"].parameters == weigh(model.blocks[0].module)[0]
    assert rows["encoder blocks 1 to 2"].parameters == 2 * weigh(model.blocks[1].module)[0]
    assert _alike(model.parts.stacks[0].blocks) == [(0, 0), (1, 2)]
    assert weigh(None) == (0, 0)
    tied = {row.part: row for row in part_rows(opened("opt"))}
    assert tied["head"].parameters == 0
    plain = {row.part: row for row in part_rows(opened("llama"))}
    assert plain["head"].parameters == plain["embedding"].parameters == 96 * 32
    assert "other" not in plain
    assert "4 heads" in plain["blocks 0 to 3"].shape
    assert "48 neurons" in plain["blocks 0 to 3"].shape
    sites = {row.site: row for row in site_rows(opened("mixtral"))}
    assert (sites["mlp_act"].blocks, sites["mlp_act"].total, sites["resid_pre"].blocks) == (0, 4, 4)
    assert "mixture" in sites["mlp_act"].reason
    assert not sites["resid_pre"].reason


def test_broken_live_models_are_refused():
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    made = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))
    with pytest.raises(ValueError, match="live model"):
        load(made, dtype="float32")
    load(made, pack=False)
    with torch.no_grad():
        made.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="up_proj"):
        load(made, pack=False)
