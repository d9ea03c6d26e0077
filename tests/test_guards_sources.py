"""Checkpoints at a hub that answers as it is told; rotations and masks of rebuilt models; projections that no
head divides."""

from __future__ import annotations

import json
import math
import struct
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import RepoFile
from torch import nn

from regraft.checkpoint import headers as module
from regraft.checkpoint.headers import _at_most, _index, _part, _Store, read_headers
from regraft.checkpoint.locate import CheckpointError
from regraft.model.sites import SiteError, Tap, _projection_input, _query_key_value, _separate_tap
from regraft.reference.qwen3 import llama3_speeds, rms_norm, rotated, rotations, who_sees_whom
from small import opened


def file_of(tensors):
    """A safetensors file of float32 tensors with these shapes."""
    entries, at = {}, 0
    for name, shape in tensors.items():
        size = 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


@pytest.fixture
def hub(monkeypatch):
    """A repository as a dictionary of files; and what was asked for."""
    files, asked = {}, []

    def part(repository, name, start, length):
        assert repository == "owner/name"
        asked.append((name, start, length))
        return files[name][start : start + length], len(files[name])

    monkeypatch.setattr(module, "_range", part)

    def tree(source, recursive):
        assert recursive
        return [RepoFile(path=name, size=len(content), oid="") for name, content in files.items()]

    monkeypatch.setattr(module, "HfApi", lambda: SimpleNamespace(list_repo_tree=tree))
    return files, asked


def test_a_hub_is_asked_for_headers_and_small_files_only(hub):
    files, asked = hub
    files["model.safetensors"] = file_of({"a": (2, 3), "b": (4,)})
    files["config.json"] = b'{"hidden_size": 3}'
    files["README.md"] = b"nothing"
    files["text/model.safetensors"] = file_of({"c": (5,)})
    whole, text = read_headers("owner/name")
    assert (whole.part, text.part) == ("", "text")
    assert {name: (e.shape, e.count, e.bytes) for name, e in whole.entries.items()} == {
        "a": ((2, 3), 6, 24),
        "b": ((4,), 4, 16),
    }
    assert (whole.config, text.config) == ({"hidden_size": 3}, None)
    assert {name for name, *_ in asked} == {"model.safetensors", "config.json", "text/model.safetensors"}
    assert (
        sum(length for name, _, length in asked if name.endswith("safetensors"))
        < len(files["model.safetensors"]) + 100
    )


@pytest.mark.parametrize("config", [b"[]", b"{"])
def test_what_a_hub_says_must_be_a_table(hub, config):
    files, _ = hub
    files["model.safetensors"] = file_of({"a": (2, 3)})
    files["config.json"] = config
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_headers("owner/name")


def test_files_that_are_too_large_or_not_there(hub, monkeypatch):
    files, _ = hub
    files["config.json"] = b"{}"
    for names in ({}, {"pytorch_model.bin": b""}):
        files.update(names)
        with pytest.raises(CheckpointError, match=r"pickle" if names else "no safetensors"):
            read_headers("owner/name")
    files["model.safetensors"] = file_of({"a": (2, 3)})
    monkeypatch.setattr(module, "LARGEST_JSON", 1)
    with pytest.raises(CheckpointError, match="larger"):
        read_headers("owner/name")
    monkeypatch.setattr(module, "LARGEST_JSON", 2)
    read_headers("owner/name")
    for wrong in ("name", "a/b/c", "specimen:none"):
        with pytest.raises(CheckpointError):
            read_headers(wrong)


def store(shards, index=None):
    names = [*shards, *(["model.safetensors.index.json"] if index is not None else [])]
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    sizes = dict.fromkeys(names, 8)
    return _Store("here", sizes, lambda name: dict.fromkeys(shards[name], entry), lambda name: index, True)


def test_shards_and_their_index():
    shards = {"a.safetensors": ["x"], "b.safetensors": ["y", "x"]}
    found = _part(store(shards), "", sorted(shards))
    assert {name: entry.file[0] for name, entry in found.entries.items()} == {"x": "a", "y": "b"}
    assert found.notes == ["1 tensors stand in more than one file; each is counted once"]
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    assert _index(store(shards, index), "") == index["weight_map"]
    assert _index(store(shards, index), "other") == {}
    assert len(_part(store(shards, index), "", sorted(shards)).notes) == 1
    some = _part(
        store({"a.safetensors": ["x", "z"]}, {"weight_map": {"x": "a.safetensors"}}), "", ["a.safetensors"]
    )
    assert any("1 tensors stand in no index, first z" in note for note in some.notes)
    for said, word in (
        ({"weight_map": {"x": "a.safetensors", "y": "c.safetensors"}}, "1 of its 2"),
        ({"weight_map": {"x": "a.safetensors", "q": "b.safetensors"}}, "names q"),
        ({"weight_map": {"x": 3}}, "no shards"),
        ({"weight_map": []}, "no shards"),
        ([], "no shards"),
    ):
        with pytest.raises(CheckpointError, match=word):
            _part(store(shards, said), "", sorted(shards))
    assert _at_most(iter([b"abc", b"def", b"ghi"]), 5) == b"abcde"
    assert _at_most(iter([b"abc"]), 5) == b"abc"
    assert _at_most(iter([b"abc", b"def"]), 3) == b"abc"


