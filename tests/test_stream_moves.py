"""What geometry says beside its first numbers, held to plain numpy over all states."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from regraft.core.registry import experiments
from regraft.experiments.observe import cloud_spectrum
from regraft.experiments.observe.cloud_spectrum import flatness, variances_of_covariance, variances_of_rows
from regraft.experiments.observe.geometry import Cloud
from regraft.experiments.observe.stream_moves import category_quantities, move_quantities
from regraft.experiments.observe.token_states import observed
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from test_geometry import Planted

RUN = partial(run_experiment, experiments()["geometry"])


@pytest.fixture(scope="module")
def model():
    return load("specimen:qwen3")


@pytest.fixture(scope="module")
def data(model):
    return RUN(model, count=6, tokens=10)


@pytest.fixture(scope="module")
def states(model):
    """Every state (S, N, D), with the category of every token."""
    seen = observed(model, None, 6, 10, "")
    parts = [torch.stack(streams).double().numpy() for _, streams in seen.walk()]
    return np.concatenate(parts, axis=1), np.array(seen.categories)


def cosine(a, b):
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def test_shares_of_the_last_state_add_up_to_one(data, states):
    h, _ = states
    last, length = h[-1], np.linalg.norm(h[-1], axis=-1)
    parts = [h[0], *np.diff(h, axis=0)]
    shares = [((part * last).sum(-1) / length**2).mean() for part in parts]
    assert np.allclose(data.residual_share.values, shares)
    assert float(data.residual_share.sum()) == pytest.approx(1.0, abs=1e-9)
    onto = [(part * last).sum(-1) / length for part in parts]
    assert np.allclose(data.residual_projection.values, [o.mean() for o in onto])
    assert np.allclose(data.residual_projection_std.values, [o.std() for o in onto], atol=1e-6)
    assert float(data.residual_projection.sum()) == pytest.approx(length.mean())


def test_moves_of_every_block(data, states):
    h, _ = states
    u = np.diff(h, axis=0)
    norm, leaving = np.linalg.norm(u, axis=-1), np.linalg.norm(h[1:], axis=-1)
    assert np.allclose(data.update_norm.values, norm.mean(1))
    assert np.allclose(data.update_share_leaving.values, (norm / leaving).mean(1))
    assert not np.allclose(data.update_share_leaving.values, data.update_size.values, rtol=1e-2)
    assert np.allclose(data.direction_preserved.values, cosine(h[1:], h[:-1]).mean(1))
    along = (u * h[-1]).sum(-1) / np.linalg.norm(h[-1], axis=-1)
    assert np.allclose(data.update_final_abs.values, np.abs(along).mean(1))
    assert np.allclose(data.update_final_cosine_abs.values, np.abs(cosine(u, h[-1])).mean(1))
    mean = u.mean(1)
    assert np.allclose(data.update_correlation.values, cosine(mean[:, None], mean[None]))
    assert np.allclose(np.diag(data.update_correlation.values), 1.0)


def test_depths(data, states):
    h, _ = states
    norms = np.linalg.norm(h, axis=-1)
    assert np.allclose(data.norm_std.values, norms.std(1), rtol=1e-5)
    assert np.allclose(data.norm_min.values, norms.min(1))
    assert np.allclose(data.norm_max.values, norms.max(1))
    assert np.allclose(data.embedding_persistence.values, cosine(h, h[0]).mean(1))
    for depth in range(len(h)):
        for place, gap in enumerate((1, 2, 4, 8, 16)):
            found = float(data.drift[depth, place])
            if depth - gap < 1:
                assert np.isnan(found), "the embedding is no state that blocks made"
            else:
                assert found == pytest.approx(float(cosine(h[depth], h[depth - gap]).mean()))


def test_the_spectrum_of_every_depth(data, states):
    h, _ = states
    for depth, cloud in enumerate(h):
        sigma = np.linalg.svd(cloud - cloud.mean(0), compute_uv=False)
        variance = (sigma**2)[: min(len(cloud) - 1, cloud.shape[1])] / (len(cloud) - 1)
        share = np.cumsum(variance) / variance.sum()
        for place, k in enumerate((1, 5, 10, 50, 100)):
            assert float(data.variance_topk[depth, place]) == pytest.approx(share[min(k, len(share)) - 1])
        assert float(data.isoscore[depth]) == pytest.approx(1 - share[0])
        shown = data.log_singular_values.values[depth]
        assert np.allclose(10 ** shown[:20], sigma[:20], rtol=1e-4)
        some = variance[variance > 1e-15]
        flat = np.exp(np.log(some).mean()) / some.mean()
        assert float(data.spectral_flatness[depth]) == pytest.approx(flat, rel=1e-3)
        ratio = variance.sum() ** 2 / (variance**2).sum()
        assert float(data.participation_ratio[depth]) == pytest.approx(ratio, rel=1e-6)


def test_both_ways_to_the_variances_agree(monkeypatch):
    """Of many tokens the covariance is taken apart, of few the states themselves."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(60, 8, generator=draw) * (1 + torch.arange(8)) + 3
    centred = states.double() - states.double().mean(0)
    covariance = centred.t() @ centred / len(states)
    one, other = variances_of_rows(states), variances_of_covariance(covariance, len(states))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    few = torch.randn(4, 8, generator=draw)
    assert len(variances_of_rows(few)) == 3, "four tokens spread in three directions"
    cloud = Cloud.of(Planted([[states, 2 * states]], ["a"] * 60), seed=0)
    assert cloud.variances[1] == pytest.approx(4 * cloud.variances[0])
    from regraft.experiments.observe import geometry

    monkeypatch.setattr(geometry, "SAMPLE", 20)
    sampled = Cloud.of(Planted([[states, 2 * states]], ["a"] * 60), seed=0)
    assert sampled.variances[0] == pytest.approx(cloud.variances[0])


