"""Rows of a data set as what adapters are trained on: the same as a file of them gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

import regraft
from regraft.jobs.transcoder_text import TextSource, text_of_source
from regraft.specimens import almanac

CHATS = [
    {
        "conversations": [
            {"value": f"What is {n} and {n}?"},
            {"value": f"<think> {n} + {n} = {2 * n}. </think> {2 * n}."},
        ],
        "domain": "math" if n % 2 else "code",
    }
    for n in range(1, 13)
]


@pytest.fixture(scope="module")
def model():
    return regraft.load("specimen:qwen3")


def folder_of(path, rows):
    """A data set as a folder of JSONL, as `datasets` opens it."""
    path.mkdir()
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_turns_are_chat_records(model, tmp_path):
    folder = folder_of(tmp_path / "set", CHATS)
    shares = {"math": 0.5, "code": 0.5}
    options = {"length": 64, "prompts_count": False, "shares": shares, "seed": 3}
    found = text_of_source(model, TextSource(dataset=folder, **options), tmp_path)
    wanted = text_of_source(model, TextSource([f"{folder}/train.jsonl"], **options), tmp_path)
    assert len(found) == 12
    assert found.digest() == wanted.digest()
    fewer = text_of_source(model, TextSource(dataset=folder, rows=5, length=64), tmp_path)
    assert len(fewer) == 5, "the first rows alone are read"
    wrong = [*CHATS, {"conversations": [{"value": "alone"}], "domain": ""}]
    with pytest.raises(ValueError, match=r"row 13 of .* has no question and answer"):
        text_of_source(model, TextSource(dataset=folder_of(tmp_path / "wrong", wrong)), tmp_path)


def test_rows_of_text_are_windows_and_read_anew_each_time(model, tmp_path):
    texts = almanac.corpus(4000, 3)
    folder = folder_of(tmp_path / "set", [{"text": text} for text in texts])
    found = text_of_source(model, TextSource(dataset=folder, length=32), tmp_path)
    end = model.tokenizer.eos_token_id
    ids = [i for text in texts for i in [*model.tokenizer(text, add_special_tokens=False)["input_ids"], end]]
    assert found.ids.tolist() == ids
    assert found.length == 32
    del found
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"text": " ".join(texts[:3])}) + "\n")
    again = text_of_source(model, TextSource(dataset=folder, length=32), tmp_path)
    assert len(again.ids) < len(ids), "what the folder holds now"
    assert np.array_equal(again.ids[:20], ids[:20])
    with pytest.raises(ValueError, match="domains have shares in chat records alone"):
        text_of_source(model, TextSource(dataset=folder, shares={"math": 1.0}), tmp_path)


def test_two_sources_none_and_one_without_rows_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="--text and --dataset are both given: choose one"):
        text_of_source(model, TextSource(["a.txt"], dataset="b"), tmp_path)
    with pytest.raises(ValueError, match=r"the data set .* does not open"):
        text_of_source(model, TextSource(dataset=str(tmp_path / "none")), tmp_path)
    with pytest.raises(ValueError, match=r"the data set .* has no row"):
        text_of_source(model, TextSource(dataset=folder_of(tmp_path / "set", CHATS), rows=0), tmp_path)
    with pytest.raises(ValueError, match="domains have shares in chat records alone"):
        text_of_source(model, TextSource(shares={"math": 1.0}), tmp_path)
    sums = text_of_source(model, TextSource(length=20), tmp_path)
    assert (len(sums), sums.length) == (4000, 20), "worked sums, cut"
