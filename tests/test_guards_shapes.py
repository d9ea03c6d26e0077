"""What names and shapes tell, case by case: width, heads, neurons, experts; and what a header must say to be
believed."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from regraft.checkpoint.locate import (
    CheckpointError,
    check_header,
    header_length,
    parse_header,
    shards_of,
    weight_files,
)
from regraft.checkpoint.shapes import block_facts, section, width_of
from regraft.core.structure import (
    largest_difference,
    main_tensor,
    map_tensors,
    same_memory,
    version,
    walk_tensors,
    with_main_tensor,
)

WIDTH = 96
ASIDE = ("norms", "biases", "norms of queries and keys")
"""What is told of every block, and tested on its own."""


def part(name, role, *shape, each=1):
    return (name, role, shape, each)


def attention(query=128, key=32, output=None, extra=()):
    return [
        part("q_proj.weight", "q", query, WIDTH),
        part("k_proj.weight", "k", key, WIDTH),
        part("v_proj.weight", "v", key, WIDTH),
        part("o_proj.weight", "o", WIDTH, output or query),
        part("input_norm.weight", "other", WIDTH),
        *extra,
    ]


def facts(parts, config=None):
    found = {fact.what: (fact.value, fact.how) for fact in block_facts(parts, WIDTH, config)}
    return {what: told for what, told in found.items() if what not in ASIDE}


def why(parts, what, config=None):
    return next(fact.why for fact in block_facts(parts, WIDTH, config) if fact.what == what)


@pytest.mark.parametrize(
    ("config", "heads", "how"),
    [
        (None, (None, None, None), "unknown"),
        ({"num_attention_heads": 4}, (4, 32, 1), "inferred"),
        ({"num_attention_heads": 8, "num_key_value_heads": 2}, (8, 16, 2), "inferred"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, (None, None, None), "unknown"),
        ({"num_attention_heads": 5}, (None, None, None), "unknown"),
        ({"num_attention_heads": 2}, (None, None, None), "unknown"),
        ({"n_head": 8}, (8, 16, 2), "inferred"),
        ({"num_attention_heads": True, "n_head": 4}, (4, 32, 1), "inferred"),
    ],
)
def test_heads_by_a_configuration_that_the_shapes_allow(config, heads, how):
    found = facts(attention(), config)
    assert found["heads"] == (heads[0], how)
    assert found.get("width of a head", (None,))[0] == heads[1]
    assert found.get("key/value heads", (None,))[0] == heads[2]
    assert found["queries for each key"] == (4, "inferred")
    assert found["attention"][0] == "separate q, k, v"


def test_what_shapes_allow_is_listed_where_nothing_tells():
    assert "shapes allow 4 of 32" in why(attention(), "heads")
    assert "64" not in why(attention(), "heads").replace("4 of 32", "")
    assert why(attention(30, 30), "heads") == "no shape tells"
    denied = why(attention(), "heads", {"num_attention_heads": 8, "num_key_value_heads": 4})
    assert "says 8 with 4 key/value heads" in denied
    assert "queries for each key" not in facts(attention(64, 64))
    assert "queries for each key" not in facts(attention(64, 48))


@pytest.mark.parametrize(
    ("extra", "heads"),
    [
        ((part("q_norm.weight", "other", 16), part("k_norm.weight", "other", 16)), 8),
        ((part("q_norm.weight", "other", 16), part("k_norm.weight", "other", 32)), None),
        ((part("q_norm.weight", "other", 128),), None),
        ((part("q_norm.weight", "other", 24),), None),
        ((part("q_norm.weight", "other", 64),), None),
        ((part("relative_attention_bias.weight", "other", 40, 16),), 16),
        ((part("relative_attention_bias.weight", "other", 40, 12),), None),
        ((part("self_attn.sinks", "other", 8),), 8),
        ((part("self_attn.sinks", "other", 7),), None),
    ],
)
def test_heads_by_a_tensor_that_has_one_value_for_each(extra, heads):
    found = facts(attention(extra=extra))
    assert found["heads"][0] == heads
    if heads:
        assert found["width of a head"] == (128 // heads, "inferred")
        assert found["key/value heads"][0] == 32 // (128 // heads)
        assert facts(attention(extra=extra), {"num_attention_heads": heads})["heads"] == (heads, "certain")
        assert facts(attention(extra=extra), {"num_attention_heads": 2})["heads"] == (heads, "inferred")


def test_a_gate_beside_the_queries_is_not_taken_for_heads():
    found = facts(attention(query=256, output=128), {"num_attention_heads": 8})
    assert "gate" in found["attention"][0]
    assert found["width of a head"][0] == 16
    assert "gate" not in facts(attention(query=128, output=128))["attention"][0]


def test_norms_biases_scales_and_the_width_of_a_memory():
    extra = (
        part("q_proj.bias", "q", 128), part("input_norm.bias", "other", WIDTH),
        part("layer_scale_1.gamma", "other", WIDTH),
        part("cross.k_proj.weight", "cross_k", 64, 40),
    )  # fmt: skip
    told = {f.what: f for f in block_facts(attention(extra=extra), WIDTH, None)}
    assert told["norms of queries and keys"].value == "absent"
    assert told["norms"].value == "1, with a shift, as layer norms"
    assert told["biases"].value == "q_proj"
    assert told["scales of a branch"].value == "layer_scale_1.gamma"
    assert told["width of what is attended to"].value == 40
    assert "of another width" in told["width of what is attended to"].why
    normed = attention(extra=(part("k_norm.weight", "other", 16),))
    told = {f.what: f for f in block_facts(normed, WIDTH, None)}
    assert (told["norms of queries and keys"].value, told["norms of queries and keys"].why) == (
        "present",
        "k_norm",
    )
    assert told["norms"].value == "1, without a shift, as root-mean-square norms"
    assert told["biases"].value == "none"
    assert not {"scales of a branch", "width of what is attended to"} & set(told)


@pytest.mark.parametrize(
    ("rows", "output", "divided"),
    [(192, 128, (128, 32)), (130, 128, (128, 1)), (288, None, (96, 96)), (191, 128, None), (128, 128, None)],
)
def test_packed_projections_divide_by_the_output_matrix(rows, output, divided):
    parts = [
        part("qkv.weight", "qkv", rows, WIDTH),
        *([part("o.weight", "o", WIDTH, output)] if output else []),
    ]
    said = facts(parts)["attention"][0]
    if divided:
        assert f"{divided[0]} + {divided[1]} + {divided[1]} rows" in said
    else:
        assert said == f"packed q, k, v of {rows} rows"
        assert "heads" not in facts(parts)
    turned = [part("c_attn.weight", "qkv", WIDTH, rows)]
    assert facts(turned)["attention"][0].endswith("rows")
    assert not facts([part("norm.weight", "q", WIDTH, 3)])


def test_neurons_gates_and_experts():
    down = part("down.weight", "down", WIDTH, 256)
    assert facts([down]) == {"neurons": (256, "inferred"), "MLP": ("plain", "inferred")}
    assert (
        facts([part("down.weight", "down", 256, WIDTH), part("gate.weight", "gate", 256, WIDTH)])["MLP"][0]
        == "gated"
    )
    assert (
        facts([part("down.weight", "down", 256, WIDTH), part("up.weight", "gate_up", 512, WIDTH)])["MLP"][0]
        == "gated"
    )
    assert not facts([part("up.weight", "up", 256, WIDTH)])
    one_by_one = facts([part("experts.0.down.weight", "down", WIDTH, 40, each=6)])
    assert one_by_one["experts"] == (6, "certain")
    assert one_by_one["neurons"][0] == 40
    stacked = facts([part("experts.down", "down", 7, 40, WIDTH)])
    assert (stacked["experts"][0], stacked["neurons"][0]) == (7, 40)
    assert "experts" not in facts([part("mlp.down.weight", "down", WIDTH, 40, each=6)])
    assert "experts" not in facts([part("expert.down.weight", "down", WIDTH, 40)])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("adaLN.weight", "modulation"),
        ("mixer.A_log", "recurrent mixer"),
        ("q.qweight", "quantized"),
        ("q.lora_A.weight", "adapters"),
        ("crossattention.q", "cross-attention"),
        ("EncDecAttention.q", "cross-attention"),
        ("encoder_attn.q", "cross-attention"),
    ],
)
def test_other_things_are_told_by_names(name, what):
    assert set(facts([part(name, "other", 4)])) == {what}
    assert not facts([part("plain", "other", 4)])


def test_the_width_is_what_norms_matrices_and_a_table_share():
    parts = attention()
    fact = width_of(parts, [(500, WIDTH)], None)
    assert (fact.value, fact.how) == (WIDTH, "inferred")
    assert width_of(parts, [(500, WIDTH)], {"hidden_size": WIDTH}).how == "certain"
    other = width_of(parts, [(500, WIDTH)], {"hidden_size": 55})
    assert (other.value, other.how) == (WIDTH, "inferred")
    assert "55" in other.why
    assert width_of(parts, [], None).value == WIDTH
    assert width_of(parts, [(500, 128)], None).value == 128, "a table's columns, though no norm is as wide"
    assert width_of(parts, [(500, 128), (30, WIDTH)], None).value == WIDTH
    bare = [part("a.weight", "x", 50, 70), part("b.weight", "x", 70, 20), part("c.weight", "x", 70, 70)]
    assert width_of(bare, [], None).value == 70
    assert width_of([part("norm.weight", "x", 8)], [(10, 8)], None) is None
    per_head = [part(f"{i}.q_norm.weight", "x", 16) for i in range(5)]
    assert width_of([*attention(), *per_head, part("m.weight", "x", 16, 40)], [], None).value == WIDTH


def test_sections_of_a_configuration():
    whole = {"hidden_size": 8, "text_config": {"hidden_size": 5}, "vision_config": {"hidden_size": 6}}
    assert section(None, "model.layers") is None
    assert section(whole, "model.vision.layers")["hidden_size"] == 6
    assert section(whole, "model.layers")["hidden_size"] == 5
    assert section({"hidden_size": 8}, "model.layers")["hidden_size"] == 8
    sides = {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "d_model": 9}
    assert section(sides, "model.encoder.layers") == {
        "d_model": 9,
        "attention_heads": 4,
        "num_attention_heads": 4,
    }
    assert section(sides, "model.decoder.layers")["num_attention_heads"] == 2
    assert section(sides, "model.layers") == sides


def header(tensors, data):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(shape, start, stop, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}


GOOD = {
    "b": entry([2, 3], 0, 24),
    "a": entry([5], 24, 29, "U8"),
    "__metadata__": {"format": "pt"},
    "c": entry([0], 29, 29, "I64"),
}


def test_a_header_names_tensors_that_cover_the_file(tmp_path):
    file = tmp_path / "m.safetensors"
    file.write_bytes(header(GOOD, 29))
    assert set(check_header(file)) == {"a", "b", "c"}
    assert parse_header("m", b"{}", 10) == {}


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({}, 28),
        ({}, 30),
        ({"b": entry([2, 3], 0, 23)}, 29),
        ({"b": entry([2, 4], 0, 24)}, 29),
        ({"a": entry([5], 25, 30, "U8")}, 30),
        ({"a": entry([5], 23, 28, "U8")}, 29),
        ({"a": entry([-5], 24, 29, "U8")}, 29),
        ({"a": entry([5], 24, 29, "X")}, 29),
        ({"a": entry([5], 24, 29, "U77")}, 29),
        ({"a": entry([True], 24, 29, "U8")}, 29),
        ({"a": entry([5.0], 24, 29, "U8")}, 29),
        ({"a": {**entry([5], 24, 29, "U8"), "more": 1}}, 29),
        ({"a": {**entry([5], 24, 29, "U8"), "data_offsets": [24, 29, 29]}}, 29),
        ({"a": {**entry([5], 24, 29, "U8"), "shape": 5}}, 29),
        ({"a": 3}, 29),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change, data):
    (tmp_path / "m.safetensors").write_bytes(header({**GOOD, **change}, data))
    with pytest.raises(CheckpointError):
        check_header(tmp_path / "m.safetensors")


def test_lengths_of_headers():
    for length, size in ((2, 10), (50, 58), (50, 99)):
        assert header_length("m", struct.pack("<Q", length), size) == length
    for first, size in (
        (struct.pack("<Q", 1), 99),
        (struct.pack("<Q", 51), 58),
        (b"1234567", 99),
        (struct.pack("<Q", 10**8 + 1), 10**9),
    ):
        with pytest.raises(CheckpointError, match="length"):
            header_length("m", first, size)
    for text in (b"[]", b"{", b"\xff"):
        with pytest.raises(CheckpointError):
            parse_header("m", text, 8 + len(text))


def test_weight_files_are_those_of_the_index(tmp_path):
    with pytest.raises(CheckpointError, match="no safetensors"):
        weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickle"):
        weight_files(tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    assert [file.name[0] for file in weight_files(tmp_path)] == ["a", "b", "c"]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"x": "c.safetensors", "y": "a.safetensors", "z": "a.safetensors"}})
    )
    assert [file.name[0] for file in weight_files(tmp_path)] == ["a", "c"]
    (tmp_path / "c.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of its 2"):
        weight_files(tmp_path)
    for broken in ("{", "{}", "[]", '{"weight_map": []}'):
        index.write_text(broken)
        with pytest.raises(CheckpointError, match="names no shards"):
            shards_of(index)


def test_tensors_in_nested_arguments():
    a, b, c = (torch.full((2,), float(i)) for i in range(3))
    nested = {"args": (1, a), "kwargs": {"x": [b, None], "y": "text", "z": {"w": c}}}
    assert [path for path, _ in walk_tensors(nested)] == [
        ("args", 1),
        ("kwargs", "x", 0),
        ("kwargs", "z", "w"),
    ]
    found = map_tensors(nested, lambda path, tensor: (path[-1], float(tensor[0])))
    assert found == {
        "args": (1, (1, 0.0)),
        "kwargs": {"x": [(0, 1.0), None], "y": "text", "z": {"w": ("w", 2.0)}},
    }
    assert main_tensor((None, b, a)) is b
    assert main_tensor([]) is None
    replaced = with_main_tensor((None, b, a), c)
    assert replaced[0] is None
    assert replaced[1] is c
    assert replaced[2] is a
    assert with_main_tensor(a, c) is c
    assert same_memory(a, a.view(2))
    assert not same_memory(a, a[:1])
    assert not same_memory(a, a.clone())
    assert not same_memory(a, a.view(torch.int32))


def test_the_largest_difference_counts_nan_and_infinity():
    inf, nan = float("inf"), float("nan")
    for a, b, wanted in (
        ([1.0, -2.0], [1.5, -5.0], 3.0),
        ([inf, 1.0], [inf, 1.0], 0.0),
        ([inf], [-inf], inf),
        ([inf], [1.0], inf),
        ([nan, 1.0], [nan, 3.0], 2.0),
        ([nan, 1.0], [1.0, nan], inf),
        ([], [], 0.0),
        ([1.0], [1.0, 1.0], inf),
    ):
        assert largest_difference(torch.tensor(a), torch.tensor(b)) == wanted


def test_writes_in_place_are_counted_where_pytorch_counts_them():
    counted = torch.zeros(2)
    assert [version(counted), version(counted.add_(1)), version(counted.mul_(2))] == [0, 1, 2]
    with torch.inference_mode():
        assert version(torch.zeros(2)) == version(torch.zeros(2).add_(1)) == -1