def test_flatness_has_its_closed_forms():
    assert flatness(np.full(9, 2.5)) == pytest.approx(1.0)
    assert flatness(np.array([4.0, 1.0])) == pytest.approx(2 / 2.5)
    assert flatness(np.array([4.0, 1.0, 1e-16])) == pytest.approx(2 / 2.5), "no variance is no direction"
    assert np.isnan(flatness(np.zeros(3)))
    assert cloud_spectrum.NOTHING == 1e-15


def test_categories_are_the_mean_over_all_pairs(data, states):
    h, kinds = states
    names = sorted(set(kinds))
    for depth in (0, 5, 12):
        unit = h[depth] / np.linalg.norm(h[depth], axis=-1, keepdims=True)
        every = unit @ unit.T
        within, between = [], []
        for i, one in enumerate(names):
            own = every[np.ix_(kinds == one, kinds == one)]
            within.append((own.sum() - len(own)) / (len(own) * (len(own) - 1)))
            between += [every[np.ix_(kinds == one, kinds == other)].mean() for other in names[i + 1 :]]
        intra, inter = np.mean(within), np.mean(between)
        assert float(data.category_intra[depth]) == pytest.approx(intra)
        assert float(data.category_inter[depth]) == pytest.approx(inter)
        assert float(data.category_separation[depth]) == pytest.approx((intra - inter) / abs(inter), rel=1e-5)
    means = np.stack([h[-1][kinds == one].mean(0) for one in names])
    assert np.allclose(data.centroid_cosine.values, cosine(means[:, None], means[None]))


def test_a_single_category_and_a_single_token_of_one():
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(6, 4, generator=draw) for _ in range(3)]
    alone = Cloud.of(Planted([states], ["a"] * 6), seed=0)
    found = category_quantities(alone.moves, alone.group_count.numpy(), alone.group_mean[-1].numpy())
    assert np.isfinite(found["category_intra"][1]).all()
    assert np.isnan(found["category_inter"][1]).all()
    one = Cloud.of(Planted([states], ["a"] * 5 + ["b"]), seed=0)
    found = category_quantities(one.moves, one.group_count.numpy(), one.group_mean[-1].numpy())
    assert np.isfinite(found["category_intra"][1]).all(), "the pairs of the other category count"


def test_batches_change_nothing():
    draw = torch.Generator().manual_seed(1)
    states = [torch.randn(30, 6, generator=draw) for _ in range(4)]
    kinds = ["a", "b"] * 15
    whole = move_quantities(Cloud.of(Planted([states], kinds), seed=0).moves)
    parts = [[h[:11] for h in states], [h[11:] for h in states]]
    parted = move_quantities(Cloud.of(Planted(parts, kinds), seed=0).moves)
    for name, (_, values, _) in whole.items():
        assert np.allclose(values, parted[name][1], equal_nan=True, atol=1e-12), name


def test_every_folded_figure_has_its_sentence(data):
    folded = drawing_of(data).folded(data)
    assert len(folded) == 15
    assert all(one.reading.endswith(".") for one in folded)
