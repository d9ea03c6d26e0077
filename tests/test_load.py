"""What cannot be opened is refused in one clear sentence; what can be is what it says."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import CheckpointError, check_header
from regraft.core.tolerance import gap
from regraft.model.load import load
from regraft.specimens import almanac


@pytest.fixture
def folder(tmp_path):
    """A copy of the smallest specimen without its checksums, to be damaged."""
    target = tmp_path / "model"
    shutil.copytree(resolve("specimen:gpt2")[0], target)
    (target / "SHA256SUMS").unlink()
    return target


def refused(folder, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_specimens_open_with_their_known_facts():
    sizes = {"qwen3": 6_297_024, "tuned": 6_297_024, "gpt2": 1_383_168, "t5": 1_706_368}
    for name, size in sizes.items():
        model = load(f"specimen:{name}")
        assert sum(p.numel() for p in model.hf.parameters()) == size
        assert model.check.replays
        assert model.dtype == torch.float32
    model = load()
    assert model.name == "specimen:qwen3"
    recording = model.record("The time displayed is 9:00 pm. Therefore, it is currently the")
    assert model.token_text(int(recording["logits"][0, -1].argmax())) == " night"


def test_the_almanac_is_deterministic():
    assert almanac.corpus(2000, seed=3) == almanac.corpus(2000, seed=3)
    assert almanac.part_of_day(9, "am") == "morning"
    assert almanac.part_of_day(9, "pm") == "night"


def test_not_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        load(tmp_path / "nothing")
    refused(tmp_path, "no config.json")
    with pytest.raises(CheckpointError, match="no specimen 'gpt9': choose one of qwen3, tuned, gpt2, t5"):
        load("specimen:gpt9")
    with pytest.raises(CheckpointError, match="neither a folder here nor a model"):
        load("nobody/has-this-model")


def test_only_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    refused(folder, r"only as a pickle \(pytorch_model.bin\).*convert it.*save_pretrained")


def test_truncated_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "cut short .* fetch the file again")
    file.write_bytes(file.read_bytes()[:40])
    refused(folder, "damaged or cut")
    file.write_bytes(b"abc")
    refused(folder, "damaged or cut")


def test_flipped_bits_in_the_header(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    middle = whole.index(b'"shape":[') + 9
    for place, words in (
        (1, "damaged"),
        (9, "damaged"),
        (middle, "does not lie where its shape says|damaged"),
    ):
        damaged = bytearray(whole)
        damaged[place] ^= 0x02
        file.write_bytes(bytes(damaged))
        refused(folder, words)
    assert length > middle - 8


def test_a_flipped_bit_in_the_weights_is_seen_where_there_are_checksums(folder):
    shutil.copy(resolve("specimen:gpt2")[0] / "SHA256SUMS", folder)
    load(folder)
    file = folder / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1001] ^= 0x10
    file.write_bytes(bytes(damaged))
    refused(folder, "model.safetensors differs from the checksum")


@pytest.mark.slow
def test_every_flipped_bit_of_a_header_is_refused_or_harmless(folder):
    """Any one bit of the header: a sentence, or a header that still says the same of every byte; never
    another error."""
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    clean, length = check_header(file), struct.unpack("<Q", whole[:8])[0]
    same = refusals = 0
    for place in range(8 + length):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place * 5 % 8)
        file.write_bytes(bytes(damaged))
        try:
            found = check_header(file)
        except CheckpointError:
            refusals += 1
            continue
        same += 1
        assert sorted(e["data_offsets"] for e in found.values()) == sorted(
            e["data_offsets"] for e in clean.values()
        )
    assert refusals > same


def test_a_header_that_is_json_but_no_table(folder):
    for header in (b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "XX", "shape": [1], "data_offsets": [0, 4]}}'):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        refused(folder, "is damaged")


def test_broken_checksums_and_index(folder):
    (folder / "SHA256SUMS").write_text("\nabc  missing.safetensors\n")
    refused(folder, "names missing.safetensors, which is not in")
    (folder / "SHA256SUMS").unlink()
    (folder / "model.safetensors.index.json").write_text("{")
    refused(folder, "names no shards")


def test_a_config_of_a_smaller_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    refused(folder, r"holds \d+ tensors of blocks that its config does not call for, first transformer.h.3")


def test_a_sharded_checkpoint_is_the_same_model(tmp_path):
    source = load("specimen:gpt2")
    source.hf.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = load(tmp_path / "shards")
    assert all(
        torch.equal(tensor, again.hf.state_dict()[name]) for name, tensor in source.hf.state_dict().items()
    )
    assert gap(again.record([5, 6, 7])["logits"], source.record([5, 6, 7])["logits"]) <= source.rounding


def test_a_folder_that_is_called_like_a_specimen(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "specimen-mine")
    assert load("specimen-mine").name == "specimen-mine"
    assert load("specimen").name == "specimen:qwen3"


def test_an_edit_in_place_is_noticed():
    model = load("specimen:gpt2")
    before = model.weights_sha256
    with torch.no_grad():
        model.hf.transformer.h[0].mlp.c_proj.weight[0, 0] += 1.0
    assert model.weights_sha256 != before


def test_absurd_header_length_allocates_nothing(folder):
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 60) + file.read_bytes()[8:])
    refused(folder, "its header length does not fit")


def test_overlapping_offsets(folder):
    file = folder / "model.safetensors"
    header = json.dumps(
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        }
    ).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(CheckpointError, match="tensor b does not lie where its shape says"):
        check_header(file)


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_shapes_that_disagree_with_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 64}))
    refused(folder, "disagree with its config.json")


def test_missing_tensors_are_named_not_made_up(folder):
    rewrite(folder, lambda tensors: tensors.pop("transformer.h.2.mlp.c_fc.weight"))
    refused(folder, r"lacks 1 tensors that its config calls for \(transformer.h.2.mlp.c_fc.weight\)")


def test_nan_weights(folder):
    def poison(tensors):
        tensors["transformer.h.1.attn.c_attn.weight"][3, 3] = float("nan")

    rewrite(folder, poison)
    refused(folder, r"hold NaN .* first in transformer.h.1.attn.c_attn.weight")

    def explode(tensors):
        tensors["transformer.h.1.attn.c_attn.weight"][3, 3] = float("inf")

    rewrite(folder, explode)
    refused(folder, "hold infinite values, first in transformer.h.1.attn.c_attn.weight")


def test_a_missing_shard(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "lacks 2 of its 2 shards: model-00001-of-00002.safetensors")


def test_without_a_tokenizer_ids_still_work(folder):
    for file in folder.glob("token*"):
        file.unlink()
    model = load(folder)
    with pytest.raises(ValueError, match="has no tokenizer: write token ids"):
        model.record("words")
    with pytest.raises(ValueError, match="has no tokenizer: give the target as a token id"):
        model.single_token(" sea")
    assert model.record([5, 6, 7]).positions == 3
    again = load(folder, tokenizer="specimen:gpt2")
    assert again.record("words").positions >= 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": {}}', b"[1]", b"\xff\xfe"])
def test_a_damaged_tokenizer_is_one_sentence(folder, content):
    """In the words of no library; with another one named, its own files are not looked at."""
    (folder / "tokenizer.json").write_bytes(content)
    refused(
        folder,
        r"the tokenizer of model does not open \(.+\): fetch its files again, or name another one with"
        r" --tokenizer",
    )
    assert load(folder, tokenizer="specimen:gpt2").record("words").positions >= 1


def test_prompts_and_targets():
    model = load("specimen:gpt2")
    for empty in ("", [[]]):
        with pytest.raises(ValueError, match="the prompt is empty"):
            model.record(empty)
    with pytest.raises(ValueError, match="token id 4096 is outside the vocabulary of 4096"):
        model.record([1, 4096])
    with pytest.raises(ValueError, match="2 prompts but 1 completions"):
        model.record(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"is \d tokens here \('.*'\): choose one that is one token"):
        model.single_token(" incomprehensible")


def test_wrong_options():
    live = load("specimen:gpt2").hf
    for options in ({"dtype": "bfloat16"}, {"device": "cpu"}):
        with pytest.raises(ValueError, match="a live model is opened as it is"):
            load(live, **options)
    with pytest.raises(ValueError, match="dtype 'float3' is not known"):
        load("specimen:gpt2", dtype="float3")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU: use --device cpu"):
            load("specimen:gpt2", device="cuda")


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_float_types_replay(dtype):
    model = load("specimen:gpt2", dtype=dtype)
    assert model.check.replay == 0.0
    assert model.check.replays


def test_the_weights_hash_tells_models_apart():
    one, two = load("specimen:qwen3"), load("specimen:tuned")
    assert one.weights_sha256 != two.weights_sha256
    live = load(one.hf, one.tokenizer)
    assert live.weights_sha256 == load(one.hf).weights_sha256 != load(two.hf).weights_sha256
