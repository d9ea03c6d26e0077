"""Vocabularies by hand: which token is which, mixtures of rows, tables, chunks, pieces of text, figures of
tokenizers."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from regraft.data.token_bytes import byte_of_character
from regraft.tokenizers.bits_per_byte import Score, _losses, _row, score
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import compare, shown
from regraft.tokenizers.cooccurrence import beside_vectors, overlaps
from regraft.tokenizers.init_methods import InitSettings, TransplantCase, aligned, near, pursue, readable
from regraft.tokenizers.mixtures import Mixture, blended, mixture, softmax, sparsemax
from regraft.tokenizers.nearest import nearest
from regraft.tokenizers.tables import _filled, build_tables, check_tables, modules, rows_needed
from regraft.tokenizers.tokenizer_folder import special_roles, specials_of, wrapped
from regraft.tokenizers.vocab_map import Matching, match
from small import opened

LETTERS = [character for character, _ in sorted(byte_of_character().items(), key=lambda one: one[1])]


def reader(merges=(), specials=(), roles=None, rows=None):
    """A byte-level tokenizer: ids 0 to 255 are bytes, then what is merged, then special tokens."""
    names = [*LETTERS, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [tuple(pair) for pair in merges]))
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    made.add_special_tokens(list(specials))
    return ByteIds(wrapped(made, roles or {}), rows)


SHORT = (("a", "b"), ("c", "d"))
LONG = (("a", "b"), ("ab", "c"), ("Ġ", "x"), ("b", "Ġx"))


def test_tokens_of_the_same_bytes_are_matched_and_special_ones_by_name_or_role():
    old = reader(
        SHORT, ["<s>", "<pad>", "<x>", "cd!"], {"bos_token": "<s>", "pad_token": "<pad>", "mask_token": "<x>"}
    )
    new = reader(LONG, ["<x>", "<begin>", "<end>", "<unk>", "zz", "<sep>"], {
        "bos_token": "<begin>", "eos_token": "<end>", "unk_token": "<unk>", "sep_token": "<sep>",
    })  # fmt: skip
    found = match(old, new)
    assert found.source_V[:257].tolist() == list(range(257))
    assert found.missing.tolist() == [257, 258, 259]
    name = {t: i for t, i in new.tokenizer.get_vocab().items() if i >= 260}
    theirs = old.tokenizer.get_vocab()
    assert found.source_V[name["<x>"]] == theirs["<x>"], "the same name"
    assert found.source_V[name["<begin>"]] == theirs["<s>"]
    assert found.source_V[name["<end>"]] == theirs["<s>"], "no end and no separator there: the start"
    assert found.source_V[name["<unk>"]] == theirs["<x>"], "the mask for what is unknown"
    assert found.source_V[name["<sep>"]] == -1
    assert found.source_V[name["zz"]] == -1
    assert found.shared == 257 + 4
    assert special_roles(old.tokenizer) == {"bos_token": "<s>", "pad_token": "<pad>", "mask_token": "<x>"}
    assert specials_of(old.tokenizer) == ("<s>", "<pad>", "<x>", "cd!")


def test_any_bytes_are_cut_into_the_fewest_tokens():
    one = reader(LONG)
    assert one.longest == 3
    assert one.fewest(b"abc") == [257]
    assert one.fewest(b"abcb x") == [257, 259]
    assert one.fewest(b"") == []
    none = reader()
    del none.id_of[b"q"]
    assert none.fewest(b"aqb") == []
    assert one.cut([b"abc", b"\xff\xfe", b"a\xc3"]) == [[257], [255, 254], [97, 195]]
    assert one.encode(b"ab\xffab") == [256, 255, 256]
    del none.id_of[b"\x80"]
    with pytest.raises(ValueError, match="0x80"):
        none.encode(b"a\x80")
    assert none.spans(b"a\x80") is None
    assert one.spans(b"xabc") == [(0, 1, 120), (1, 4, 257)]
    assert one.decode(one.encode("aé b x".encode())) == "aé b x".encode()
    assert one.encode_texts([]) == []


def test_mixtures_add_what_is_named_twice_and_take_the_mean_for_nothing():
    found = mixture([[2, 0, 2], [], [1]], [np.array([0.25, 0.5, 0.25]), np.zeros(0), np.array([1.0])], 4)
    assert found.weights_NV.toarray().tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert found.mean_N.tolist() == [0, 1, 0]
    table, mean = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]), torch.tensor([10.0, 20])
    assert found.rows(table, mean).tolist() == [[3, 4], [10, 20], [3, 4]]
    assert found.rows(table.bfloat16(), mean).dtype == torch.bfloat16
    empty = mixture([[], []], [], 3)
    assert empty.weights_NV.shape == (2, 3)
    assert empty.mean_N.tolist() == [1, 1]


def test_two_mixtures_are_blended_where_both_know_something():
    """Rows: both know; only the other; only the one; neither."""
    nothing = [0.0, 0.0]
    one = Mixture(sp.csr_matrix([[1.0, 0], nothing, [1.0, 0], nothing]), np.array([0.0, 1, 0, 1]))
    other = Mixture(sp.csr_matrix([[0, 1.0], [0, 1.0], nothing, nothing]), np.array([0.0, 0, 1, 1]))
    found = blended(one, other, 0.25)
    assert found.weights_NV.toarray().tolist() == [[0.75, 0.25], [0, 1], [1, 0], [0, 0]]
    assert found.mean_N.tolist() == [0, 0, 0, 1]


def test_shares_by_their_formulas():
    values = np.array([1.0, 3.0, 2.0])
    assert softmax(values).tolist() == pytest.approx((np.exp(values) / np.exp(values).sum()).tolist())
    assert softmax(values, 0.5).tolist() == pytest.approx(
        (np.exp(2 * values) / np.exp(2 * values).sum()).tolist()
    )
    assert softmax(np.array([1e4, 0.0])).tolist() == [1.0, 0.0]
    rows = np.array([[0.1, 0.2, 0.4], [5.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    expected = [[0.2, 0.3, 0.5], [1, 0, 0], [1 / 3] * 3]
    assert sparsemax(rows) == pytest.approx(np.array(expected))


def test_the_nearest_in_blocks_and_of_few(monkeypatch):
    monkeypatch.setattr("regraft.tokenizers.nearest.BLOCK_FLOATS", 25)
    draw = torch.Generator().manual_seed(0)
    asked, known = torch.randn(7, 4, generator=draw), 3 * torch.randn(10, 4, generator=draw)
    values, places = nearest(asked, known, 3)
    cosines = torch.nn.functional.cosine_similarity(asked[:, None], known[None], dim=-1)
    assert places.tolist() == cosines.argsort(dim=1, descending=True)[:, :3].tolist()
    torch.testing.assert_close(values, cosines.sort(dim=1, descending=True).values[:, :3])
    assert nearest(asked, known[:2], 5)[1].shape == (7, 2)
    assert [x.shape for x in nearest(asked[:0], known, 3)] == [(0, 3), (0, 3)]


def test_pursuit_of_sums_of_two_atoms_in_blocks():
    atoms = torch.eye(6) * torch.tensor([1.0, 2, 4, 1, 1, 1])[:, None]
    wanted = torch.zeros(5, 6)
    for row in range(5):
        wanted[row, row], wanted[row, row + 1] = 6.0, -3.0
    chosen, weights = pursue(wanted, atoms, 2, block=2)
    assert chosen.tolist() == [[row, row + 1] for row in range(5)]
    rebuilt = torch.einsum("nk,nke->ne", weights.float(), atoms[chosen])
    torch.testing.assert_close(rebuilt, wanted, atol=1e-5, rtol=1e-5)
    assert pursue(wanted, atoms[:1], 3)[0].shape == (5, 1)
    assert [x.shape for x in pursue(wanted[:0], atoms, 3)] == [(0, 3), (0, 3)]


class Told:
    """Vectors of texts as they are told."""

    def __init__(self, vectors):
        self.vectors = vectors

    def of(self, texts):
        return torch.stack([torch.tensor(self.vectors.get(text, (0.0, 0.0, 0.01))) for text in texts])


def case(vectors=None, texts=("abcd",), new=LONG):
    old, fresh, numbers = reader(SHORT), reader(new), torch.Generator().manual_seed(1)
    return TransplantCase(
        old, fresh, match(old, fresh), torch.randn(258, 3, generator=numbers), vectors, texts
    )


def test_the_nearest_old_tokens_count_above_a_threshold():
    told = case(
        Told(
            {
                "abc": (1.0, 0, 0),
                "ab": (0.8, 0.6, 0),
                "cd": (0.6, 0.8, 0),
                "q": (0, 1.0, 0),
                "b x": (0, 0, 1.0),
            }
        )
    )
    assert told.contents == [b"abc", b" x", b"b x"]
    for threshold, nearest_, ids in (
        (0.0, 2, [256, 257]),
        (0.7, 2, [256]),
        (0.8 - 1e-4, 3, [256]),
        (0.0, 1, [256]),
    ):
        found = near(told, InitSettings(threshold=threshold, nearest=nearest_, temperature=0.5))
        cosines = {256: 0.8, 257: 0.6}
        raised = {i: math.exp(cosines[i] / 0.5) for i in ids}
        row = found.weights_NV.toarray()[0]
        assert {int(i) for i in np.flatnonzero(row)} == set(ids)
        assert [row[i] for i in ids] == pytest.approx(
            [raised[i] / sum(raised.values()) for i in ids], rel=1e-5
        )
    high = near(told, InitSettings(threshold=1.5))
    assert high.mean_N.tolist() == [1, 1, 1]
    assert not readable(b"")
    assert not readable(b"\xff")
    assert readable(b" ")


def test_tokens_are_aligned_by_the_bytes_that_they_share():
    told = case(texts=("abcd", "abc ab"))
    found = aligned(told).weights_NV.toarray()
    assert {int(i): found[0, i] for i in np.flatnonzero(found[0])} == pytest.approx(
        {256: 4 / 6, 257: 1 / 6, ord("c"): 1 / 6}
    )
    assert {int(i): found[1, i] for i in np.flatnonzero(found[1])} == {
        ord(" "): 0.5,
        ord("x"): 0.5,
    }, "pieces of what no text has"
    counted = overlaps(told.old, told.new, ["abcd", "abc ab"])
    assert counted[257] == {256: 4, 257: 1, ord("c"): 1}
    assert counted[256] == {256: 2}
    assert counted[ord("d")] == {257: 1}
    with pytest.raises(ValueError, match="aligned"):
        overlaps(told.old, SimpleNamespace(spans=lambda content: None), ["abcd"])


def test_settings_that_mean_nothing_are_refused():
    for wrong in (
        dict(temperature=0.0), dict(temperature=-1.0), dict(nearest=0), dict(atoms=0), dict(weight=-0.1),
        dict(weight=1.1),
        dict(threshold=float("nan")), dict(threshold=float("inf")), dict(temperature=float("nan")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\w"):
            InitSettings(**wrong)
    InitSettings(weight=0.0, nearest=1, atoms=1)
    InitSettings(weight=1.0, temperature=1e-3, threshold=-1.0)


def test_vectors_from_text_factor_what_stands_beside_what():
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 12, 30).tolist() for _ in range(20)] + [[3], []]
    vectors, counts = beside_vectors(rows, 14, 5)
    assert counts.tolist() == [sum(row.count(i) for row in rows) for i in range(14)]
    beside = np.zeros((14, 14))
    for row in rows:
        for i, one in enumerate(row):
            for j, other in enumerate(row):
                beside[one, other] += 0 < abs(i - j) <= 4
    sums = beside.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.nan_to_num(np.log(beside * sums.sum() / np.outer(sums, sums)), nan=0.0, neginf=0.0).clip(
            min=0
        )
    left, values, _ = np.linalg.svd(above)
    assert vectors @ vectors.T == pytest.approx((left[:, :5] * values[:5]) @ left[:, :5].T, abs=1e-6)
    with pytest.raises(ValueError, match="12 different tokens"):
        beside_vectors(rows, 14, 11)
    beside_vectors(rows, 14, 10)


def test_rows_of_the_new_tables():
    model = opened("llama")
    assert rows_needed(model, 50, 96) == 50, "the old table has a row for each token and no more"
    assert rows_needed(model, 50, 95) == 64
    assert rows_needed(model, 64, 95) == 64
    assert rows_needed(model, 65, 95) == 96
    assert [rows_needed(model, 65, 96, multiple) for multiple in (1, 5, 7, 128)] == [65, 65, 70, 128]
    big = SimpleNamespace(table_rows=1 << 12)
    assert rows_needed(big, 5, 4000) == 1024
    with pytest.raises(ValueError, match="-1"):
        rows_needed(model, 5, 96, -1)


def test_tables_hold_copies_mixtures_means_and_the_spare_rows():
    old = torch.arange(12.0).view(6, 2)
    matching = Matching(np.array([4, -1, 0, -1]), np.array([3]))
    mixed = mixture([[1, 5]], [np.array([0.5, 0.5])], 6)
    found = _filled(old, matching, mixed, 6)
    mean = old.mean(0).tolist()
    assert found.tolist() == [
        [8, 9],
        mean,
        [0, 1],
        [6, 7],
        [8, 9],
        [10, 11],
    ], "behind the last token the old table's own rows"
    assert _filled(old, matching, mixed, 5)[4].tolist() == [8, 9]
    assert _filled(old, matching, mixed, 8)[4:].tolist() == [mean] * 4
    assert len(_filled(old, matching, mixed, 4)) == 4
    assert _filled(old, Matching(np.array([1]), np.zeros(0, np.int64)), mixture([], [], 6), 1).tolist() == [
        [2, 3]
    ]


@pytest.mark.parametrize("name", ["llama", "opt", "gptj"])
def test_new_modules_have_the_new_tables(name):
    model = opened(name)
    check_tables(model)
    matching = Matching(np.arange(90)[::-1].copy(), np.zeros(0, np.int64))
    tables = build_tables(model, matching, mixture([], [], 96), 90)
    assert tables.rows == 90
    embedding, head = model.parts.embedding, model.parts.head
    (old, fresh), (old_head, fresh_head) = modules(model, tables)
    assert old is embedding
    assert old_head is head
    assert torch.equal(fresh.weight, embedding.weight[:90].flip(0))
    assert torch.equal(fresh_head.weight, head.weight[:90].flip(0))
    assert (fresh.weight is fresh_head.weight) == (embedding.weight is head.weight) == (name == "opt")
    assert (fresh.num_embeddings, fresh_head.out_features, fresh.padding_idx) == (90, 90, None)
    assert (fresh_head.bias is None) == (head.bias is None) == (name != "gptj")
    if head.bias is not None:
        assert torch.equal(fresh_head.bias, head.bias[:90].flip(0))
    assert embedding.num_embeddings == 96
    model.hf.register_buffer("counts", torch.zeros(96))
    with pytest.raises(ValueError, match="counts"):
        check_tables(model)


def test_a_head_that_is_no_matrix_gets_no_rows():
    model = opened("llama")
    model.parts = replace(model.parts, head=nn.Bilinear(2, 2, 2))
    with pytest.raises(ValueError, match="Bilinear"):
        check_tables(model)


def test_bits_per_byte_by_hand():
    """Every token behind the start token is predicted, or every one behind the first; nats over the bytes
    that they hold."""
    model = opened("llama")
    small = SimpleNamespace(tokenizer=SimpleNamespace(bos_token_id=None, eos_token_id=3))
    words = {b"abcd": [5, 6, 7], b"xy": [8, 9], b"z": [10]}
    sizes = {5: 1, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1}

    def spans(content):
        at, found = 0, []
        for number in words[content]:
            found.append((at, at + sizes[number], number))
            at += sizes[number]
        return found

    small.spans, small.encode, small.keeps = (
        spans,
        lambda content: words.get(content, []),
        lambda content, ids: True,
    )
    texts = ["abcd", "xy", "z"]
    for begin, count in ((3, 7), (None, 4)):
        small.tokenizer.eos_token_id = begin
        nats, tokens = 0.0, 0
        for text in texts if begin else texts[:2]:
            ids = ([begin] if begin else []) + words[text.encode()]
            with torch.no_grad():
                logp = model.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
            nats -= sum(float(logp[t, ids[t + 1]]) for t in range(len(ids) - 1))
            tokens += len(ids) - 1
        found = score(model, small, texts)
        assert (found.tokens, found.bytes, found.exact) == (tokens, count, 1.0)
        assert found.nats == pytest.approx(nats, rel=1e-4)
    assert Score(math.log(2) * 6, 1, 3, 1.0).bits_per_byte == pytest.approx(2.0)
    small.tokenizer.bos_token_id = 4
    assert _row(small, "abcd", False, 4).ids == [4, 5, 6, 7]
    assert _losses(model, [_row(small, text, False, 4) for text in texts]).shape == (3, 3)
    with pytest.raises(ValueError, match="predicts no next"):
        score(opened("bert"), small, texts)
    long = {"encode": lambda content: [5] * 128, "spans": lambda content: [(i, i + 1, 5) for i in range(128)]}
    with pytest.raises(ValueError, match="129 tokens"):
        score(model, SimpleNamespace(**{**vars(small), **long}), ["a" * 128])


def test_figures_of_tokenizers_by_hand():
    readers = {"short": reader(SHORT), "long": reader(LONG)}
    domains = {"one": ["abc b x", "é x"], "two": ["cdcd"]}
    data = compare(readers, domains)
    text = "abc b xé x"
    tokens = {
        "short": [256, ord("c"), *b" b x", *"é x".encode()],
        "long": [257, ord(" "), 259, *"é".encode(), 258],
    }
    for name, ids in tokens.items():
        one = data.sel(tokenizer=name, domain="one")
        assert float(one.bytes_per_token) == pytest.approx(len(text.encode()) / len(ids))
        assert float(one.characters_per_token) == pytest.approx(len(text) / len(ids))
        assert float(one.tokens_per_word) == pytest.approx(len(ids) / 5)
        assert float(one.exact) == 1
        assert float(one.crossing) == pytest.approx((name == "long") / len(ids))
    assert data.vocabulary.values.tolist() == [258, 260]
    assert data.vocabulary_crossing.values.tolist() == pytest.approx([0, 1 / 260])
    assert data.overlap.values.tolist() == [[1.0, 257 / 258], [257 / 260, 1.0]]
    assert data.crossing_token.sel(tokenizer="long").values.tolist() == ["b x", *[""] * 19]
    assert data.crossing_count.sel(tokenizer="long").values.tolist() == [1, *[0] * 19]
    assert data.longest_token.sel(tokenizer="long").values[:4].tolist() == ["abc", "b x", "ab", " x"]
    assert data["bytes"].values.tolist() == [11, 4]
    assert "bits_per_byte" not in data
    assert shown(b"\xc3\xa9") == "é"
    assert shown(b"\xc3a") == "c3 61"
    for some, texts in (({}, domains), (readers, {}), (readers, {"one": []})):
        with pytest.raises(ValueError, match="nothing to compare"):
            compare(some, texts)