def test_angles_grow_with_the_position():
    cos, sin = rotations({"rope_theta": 100.0, "rope_type": "default"}, 6, 4)
    for t in range(4):
        for j in range(6):
            angle = t * 100.0 ** (-2 * (j % 3) / 6)
            assert float(cos[t, j]) == pytest.approx(math.cos(angle), abs=1e-6)
            assert float(sin[t, j]) == pytest.approx(math.sin(angle), abs=1e-6)
    x = torch.randn(1, 1, 4, 6)
    turned = rotated(x, cos, sin)
    for j in range(3):
        pair = torch.complex(x[..., j], x[..., j + 3]) * torch.complex(cos[:, j], sin[:, j])
        torch.testing.assert_close(turned[..., j], pair.real)
        torch.testing.assert_close(turned[..., j + 3], pair.imag)


def test_slow_rotations_are_slowed_and_those_between_blended():
    rope = {
        "original_max_position_embeddings": 64,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    waves = [4.0, 15.9, 16.1, 30.0, 63.0, 65.0, 500.0]
    found = llama3_speeds(torch.tensor([2 * math.pi / wave for wave in waves]), rope)
    for wave, value in zip(waves, found.tolist(), strict=True):
        speed = 2 * math.pi / wave
        if wave < 16:
            wanted = speed
        elif wave > 64:
            wanted = speed / 8
        else:
            share = (64 / wave - 1) / 3
            wanted = (1 - share) * speed / 8 + share * speed
        assert value == pytest.approx(wanted, rel=1e-4)
    plain = rotations({"rope_theta": 1e4, "rope_type": "default"}, 8, 5)
    assert not torch.equal(rotations({"rope_theta": 1e4, "rope_type": "llama3", **rope}, 8, 5)[0], plain[0])


@pytest.mark.parametrize("window", [0, 2])
def test_who_sees_whom(window):
    inputs = {"input_ids": torch.zeros(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    seen = who_sees_whom(inputs, window)
    for b in range(2):
        for i in range(4):
            for j in range(4):
                near = j <= i and (not window or i - j < window)
                assert bool(seen[b, i, j]) == (near and bool(inputs["attention_mask"][b, j]))
    x, weight = torch.randn(2, 5), torch.rand(5)
    torch.testing.assert_close(
        rms_norm(x, weight, 0.1), weight * x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    )


class Attention(nn.Module):
    def __init__(self, **linears):
        super().__init__()
        for name, (inputs, outputs) in linears.items():
            self.add_module(name, nn.Linear(inputs, outputs))


def branch(attention=None, recurrent=False, projection=None):
    return SimpleNamespace(attention=attention, recurrent=recurrent, projection=projection)


def test_projections_that_no_head_divides():
    separate = Attention(q_proj=(8, 8), k_proj=(8, 4), v_proj=(8, 4), o_proj=(8, 8))
    z = Tap(separate.o_proj, "input", None, 4)
    found = _query_key_value(branch(separate), z)
    assert [(tap.module, tap.heads) for tap in found.values()] == [
        (separate.q_proj, 4),
        (separate.k_proj, 2),
        (separate.v_proj, 2),
    ]
    for given, tap in (
        (branch(separate), "no projection"), (branch(None), z),
        (branch(separate), Tap(separate.o_proj, "input", None, 0)),
        (branch(separate, recurrent=True), z), (branch(Attention(other=(8, 8))), z),
        (branch(Attention(q_proj=(8, 8), k_proj=(8, 8))), z),
    ):  # fmt: skip
        assert all(isinstance(reason, str) for reason in _query_key_value(given, tap).values())
    packed = Attention(qkv_proj=(8, 16), o_proj=(8, 8))
    assert _query_key_value(branch(packed), Tap(packed.o_proj, "input", None, 4))["k"].features.tolist() == [
        8,
        9,
        10,
        11,
    ]
    assert isinstance(_separate_tap("q", nn.Linear(8, 16), 4, 2), str)
    assert _separate_tap("k", nn.Linear(8, 16), 4, 2).heads == 8
    assert isinstance(_separate_tap("k", nn.Linear(8, 15), 4, 2), str)
    assert isinstance(_projection_input(branch(), "attention"), str)
    assert _projection_input(branch(projection=separate.o_proj), "attention").side == "input"
    with pytest.raises(SiteError, match="mixture"):
        opened("mixtral").site("0.neuron.3")
