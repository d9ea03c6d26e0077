"""Chunks that a tokenizer is trained on: their lengths, samples and pieces."""

from __future__ import annotations

import math

import pytest

from regraft.tokenizers.bits_per_byte import _cut, pieces
from regraft.tokenizers.text_chunks import ChunkLengths, chunks, gaussian, sampled


def test_lengths_of_chunks():
    found = gaussian(3.0, 2.0, 5)
    weights = [math.exp(-(((i - 3) / 2) ** 2) / 2) for i in range(1, 6)]
    assert found.probabilities == pytest.approx([w / sum(weights) for w in weights])
    assert found.mean == pytest.approx(3.0)
    assert len(gaussian(3.0, 0.5).probabilities) == 5
    assert len(gaussian(3.2, 0.5).probabilities) == 6
    assert ChunkLengths((0.25, 0.0, 0.75)).mean == 2.5
    for mean, deviation in ((0, 1), (1, 0), (math.inf, 1), (1, math.inf), (-1, 1)):
        with pytest.raises(ValueError, match="above 0"):
            gaussian(mean, deviation)
    for longest in (0, 1_000_001):
        with pytest.raises(ValueError, match="longest"):
            gaussian(3, 1, longest)
    assert len(gaussian(3, 1, 1).probabilities) == 1
    with pytest.raises(ValueError, match="likely"):
        gaussian(1000, 1, 5)
    for wrong in ((), (0.5, 0.6), (1.5, -0.5), (math.nan, 1.0), (0.5, 0.4)):
        with pytest.raises(ValueError, match="probabilities"):
            ChunkLengths(wrong)


def test_chunks_have_the_lengths_that_were_drawn():
    text = "".join(chr(97 + i % 26) for i in range(5000))
    found = list(chunks([text, "", "ab"], ChunkLengths((0.0, 0.5, 0.0, 0.5)), 0))
    assert "".join(found) == text + "ab"
    assert found[-1] == "ab"
    lengths = [len(chunk) for chunk in found[:-2]]
    assert set(lengths) == {2, 4}
    assert lengths.count(2) / len(lengths) == pytest.approx(0.5, abs=0.05)
    assert list(chunks([text], ChunkLengths((0.0, 0.5, 0.0, 0.5)), 1)) != found[:-1]


def test_a_sample_keeps_what_fits():
    texts = [f"{i:03d}." * 100 for i in range(50)]
    assert sampled(texts, 20_000, 0, 400) == texts, "all of it, where all of it fits"
    some = sampled(texts, 8_000, 0, 100)
    assert 0.7 * 8_000 <= sum(map(len, some)) <= 8_000
    assert some == sorted(some, key=lambda piece: piece[:4])
    assert {len(piece) for piece in some} == {100}
    assert {len(piece) for piece in sampled(texts, 1_000, 0, 400)} == {50}, "a twentieth at most"


def test_pieces_are_cut_at_white_space():
    assert list(_cut(["aaa bbb ccc", "", "ddddddd"], 5)) == ["aaa", " bbb", " ccc", "ddddd", "dd"]
    assert list(_cut(["aa\nb cc"], 5)) == ["aa\nb", " cc"]
    assert list(_cut([" aaaaaaa"], 5)) == [" aaaa", "aaa"]
    assert list(_cut(["aaaa bbbb"], 4)) == ["aaaa", " bbb", "b"]
    many = [f"{i} " * 2 for i in range(40)]
    drawn = pieces(many, 10, 100)
    assert len(drawn) == 10
    assert [int(p.split()[0]) for p in drawn] == sorted(int(p.split()[0]) for p in drawn)
    assert max(int(p.split()[0]) for p in drawn) > 20
    assert pieces(many, 99, 100) == many
    for texts, most in ((["a"], 0), ([""], 3)):
        with pytest.raises(ValueError, match=r"piece|no text"):
            pieces(texts, most)
