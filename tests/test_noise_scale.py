"""Lists of most probable tokens, perplexity, and a graft's error as an amount of noise, in a certificate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regraft.core.quantities import READING, SOURCE, UNITS
from regraft.data.token_bytes import token_bytes
from regraft.data.windows import Windows
from regraft.export.certificate import MATCHED, certify
from regraft.export.noise_scale import SCALES, NoisyRows, equal_scale
from regraft.jobs.graft_jobs import almanac_windows
from regraft.model.load import load
from regraft.modules.placement import placed
from regraft.training.tasks.embedding_task import EmbeddingTask, check_depths


@pytest.fixture(scope="module")
def model():
    return load("specimen:gpt2", pack=False)


@pytest.fixture(scope="module")
def text(model) -> Windows:
    return almanac_windows(model, 100, 99, 20_000)


def noisy(model, scale, seed):
    """The model's rows with noise of another draw than the ladder's."""
    rows = model.parts.embedding.weight.detach()
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return NoisyRows(model.parts.embedding, scale * float(rows.square().mean().sqrt()) * drawn)


@pytest.fixture(scope="module")
def data(model, text):
    table = token_bytes(model.tokenizer, model.table_rows)
    return certify(model, [(model.parts.embedding, noisy(model, 0.2, 7))], {"own": text}, table, most=4)


def test_lists_and_perplexity_by_hand(model, text, data):
    graft = noisy(model, 0.2, 7)
    ids = text.rows(range(4))
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits[:, :-1]
        with placed(model.hf, model.parts.embedding, graft):
            after = model.hf(input_ids=ids).logits[:, :-1]
    for k in MATCHED:
        sets, orders = [], []
        for one, other in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True):
            first, second = one.topk(k).indices.tolist(), other.topk(k).indices.tolist()
            sets.append(set(first) == set(second))
            orders.append(first == second)
        # Near ties may fall either way on another machine: a few positions of 396.
        assert float(data.topk_set_match.sel(k=k)[0]) == pytest.approx(np.mean(sets), abs=0.017)
        assert float(data.topk_order_match.sel(k=k)[0]) == pytest.approx(np.mean(orders), abs=0.017)
    assert float(data.topk_set_match.sel(k=1)[0]) == pytest.approx(float(data.top1[0]), abs=1e-12)
    assert (data.topk_order_match <= data.topk_set_match).all()
    apart = data.topk_set_match.sel(k=10) - data.topk_order_match.sel(k=10)
    assert float(apart[0]) > 0.05, "beyond what is allowed above: one is not the other"
    target = ids[:, 1:].flatten()
    losses = [nn.functional.cross_entropy(x.flatten(0, 1), target) for x in (before, after)]
    ratio = float(torch.exp(losses[1] - losses[0]))
    assert float(data.perplexity_ratio[0]) == pytest.approx(ratio, rel=1e-4)
    assert ratio > 1.005


def test_noise_reads_off_its_own_size(data):
    """A graft that is noise of a fifth, of another draw, is told to be as bad as noise of a fifth."""
    assert float(data.equivalent_noise) == pytest.approx(0.2, rel=0.25)
    assert (np.diff(data.noise_kl.values) > 0).all()
    assert data.scale.values.tolist() == list(SCALES)
    for name in ("noise_kl", "equivalent_noise", "topk_set_match", "topk_order_match", "perplexity_ratio"):
        assert all(data[name].attrs[key] for key in (UNITS, READING, SOURCE))


def test_a_scale_between_two_and_outside_of_all():
    curve = [s**2 for s in SCALES]
    assert equal_scale(0.05**2, curve) == pytest.approx(0.05), "a power law is a line in logarithms"
    assert np.isnan(equal_scale(1e-6, curve))
    assert np.isnan(equal_scale(2.0, curve))
    assert np.isnan(equal_scale(0.0, curve))


def test_a_head_is_not_held_against_noise_of_rows(model, text):
    table = token_bytes(model.tokenizer, model.table_rows)
    last = model.blocks[-1].module
    data = certify(model, [(last, last)], {"own": text}, table, most=2)
    assert "noise_kl" not in data
    assert (data.topk_order_match > 0.98).all()
    assert float(data.perplexity_ratio[0]) == pytest.approx(1, abs=1e-5)


def test_the_stream_is_compared_where_asked(model):
    task = EmbeddingTask(model, model.parts.embedding, check_depths(model, [3, 1, 3]))
    assert task.depths == (1, 3)
    assert EmbeddingTask(model, model.parts.embedding, check_depths(model, [])).depths == (1, 2, 4)
    for wrong in (0, 5, -1):
        with pytest.raises(ValueError, match=f"no depth {wrong} to compare: choose 1 to 4"):
            check_depths(model, [wrong])
