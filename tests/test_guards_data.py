"""What is kept must not be taken for another model's: the cache of completions; texts and prompts by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from jinja2 import TemplateError
from transformers import GenerationConfig

from regraft.data import evaluation as evaluation_module
from regraft.data import generation as module
from regraft.data import text_files as texts_module
from regraft.data.corpus import LONGEST, corpus
from regraft.data.evaluation import Recordings, batched, evaluation
from regraft.data.generation import Completion, completions
from regraft.data.own_texts import passages as cut_passages
from regraft.data.prompts import Prompt
from regraft.data.text_files import text_files, text_of, texts_in
from regraft.data.token_bytes import byte_of_character, token_bytes
from small import opened

PROMPTS = [Prompt("abc", "letters"), Prompt("abcd", "letters"), Prompt("xyz", "others")]
TOLD = {"abc": [5, 6, 7], "abcd": [5, 6, 7, 8], "xyz": [9, 10, 11], "other": [5, 6, 7]}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A tiny model that reads four texts; and how often it was asked to write."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    model = opened("llama")
    model.tokenizer = SimpleNamespace(chat_template=None)
    monkeypatch.setattr(type(model), "encode", lambda self, text: TOLD[text], raising=True)
    asked, generate = [], module._generate

    def heard(*args):
        asked.append(args)
        return generate(*args)

    monkeypatch.setattr(module, "_generate", heard)
    return model, asked, tmp_path


def test_what_changes_a_completion_changes_its_key(made):
    model, asked, folder = made
    ends = model.hf.generation_config

    def count():
        completions(model, PROMPTS, 2)
        completions(model, PROMPTS, 2)
        assert len(list((folder / "completions").iterdir())) == len(asked), "found again the second time"
        return len(asked)

    assert count() == 1
    model.hf.to(torch.bfloat16)
    model._digests = {"at": model.fingerprint(), "sha256": "the same file"}
    assert count() == 2
    model.hf.to(torch.float32)
    model._digests = {"at": model.fingerprint(), "sha256": "the same file"}
    assert count() == 3, "one file opened in two float types"
    model._digests = {"at": model.fingerprint(), "sha256": "another file"}
    assert count() == 4
    model.hf.config.rope_theta = 5.0
    assert count() == 5
    model.hf.generation_config = GenerationConfig(eos_token_id=[7, 9])
    assert count() == 6
    model.hf.generation_config = ends
    assert count() == 6
    completions(model, PROMPTS, 3)
    completions(model, PROMPTS[:2], 2)
    completions(model, [*PROMPTS[:2], Prompt("xyz", "elsewhere")], 2)
    completions(model, [Prompt("other", "letters"), *PROMPTS[1:]], 2)
    assert len(asked) == 10
    TOLD["abc"], before = [5, 6, 8], TOLD["abc"]
    completions(model, PROMPTS, 2)
    TOLD["abc"] = before
    assert len(asked) == 11, "another tokenizer's ids of the same texts"


@pytest.mark.parametrize("generates", [True, False])
def test_completions_are_the_likeliest_tokens_one_by_one(made, generates, monkeypatch):
    model, _, folder = made
    if not generates:
        monkeypatch.setattr(module, "GenerationMixin", dict)
    found = completions(model, PROMPTS, 4)
    for one, prompt in zip(found, PROMPTS, strict=True):
        ids = list(TOLD[prompt.text])
        with torch.no_grad():
            for _ in range(4):
                ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
        said = ids[len(TOLD[prompt.text]) :]
        said = said[: said.index(2)] or said[:1] if 2 in said else said
        assert one == Completion(prompt.text, prompt.category, tuple(TOLD[prompt.text]), tuple(said))
    assert completions(model, PROMPTS, 4) == found
    (file,) = (folder / "completions").iterdir()
    assert [entry["prompt"] for entry in json.loads(file.read_text())] == ["abc", "abcd", "xyz"]


def test_a_completion_stops_in_front_of_an_end_token(made):
    model, _, _ = made
    for ends, wanted in ((9, [5, 6]), ([6, 9], [5]), ([5], [5]), ([1], [5, 6, 9, 6]), (None, [5, 6, 9, 6])):
        model.hf.generation_config = GenerationConfig(eos_token_id=ends)
        assert module.until_end(model, [5, 6, 9, 6]) == wanted


def test_padding_is_the_models_own_or_its_end(made):
    model, _, _ = made
    config = model.hf.config
    for pad, ends, wanted in ((4, [9], 4), (0, [9], 0), (None, [9, 8], 9), (-1, 7, 7), (None, None, 0)):
        config.pad_token_id = pad
        model.hf.generation_config = GenerationConfig(eos_token_id=ends)
        assert module._pad(model) == wanted


def test_prompts_are_taken_in_turn_from_every_category():
    prompts = [
        Prompt(text, category)
        for category, texts in {"a": "123", "b": "4", "c": "56"}.items()
        for text in texts
    ]
    turns = [prompt.text for prompt in module.spread(prompts, 99)]
    assert turns == ["1", "4", "5", "2", "6", "3"]
    assert [prompt.text for prompt in module.spread(prompts, 4)] == turns[:4]


class Chat:
    """A tokenizer with a chat template; one that knows no system role refuses it."""

    chat_template = "yes"

    def __init__(self, system):
        self.system = system

    def apply_chat_template(self, messages, add_generation_prompt, return_dict):
        if messages[0]["role"] == "system" and not self.system:
            raise TemplateError("no such role")
        said = "|".join(f"{m['role']}:{m['content']}" for m in messages) + (
            "|next" if add_generation_prompt else ""
        )
        return {"input_ids": tuple(map(ord, said))} if return_dict else said


@pytest.mark.parametrize(
    ("system", "opens"), [(True, f"system:{module.SYSTEM}|user:Hi"), (False, f"user:{module.SYSTEM}\n\nHi")]
)
def test_a_chat_is_asked_for_its_next_turn(made, system, opens):
    model, _, _ = made
    model.tokenizer = Chat(system)
    ids = module.prompt_ids(model, "Hi")
    assert isinstance(ids, list)
    assert "".join(map(chr, ids)) == f"{opens}|next"


def test_batches_hold_at_most_512_tokens_with_their_padding():
    lengths = [100, 120, 128, 128, 129, 300, 600, 600]
    assert batched(lengths, lengths) == [[100, 120, 128, 128], [129], [300], [600], [600]]
    assert batched(range(3), [256, 256, 257]) == [[0, 1], [2]]


def test_recordings_are_kept_up_to_a_bound_and_made_again_beyond_it(monkeypatch):
    model = opened("llama")
    batches = [([[5, 6, 7 + i]], [[9]]) for i in range(3)]
    floats = 4 * 4 * 32
    monkeypatch.setattr(evaluation_module, "KEPT_FLOATS", 2 * floats)
    kept = Recordings(model, batches)
    assert [len(kept), len(kept[:]), len(kept[1:])] == [3, 3, 2]
    assert [kept[i] is kept[i] for i in range(3)] == [True, True, False]
    assert kept.floats == 2 * floats
    assert kept[2].ids_BT.tolist() == [[5, 6, 9, 9]]
    for outside in (3, -1):
        with pytest.raises(IndexError):
            kept[outside]


@pytest.mark.parametrize("few", [dict(count=0), dict(tokens=0)])
def test_an_evaluation_needs_a_prompt_and_a_token(made, few):
    with pytest.raises(ValueError, match="too few"):
        evaluation(made[0], ["abc"], **few)
    with pytest.raises(ValueError, match="empty"):
        evaluation(made[0], ["abc", ""])


def test_an_evaluation_scores_the_completions(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    model = opened("llama")
    text = evaluation(model, ["5,6,7,8", "9,10,11"], tokens=3)
    assert [c.prompt for c in text.flat] == ["9,10,11", "5,6,7,8"], "shortest first"
    assert text.scored_tokens == sum(len(c.completion_ids) for c in text.flat) > 2
    (recording,) = text.recordings
    assert int(recording.scored_BT.sum()) == text.scored_tokens
    said = json.loads(text.attributes["completions"])
    assert [(s["prompt_tokens"], s["completion_tokens"]) for s in said] == [
        (len(c.prompt_ids), len(c.completion_ids)) for c in text.flat
    ]
    assert {s["category"] for s in said} == {"given"}


def test_passages_are_cut_to_what_the_model_reads():
    ids = ",".join(map(str, range(5, 90)))
    long = f"{ids},{ids}"
    for most, wanted in ((128, [126, 44]), (12, [10] * 17), (2, [128, 42]), (1000, [128, 42])):
        model = opened("llama")
        model.hf.config.max_position_embeddings = most
        passages = cut_passages(model, [long, "  ", "5,6"], LONGEST)
        assert [len(row) for row in passages] == [*wanted, 2]
        assert [i for row in passages[:-1] for i in row] == [*range(5, 90), *range(5, 90)]


@pytest.mark.parametrize(
    ("content", "word"), [(b"\xff\xfe\x00", "UTF-8"), (b" \n\n ", "empty"), (None, "cannot be read")]
)
def test_a_corpus_that_is_no_text_is_refused(tmp_path, content, word):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=word):
        corpus(opened("llama"), str(tmp_path / "text.txt"))
    with pytest.raises(ValueError, match="no tokenizer"):
        corpus(opened("llama"))


def test_files_are_found_and_read_piece_by_piece(tmp_path, monkeypatch):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.md", "a.py", "deep/c.txt", "no.csv"):
        (tmp_path / "in" / name).write_text(f"{name}\nsecond\n")
    (tmp_path / "in" / "folder.txt").mkdir()
    (tmp_path / "in" / "d.jsonl").write_bytes(b'{"text": "one"}\n\n{"text": "two", "n": 1}\n')
    found = text_files([tmp_path / "in"])
    assert [file.name for file in found] == ["a.py", "b.md", "d.jsonl", "c.txt"]
    assert list(texts_in(tmp_path / "in" / "d.jsonl")) == ["one", "two"]
    assert text_files([tmp_path / "in" / "no.csv"]) == [tmp_path / "in" / "no.csv"]
    monkeypatch.setattr(texts_module, "PIECE", 8)
    (tmp_path / "long.txt").write_text("0123456789 abc\ndef\nghijklmno\n")
    assert list(texts_in(tmp_path / "long.txt")) == ["0123456789 abc\n", "def\nghijklmno\n"]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": 3}\n', "line 2"),
        ("a.jsonl", b"[]\n", "line 1"),
        ("a.jsonl", b'\n{"text": \n', "line 2"),
        ("a.txt", b"abc\0def", "UTF-8"),
        ("a.txt", b"a" * 97 + b"\xff\xff\xff", "UTF-8"),
    ],
)
def test_text_that_is_broken_is_refused_with_its_place(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=word):
        list(texts_in(tmp_path / name))
    (tmp_path / "fine.txt").write_bytes(b"a" * 99 + b"\xff")
    assert list(texts_in(tmp_path / "fine.txt")) == ["a" * 99 + "\ufffd"]


def test_a_rows_text_is_what_stands_under_text():
    assert text_of("abc") == text_of({"text": "abc", "other": 3}) == "abc"
    with pytest.raises(ValueError, match="words"):
        text_of({"words": "abc"})


def tokenizer_of(decoder, vocabulary, added=()):
    said = {"decoder": decoder, "added_tokens": [{"id": i, "content": t, "special": s} for i, t, s in added]}
    return SimpleNamespace(to_str=lambda: json.dumps(said), get_vocab=lambda with_added_tokens: vocabulary)


@pytest.mark.parametrize(
    ("decoder", "scheme", "tokens"),
    [
        (
            {"type": "ByteLevel"},
            "byte-level",
            {"Ġab": b" ab", "Ã©": "é".encode(), "Ċ": b"\n", "日": "日".encode()},
        ),
        ({"type": "WordPiece", "prefix": "##"}, "WordPiece", {"ab": b" ab", "##ab": b"ab", "##": b" ##"}),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "BPE with word ends", {"ab": b"ab", "ab</w>": b"ab "}),
        ({"type": "Metaspace", "replacement": "▁"}, "SentencePiece", {"▁ab": b" ab", "<0x41>": b"<0x41>"}),
        (
            {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
                    {"type": "ByteFallback"},
                ],
            },
            "SentencePiece with byte fallback",
            {"_ab": b" ab", "<0x41>": b"A", "<0xE9>": b"\xe9", "<0x411>": b"<0x411>", "▁": "▁".encode()},
        ),
        ({"type": "ByteFallback"}, "SentencePiece with byte fallback", {"▁ab": b" ab"}),
    ],
)
def test_bytes_of_tokens_by_decoder(decoder, scheme, tokens):
    vocabulary = {token: number for number, token in enumerate(tokens)}
    count = len(tokens)
    added = [(count, "<end>", True), (count + 1, "<user> é", False)]
    vocabulary |= {"<end>": count, "<user> é": count + 1}
    found = token_bytes(tokenizer_of(decoder, vocabulary, added), rows=count + 4)
    assert found.scheme == scheme
    assert found.bytes_V[:count] == tuple(tokens.values())
    assert found.bytes_V[count:] == (b"", "<user> é".encode(), b"", b"")
    assert found.kind_V == ("text",) * count + ("special", "text", "reserved", "reserved")
    assert len(token_bytes(tokenizer_of(decoder, vocabulary, added), rows=2)) == count + 2


@pytest.mark.parametrize(
    "decoder", [None, {"type": "CTC"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]
)
def test_decoders_that_say_nothing_of_bytes_are_refused(decoder):
    with pytest.raises(ValueError, match="cannot be told"):
        token_bytes(tokenizer_of(decoder, {"a": 0}))


def test_every_byte_has_one_character():
    table = byte_of_character()
    assert sorted(table.values()) == list(range(256))
    assert [table[c] for c in "!~¡¬®ÿ"] == [33, 126, 161, 172, 174, 255]
    assert (table["Ā"], table["Ġ"], table["Ń"]) == (0, 32, 173)
