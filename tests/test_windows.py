"""Training text: encoded once, cut into windows, every window once before any twice; from files and from data
sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from regraft.data import text_files as texts
from regraft.data.windows import cut, windows, windows_over
from regraft.model.load import load


def test_windows_are_seen_once_before_any_twice():
    made_of = cut(np.arange(64, dtype=np.uint32), 8, seed=3)
    first = torch.cat([made_of.batch(step, 2) for step in range(4)])
    assert sorted(first.flatten().tolist()) == list(range(64))
    assert not torch.equal(first, torch.cat([made_of.batch(step, 2) for step in range(4, 8)]))
    assert torch.equal(made_of.batch(5, 2), cut(np.arange(64, dtype=np.uint32), 8, seed=3).batch(5, 2))
    with pytest.raises(ValueError, match="less than one sequence of 65"):
        cut(np.arange(64, dtype=np.uint32), 65)


def test_text_is_encoded_once(tmp_path):
    model = load("specimen:gpt2")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("She sells sea shells. " * 50)
    (tmp_path / "text" / "b.jsonl").write_text('{"text": "Once upon a time."}\n' * 3)
    found = windows(model, [tmp_path / "text"], 32, tmp_path / "cache")
    ids = found.ids.tolist()
    assert model.tokenizer.decode(ids[:5]).startswith("She sells")
    assert ids.count(model.tokenizer.eos_token_id) == 4
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    windows(model, [tmp_path / "text"], 16, tmp_path / "cache")
    assert file.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="is neither a file nor a folder"):
        windows(model, [tmp_path / "none"], 32, tmp_path / "cache")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"line 1 of bad\.jsonl has no text"):
        windows(model, [tmp_path / "bad.jsonl"], 32, tmp_path / "cache")


def test_a_document_is_not_cut_by_ends_of_text(tmp_path, monkeypatch):
    """A file is read in pieces and stays one document; a line of JSONL is one each."""
    monkeypatch.setattr(texts, "PIECE", 60)
    model = load("specimen:gpt2", pack=False)
    end, book = model.tokenizer.eos_token_id, "She sells sea shells.\n" * 40
    (tmp_path / "a.txt").write_text(book)
    (tmp_path / "b.txt").write_text(book[:500])
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f"Line {n}."}) + "\n" for n in range(3)))
    made = windows(model, [tmp_path], 16, tmp_path / "ids").ids.tolist()
    assert made.count(end) == 2 + 3
    first = made[: made.index(end)]
    assert model.tokenizer.decode(first) == book
    assert "".join(piece for piece, _ in texts.pieces_in(tmp_path / "a.txt")) == book
    assert [ends for _, ends in texts.pieces_in(tmp_path / "a.txt")].count(True) == 1


def test_empty_and_short_texts_are_refused(tmp_path):
    model = load("specimen:gpt2")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("She sells.")
    for name in ("empty", "short"):
        with pytest.raises(ValueError, match=r"the text has \d tokens, less than one sequence of 32"):
            windows(model, [tmp_path / f"{name}.txt"], 32, tmp_path / "cache")
    with pytest.raises(ValueError, match="there is no text"):
        windows(model, [], 32, tmp_path / "cache")


def test_a_data_set_is_encoded_as_it_comes(tmp_path):
    """Rows of a data set, or plain texts, from an iterator that can be run through once; what was encoded is
    taken as it is."""
    model = load("specimen:gpt2")
    texts = ["She sells sea shells. " * 9, "Once upon a time. " * 9]
    rows = windows_over(
        model.tokenizer, ({"text": text, "id": 1} for text in texts), 16, tmp_path / "rows.ids"
    )
    (tmp_path / "same.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    files = windows(model, [tmp_path / "same.jsonl"], 16, tmp_path / "cache")
    assert np.array_equal(rows.ids, files.ids)
    again = windows_over(model.tokenizer, iter(()), 16, tmp_path / "rows.ids")
    assert np.array_equal(again.ids, rows.ids)
    with pytest.raises(ValueError, match="has no text under `text`, only words"):
        windows_over(model.tokenizer, [{"words": "x"}], 16, tmp_path / "other.ids")
    assert not (tmp_path / "other.ids").exists()
