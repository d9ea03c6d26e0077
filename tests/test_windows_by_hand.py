"""Windows of text, and what a graft is trained on, by hand."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from regraft.data.token_bytes import TokenBytes
from regraft.data.windows import _groups, cut
from regraft.modules.byte_codes import coded, cut_share
from regraft.training.tasks.embedding_task import (
    EmbeddingTask,
    LossWeights,
    divergence,
    felt_error,
    relative_error,
)
from small import opened


def test_errors_of_vectors_and_predictions_by_hand():
    torch.manual_seed(0)
    found, wanted = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert float(relative_error(found, wanted)) == pytest.approx(
        sum((a - b) ** 2 for a, b in zip(found.flatten().tolist(), wanted.flatten().tolist(), strict=True))
        / sum(b**2 for b in wanted.flatten().tolist()),
        rel=1e-5,
    )
    metric = torch.diag(torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64))
    error = found - wanted
    by_hand = (error[:, 0] ** 2 + 4 * error[:, 2] ** 2).sum() / (
        wanted[:, 0] ** 2 + 4 * wanted[:, 2] ** 2
    ).sum()
    assert float(felt_error(found, wanted, metric)) == pytest.approx(float(by_hand))
    p, q = wanted.softmax(-1), found.softmax(-1)
    assert float(divergence(found[None], wanted[None])) == pytest.approx(
        float((p * (p / q).log()).sum(-1).mean()), rel=1e-5
    )


def test_parts_of_the_loss_count_as_they_are_weighted():
    model = opened("llama")
    torch.manual_seed(1)
    graft = nn.Embedding.from_pretrained(
        model.parts.embedding.weight.detach() + 0.01 * torch.randn(96, 32), freeze=False
    )
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = EmbeddingTask(model, graft, weights=LossWeights(1.0, 1.0, 1.0)).losses(ids)
        weighed = EmbeddingTask(model, graft, weights=LossWeights(2.0, 3.0, 5.0)).losses(ids)
    for name, factor in (("hidden", 2.0), ("kl", 3.0), ("table", 5.0), ("_agreement", 1.0)):
        assert float(weighed[name]) == pytest.approx(factor * float(plain[name]), rel=1e-5)
        assert float(plain[name]) > 0
    assert EmbeddingTask(model, graft).depths == (1, 2, 4)
    assert EmbeddingTask(model, graft, depths=(3,)).depths == (3,)
    two = opened("t5")
    assert EmbeddingTask(two, graft).depths == (1, 3)
    with pytest.raises(ValueError, match="depths"):
        EmbeddingTask(two, graft, depths=(1,))


def test_codes_are_cut_padded_and_numbered():
    table = TokenBytes(
        (b"<s>", b"abc", b"", b"abcdef", b"x"), ("special", "text", "text", "text", "reserved"), "byte-level"
    )
    codes, own = coded(table, 4)
    assert codes.tolist() == [[256] * 4, [97, 98, 99, 256], [256] * 4, [97, 98, 99, 100], [256] * 4]
    assert own.tolist() == [0, -1, 1, -1, 2]
    assert cut_share(table, 4) == 0.25
    assert cut_share(table, 3) == 0.25
    assert cut_share(table, 2) == 0.75


def test_windows_of_later_passes_and_their_counts():
    found = cut(np.arange(35, dtype=np.uint32), 8, seed=1)
    assert len(found) == 4
    assert sorted(found.rows(range(4, 8))[:, 0].tolist()) == [0, 8, 16, 24]
    assert found.rows([5]).tolist() == found.rows(range(4, 6))[1:].tolist()
    orders = {tuple(found.rows(range(4 * i, 4 * i + 4))[:, 0].tolist()) for i in range(8)}
    assert len(orders) > 4, "every pass has an order of its own"
    assert not torch.equal(found.batch(0, 4), cut(np.arange(35, dtype=np.uint32), 8, seed=2).batch(0, 4))
    assert found.counts(40).tolist() == [1] * 35 + [0] * 5
    assert found.digest() == hashlib.sha256(np.arange(35, dtype=np.uint32).tobytes()).hexdigest()
    assert found.digest() != cut(np.arange(1, 36, dtype=np.uint32), 8).digest()
    many = np.arange(2**22 + 5, dtype=np.uint32) % 7
    assert cut(many, 8).digest() == hashlib.sha256(many.tobytes()).hexdigest()
    assert cut(many, 8).counts(9).tolist() == [
        *np.bincount(many).tolist(),
        0,
        0,
    ], "read in more than one part"
    assert len(cut(np.arange(8, dtype=np.uint32), 8)) == 1
    with pytest.raises(ValueError, match="less than one sequence"):
        cut(np.arange(8, dtype=np.uint32), 1)


def test_texts_are_encoded_so_many_or_so_long_at_once():
    assert [len(some) for some in _groups(("a", True) for _ in range(600))] == [256, 256, 88]
    assert [len(some) for some in _groups(("a" * 1_500_000, False) for _ in range(4))] == [3, 1]
    assert list(_groups([])) == []
