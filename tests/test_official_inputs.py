"""What a reference reads of a folder, and what it is fed."""

from __future__ import annotations

import json

import pytest
import torch

from regraft.checkpoint.locate import CheckpointError
from regraft.reference.checkpoint_reader import (
    _pooling,
    _read_by_transformers,
    first_inputs,
    model_inputs,
    read_settings,
    token_ids,
    with_token,
)
from regraft.reference.verify import _first, _same


def test_which_files_are_read(tmp_path):
    files = [tmp_path / name for name in ("model.fp16.safetensors", "model.safetensors")]
    assert _read_by_transformers(files) == files[1:]
    assert _read_by_transformers(files[:1]) == files[:1]
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert _read_by_transformers(files) == files


def test_settings_of_a_sentence_encoder(tmp_path):
    (tmp_path / "config.json").write_text('{"size": 3}')
    assert read_settings(tmp_path) == {"size": 3, "pooling": "", "normalises": False}
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}'
    )
    listed = [
        {"type": "x.Transformer", "path": ""},
        {"type": "x.Pooling", "path": "1_Pooling"},
        {"type": "x.Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    assert read_settings(tmp_path) == {"size": 3, "pooling": "mean", "normalises": True}
    (tmp_path / "modules.json").write_text(json.dumps([*listed, {"type": "x.Dense"}]))
    with pytest.raises(ValueError, match="Dense"):
        read_settings(tmp_path)
    for broken in ("{}", "[3]"):
        (tmp_path / "modules.json").write_text(broken)
        with pytest.raises(CheckpointError, match="no list"):
            read_settings(tmp_path)
    for said, name in (
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean_tokens+max_tokens"),
        ({"pooling_mode_mean_tokens": 1}, ""),
    ):
        assert _pooling(said) == name
    for broken in ("[]", "{"):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(CheckpointError):
            read_settings(tmp_path)


def test_ids_and_inputs(tmp_path):
    assert token_ids(tmp_path, ["5, 6 7", "8"]) == [[5, 6, 7], [8]]
    for empty in ([], ["5", " "]):
        with pytest.raises(ValueError, match="empty"):
            token_ids(tmp_path, empty)
    with pytest.raises(ValueError, match="token ids"):
        token_ids(tmp_path, ["five"])
    rows_ = [[5, 6, 7], [8]]
    found = {
        name: value.tolist()
        for name, value in model_inputs({"pad_token_id": 4}, rows_, False, [[0, 1, 1], [1]]).items()
    }
    assert found == {
        "input_ids": [[5, 6, 7], [8, 4, 4]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 1, 1], [1, 0, 0]],
    }
    assert set(model_inputs({}, [[5, 6], [7, 8]], False)) == {"input_ids"}
    two = model_inputs({"decoder_start_token_id": 2}, [list(range(10, 20)), [9, 8]], True)
    assert two["decoder_input_ids"].tolist() == [[2, 10, 11], [2, 9, 8]]
    assert model_inputs({"decoder_start_token_id": 2}, [list(range(10, 20))], True)[
        "decoder_input_ids"
    ].shape == (1, 8)
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        model_inputs({}, rows_, True)
    first = first_inputs(model_inputs({}, [[8], [5, 6, 7]], False))
    assert {name: value.tolist() for name, value in first.items()} == {"input_ids": [[8]]}
    assert first_inputs(two)["decoder_input_ids"].tolist() == [[2]]
    assert with_token(first, 3)["input_ids"].tolist() == [[8, 3]]
    assert with_token(first_inputs(two), 3)["decoder_input_ids"].tolist() == [[2, 3]]


def test_continuations_are_compared_token_by_token():
    assert "3 tokens continued greedily are the same" in _same([1, 2, 3], [1, 2, 3])
    assert "part at token 1" in _same([1, 2, 3], [1, 4, 3])
    assert "part at token 2" in _same([1, 2], [1, 2, 3])
    assert _first(torch.arange(7.0)) == "[0, 1, 2, 3, 4, ...]"
