"""Chunks of random length, bounded samples, and tokenizers trained on them: distributions, round trips,
refusals."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.core.files import RunFolderError
from regraft.specimens import almanac
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import CROSSING
from regraft.tokenizers.text_chunks import ChunkLengths, chunks, gaussian, read_lengths, sampled
from regraft.tokenizers.tokenizer_folder import open_tokenizer, wrapped, write_tokenizer
from regraft.tokenizers.training import Recipe, train_bpe

TEXT = ["\n".join(almanac.corpus(60_000, 5)), "Grüße aus Köln, 12 und 345! \u4f60\u597d\u4e16\u754c\n" * 40]
KINDS = ("supertoken", "ordinary", "superword")


@pytest.fixture(scope="module")
def trained():
    lengths = gaussian(40, 10)
    return {kind: ByteIds(wrapped(train_bpe(TEXT, Recipe(900, kind, lengths)), {})) for kind in KINDS}


def test_a_gaussian_over_whole_lengths():
    found = gaussian(6, 2, 14)
    values = np.exp(-0.5 * ((np.arange(1, 15) - 6) / 2) ** 2)
    assert found.probabilities == pytest.approx(values / values.sum())
    assert gaussian(3, 1).probabilities[7:] == ()
    assert found.mean == pytest.approx(6, abs=0.05)


def test_distributions_from_the_command_line_and_from_yaml(tmp_path):
    assert read_lengths("0.25,0.75").probabilities == (0.25, 0.75)
    assert read_lengths("gaussian:6:2:14") == gaussian(6, 2, 14)
    file = tmp_path / "lengths.yaml"
    file.write_text("gaussian: {mean: 6, deviation: 2, longest: 14}\n")
    assert read_lengths(str(file)) == gaussian(6, 2, 14)
    file.write_text("probabilities: [0, 0.5, 0.5]\n")
    assert read_lengths(str(file)).probabilities == (0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("0.5,0.6", "sum to 1.1, not to 1"),
        ("1.5,-0.5", "at least 0"),
        ("nan,1", "at least 0"),
        ("gaussian:0:1", "above 0"),
        ("gaussian:500:1:3", "no length up to 3"),
        ("gaussian:5", "no distribution"),
        ("often", "no distribution"),
    ],
)
def test_no_distribution(said, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_lengths(said)


def test_yaml_that_says_something_else(tmp_path):
    file = tmp_path / "lengths.yml"
    file.write_text("mean: 3\n")
    with pytest.raises(ValueError, match="neither `gaussian`"):
        read_lengths(str(file))


def test_chunks_follow_their_distribution_and_lose_nothing():
    lengths = ChunkLengths((0.2, 0.0, 0.5, 0.0, 0.3))
    text = "abcdefghij" * 3000
    found = list(chunks([text, "", "xy"], lengths, seed=1))
    assert "".join(found) == text + "xy"
    counts = np.bincount([len(chunk) for chunk in found[:-2]], minlength=6) / (len(found) - 2)
    assert counts[1:] == pytest.approx([0.2, 0, 0.5, 0, 0.3], abs=0.02)
    assert found == list(chunks([text, "", "xy"], lengths, seed=1))
    assert found != list(chunks([text, "", "xy"], lengths, seed=2))


def test_a_sample_is_bounded_even_and_in_order():
    texts = [f"{number:07d}|" * 100 for number in range(2000)]
    found = sampled(iter(texts), 160_000, seed=0, piece=800)
    assert 100_000 < sum(map(len, found)) <= 160_000
    places = [int(text[:7]) for text in found]
    assert places == sorted(places)
    assert np.histogram(places, 4, (0, 2000))[0].min() > 0.15 * len(places), (
        "every part of the stream is in it"
    )
    assert sampled(texts[:3], 10**9, seed=0, piece=800) == texts[:3]
    tracemalloc.start()
    sampled((f"{number:07d}|" * 1000 for number in range(4000)), 200_000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000, "32 million characters pass, a few hundred thousand are held"


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_digits_and_words(trained, kind):
    reader = trained[kind]
    assert len(reader.table) == 900
    crossing = [content for content in reader.table.bytes_V if CROSSING.search(content)]
    assert (len(crossing) > 20) == (kind != "ordinary")
    assert not [
        content
        for content in reader.table.bytes_V
        if len(content) > 1 and any(48 <= byte < 58 for byte in content)
    ]
    ids = reader.encode(b"The capital of France is Paris, 2026.")
    assert [reader.table.bytes_V[i] for i in ids][-5:] == [b"2", b"0", b"2", b"6", b"."]
    counts = {name: len(other.encode(TEXT[0][:4000].encode())) for name, other in trained.items()}
    assert counts["superword"] < counts["ordinary"]
    assert counts["supertoken"] < counts["ordinary"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )
)
def test_any_bytes_come_back(trained, kind, content):
    reader = trained[kind]
    ids = reader.encode(content)
    assert reader.decode(ids) == content
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    assert ids == reader.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_superwords_are_built_from_the_words_before_them(trained):
    """Where ordinary merges end and merges across words begin: the first part never crosses, what follows is
    made of it."""
    tokenizer = trained["superword"].tokenizer.backend_tokenizer
    first = train_bpe(TEXT, Recipe(450, "ordinary", specials=()))
    names = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    assert {name for name, _ in names[:440]} <= set(first.get_vocab())
    assert any("Ġ" in name[1:] for name, _ in names[450:])


def test_digits_in_threes_and_free():
    text = ["1234567 1234567 " * 50]
    threes = ByteIds(wrapped(train_bpe(text, Recipe(300, "supertoken", digits="threes")), {}))
    assert [threes.table.bytes_V[i] for i in threes.encode(b"1234567")] == [b"123", b"456", b"7"]
    free = ByteIds(wrapped(train_bpe(text, Recipe(300, "supertoken", digits="keep")), {}))
    assert any(content.strip().isdigit() and len(content) > 3 for content in free.table.bytes_V)


def test_a_folder_that_transformers_opens(tmp_path):
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    recipe = Recipe(600, specials=("<s>", "</s>", "<pad>", "<tool>"))
    write_tokenizer(wrapped(train_bpe(TEXT, recipe), roles, "{{ messages[0].content }}"), tmp_path / "made")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "made")
    assert len(again) == 600
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<s>", "</s>", "<pad>")
    assert again.chat_template == "{{ messages[0].content }}"
    assert again("<tool>x")["input_ids"][0] == again.convert_tokens_to_ids("<tool>") >= 596
    text = "  Ünïcode\t\u4f60\n\n 12 don't  "
    assert again.decode(again(text)["input_ids"]) == text
    with pytest.raises(RunFolderError, match="not empty"):
        write_tokenizer(again, tmp_path / "made")
    assert open_tokenizer(str(tmp_path / "made")).get_vocab() == again.get_vocab()


def test_the_same_seed_gives_the_same_tokenizer():
    one, two, other = (
        train_bpe(TEXT, Recipe(500, lengths=gaussian(9, 3), seed=seed)).to_str() for seed in (1, 1, 2)
    )
    assert one == two != other


def test_what_cannot_be_trained():
    with pytest.raises(ValueError, match="the corpus is empty"):
        train_bpe(["", ""], Recipe(300))
    with pytest.raises(ValueError, match="at least 258"):
        Recipe(257, specials=("<a>", "<b>"))
    with pytest.raises(ValueError, match="named twice"):
        Recipe(300, specials=("<a>", "<a>"))
    with pytest.raises(ValueError, match="share of 1"):
        Recipe(300, words=1.0)


def test_cuts_of_other_vocabularies_tokens():
    """A piece that a SentencePiece or WordPiece tokenizer would give a leading space is cut by bytes
    instead."""
    reader = ByteIds(open_tokenizer("specimen:qwen3"))
    found = reader.cut([b" the", b"\xe4\xbd", b"zzqj"])
    assert [reader.decode(ids) for ids in found] == [b" the", b"\xe4\xbd", b"zzqj"]
    assert len(found[0]) == 1
    best = reader.fewest(b" there is")
    assert len(best) <= len(reader.encode(b" there is"))
    assert reader.decode(best) == b" there is"
