"""Texts that a tokenizer is trained and measured on: broken lines, other scripts, few of them."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer

from regraft.data.text_files import texts_in
from regraft.model.load import load
from regraft.tokenizers.bits_per_byte import score
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.text_chunks import sampled
from regraft.tokenizers.tokenizer_folder import wrapped
from regraft.tokenizers.training import Recipe, train_bpe


def test_a_special_token_of_one_character_is_refused():
    with pytest.raises(ValueError, match="text would be full of it"):
        Recipe(400, specials=("a",))


def test_an_encoder_decoder_is_scored_on_the_second_half_of_the_characters():
    model = load("specimen:t5", pack=False)
    text = "The capital of France is Paris. The opposite of hot is cold."
    found = score(model, ByteIds(model.tokenizer), [text])
    left, right = (
        model.tokenizer(part, add_special_tokens=False, return_tensors="pt")["input_ids"]
        for part in (text[:30], text[30:])
    )
    start = torch.tensor([[model.hf.config.decoder_start_token_id]])
    assert int(start) != model.tokenizer.eos_token_id
    with torch.no_grad():
        logits = model.hf(input_ids=left, decoder_input_ids=torch.cat([start, right[:, :-1]], 1)).logits[0]
    nats = torch.nn.functional.cross_entropy(logits.double(), right[0], reduction="sum")
    assert found.bytes == 30
    assert found.nats == pytest.approx(float(nats), rel=1e-5)


def test_one_token_without_a_start_leaves_nothing_to_predict():
    model = load("specimen:qwen3", pack=False)
    bare = wrapped(Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str()), {})
    with pytest.raises(ValueError, match="no byte of the text is left"):
        score(model, ByteIds(bare), ["a"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"text": "ab"}\n\n{oops\n', "line 3 of .*broken.jsonl is no JSON"),
        (b'{"text": "\xe9"}\n', "line 1 of .*broken.jsonl is no JSON"),
        (b'{"words": "ab"}\n', "line 1 of broken.jsonl has no text"),
    ],
)
def test_broken_lines_are_named(tmp_path, content, sentence):
    file = tmp_path / "broken.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(texts_in(file))


def test_binary_files_are_no_text_and_lone_surrogates_do_no_harm(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        list(texts_in(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_bytes(b"text " * 200 + b"\xff")
    assert next(texts_in(tmp_path / "b.txt")).endswith("text \ufffd")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "a\ud800b"}) + "\n \n")
    assert list(texts_in(tmp_path / "c.jsonl")) == ["a?b"]


def test_a_small_sample_is_not_empty():
    found = sampled(["0123456789" * 600], 1000, seed=0)
    assert 700 < sum(map(len, found)) <= 1000


def test_superwords_end_at_digits_of_any_script():
    """No token holds an Arabic digit and anything else: the splitter would never let it come about."""
    text = ["\u0633\u0646\u0629 \u0663\u0664 \u0633\u0646\u0629 \u0662 \xb2 x\xb2 " * 300]
    made = ByteIds(wrapped(train_bpe(text, Recipe(330, "superword")), {}))
    for content in made.table.bytes_V:
        if len(content) > 2 and (word := content.decode(errors="ignore")):
            assert word.isnumeric() or not any(letter.isnumeric() for letter in word), content
    assert any(b" " in content and len(content) > 4 for content in made.table.bytes_V)
