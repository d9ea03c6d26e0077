"""True bytes of tokens: joined again they are the text, for every scheme; what cannot be told is refused."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from regraft.data.token_bytes import byte_of_character, token_bytes
from regraft.model.load import load

TEXT = "Naïve café, 東京 — 3×4 = 12\n\ttabs  and \x00 zero. 🙂"
CORPUS = [
    "the cat sat on the mat and the other cat sat on the hat",
    "Naïve café 東京 other others another",
] * 20


def trained(model, trainer, pre, decoder):
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre, decoder
    made.train_from_iterator(CORPUS, trainer)
    return made


def byte_level():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    return trained(
        models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    )


def sentence_piece(fallback):
    special = ["<unk>", *([f"<0x{byte:02X}>" for byte in range(256)] if fallback else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special[:1], initial_alphabet=list("▁abcdefh"), show_progress=False
    )
    steps = [decoders.Replace("▁", " "), *([decoders.ByteFallback()] if fallback else []), decoders.Fuse()]
    made = trained(
        models.BPE(unk_token="<unk>", byte_fallback=fallback), trainer, None, decoders.Sequence(steps)
    )
    if fallback:
        made.add_tokens(special[1:])
    made.normalizer = normalizers.Replace(" ", "▁")
    return made


@pytest.mark.parametrize("name", ["specimen:qwen3", "specimen:gpt2", "specimen:t5"])
def test_the_specimens_bytes_joined_are_the_text(name):
    model = load(name)
    table = token_bytes(model.tokenizer, model.table_rows)
    assert table.scheme == "byte-level"
    assert len(table) == model.table_rows
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert b"".join(table.bytes_V[i] for i in ids) == TEXT.encode()
    assert [table.kind_V[0], table.kind_V[1]] == ["special", "special"]
    assert table.bytes_V[0] == b""
    assert {table.bytes_V.count(bytes([byte])) for byte in range(256)} == {1}, "no byte is counted twice"


def test_byte_level_is_not_utf8_of_the_vocabulary_string():
    made = byte_level()
    table = token_bytes(made)
    ids = made.encode(TEXT).ids
    assert b"".join(table.bytes_V[i] for i in ids) == TEXT.encode()
    wrong = b"".join(made.id_to_token(i).encode() for i in ids)
    assert wrong != TEXT.encode(), "the plausible neighbour takes the vocabulary's characters as UTF-8"
    assert len(byte_of_character()) == 256
    assert sorted(byte_of_character().values()) == list(range(256))


def test_sentence_piece_with_and_without_fallback():
    made = sentence_piece(fallback=True)
    table = token_bytes(made)
    assert table.scheme == "SentencePiece with byte fallback"
    text = "the cat é"
    assert b"".join(table.bytes_V[i] for i in made.encode(text).ids) == text.encode()
    assert table.bytes_V[made.token_to_id("<0x0A>")] == b"\n"
    assert token_bytes(sentence_piece(fallback=False)).scheme == "SentencePiece"


def test_word_piece_marks_the_beginnings_of_words():
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    made = trained(
        models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.Whitespace(), decoders.WordPiece()
    )
    table = token_bytes(made)
    ids = made.encode("the other cat").ids
    assert b"".join(table.bytes_V[i] for i in ids) == b" the other cat"
    assert table.bytes_V[made.token_to_id("##t")] == b"t"
    assert table.bytes_V[made.token_to_id("t")] == b" t"


def test_reserved_rows_and_added_tokens():
    made = byte_level()
    made.add_tokens(["<tool>"])
    table = token_bytes(made, rows=made.get_vocab_size() + 5)
    assert table.kind_V[-5:] == ("reserved",) * 5
    number = made.token_to_id("<tool>")
    assert (table.kind_V[number], table.bytes_V[number]) == ("text", b"<tool>")
    assert table.kind_V[made.token_to_id("<end>")] == "special"


def test_what_cannot_be_told_is_refused():
    made = trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=60, show_progress=False),
        pre_tokenizers.Whitespace(),
        None,
    )
    with pytest.raises(ValueError, match="cannot be told from its decoder"):
        token_bytes(made)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        token_bytes(object())
