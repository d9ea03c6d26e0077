"""What observations compute, on numbers small enough to do by hand: spectra, ranks, derivatives, clouds,
lenses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

from regraft.experiments.observe.correlations import correlated, quantities
from regraft.experiments.observe.geometry import (
    Cloud,
    _add_second_moments,
    _moments,
    _pairs,
    _updates,
    geometry,
    linear_cka,
)
from regraft.experiments.observe.jacobian import (
    central_difference,
    consistency,
    exact_derivative,
    gaps,
    linearized,
    order,
    spectral_norm,
    unit_directions,
)
from regraft.experiments.observe.lens import _describe, _first_depth, _split, lens, token_type
from regraft.experiments.observe.linear_fit import LinearMap, fit_blocks, ridge_regression
from regraft.experiments.observe.neurons import _consistent, _counted, neurons, top
from regraft.experiments.observe.token_states import Observed, _of_texts, observed
from regraft.model.inputs import padded
from small import opened, recorded


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def result(name, **variables):
    data = {}
    for key, (dims, values, mark) in variables.items():
        data[key] = (dims, values, {"correlate": mark} if mark else {})
    return xr.Dataset(data, {"block": list("abcde"), "role": ["q", "k"]}, {"experiment": name})


def test_quantities_are_the_marked_variables_of_every_block():
    nan = np.nan
    one = result(
        "one",
        x=("block", [1.0, 2, 3, 4, 6], "size"),
        y=("block", [1.0] * 5, ""),
        z=("block", [1.0, nan, nan, 2, 3], "few"),
    )
    two = result("two", w=(("role", "block"), [[1.0, 4, 2, 3, nan], [7.0] * 5], "rank"))
    found = quantities([one, two], list("abcde"))
    assert found["quantity"].values.tolist() == ["position in the model", "one: size", "two: rank, q"]
    assert found.attrs["dropped"] == ["one: few", "two: rank, k"]
    assert found.values[1].tolist() == [1, 2, 3, 4, 6]
    assert found.values[2, :4].tolist() == [1, 4, 2, 3]
    assert np.isnan(quantities([one, two], list("eabcd")).values[2, 0])
    data = correlated(found, 0)
    assert data.attrs["pairs"] == 3
    assert data.blocks.values.tolist() == [[0, 5, 4], [5, 0, 4], [4, 4, 0]]
    assert np.diag(data.rho).tolist() == [1, 1, 1]
    assert float(data.rho[0, 2]) == float(data.rho[2, 0]) == pytest.approx(0.4)
    p = [float(data.p[i, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    corrected = [float(data.p_corrected[i, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert corrected == pytest.approx(scipy.stats.false_discovery_control(p).tolist())
    assert p[0] == pytest.approx(2 / 120)
    assert data.attrs["significant"] == sum(c < 0.05 for c in corrected)
    assert float(data.p_corrected[2, 1]) == corrected[2]
    with pytest.raises(ValueError, match="too few"):
        quantities([], list("abcde"))
    with pytest.raises(ValueError, match="too few"):
        quantities([result("one", x=("block", [1.0, 2, 3, 4, 6], "size"))], list("abc"))


def quadratic(x):
    return torch.stack([x[:, 0] ** 2 + x[:, 1], 3 * x[:, 2], x[:, 0] * x[:, 1]], dim=1)


def jacobian_of(x):
    a, b, _ = x.tolist()
    return torch.tensor([[2 * a, 1, 0], [0, 0, 3], [b, a, 0]], dtype=torch.float64)


def test_derivatives_of_a_function_that_is_known():
    x, d = numbers(4, 3), numbers(4, 3, seed=1)
    wanted = torch.stack([jacobian_of(row) @ along for row, along in zip(x, d, strict=True)])
    torch.testing.assert_close(exact_derivative(quadratic, x, d), wanted)
    torch.testing.assert_close(central_difference(quadratic, x, 0.1 * d), 0.1 * wanted)
    pulled = torch.stack([along @ jacobian_of(row) for row, along in zip(x, d, strict=True)])
    push, pull, moved = linearized(quadratic, x, numbers(4, 3, seed=2))
    probed = [jacobian_of(row) @ along for row, along in zip(x, numbers(4, 3, seed=2), strict=True)]
    torch.testing.assert_close(moved, torch.stack(probed))
    torch.testing.assert_close(pull(d), pulled)
    torch.testing.assert_close(push(d), wanted)
    largest = torch.stack([torch.linalg.svdvals(jacobian_of(row))[0] for row in x])
    torch.testing.assert_close(spectral_norm(quadratic, x, torch.Generator().manual_seed(0), 60), largest)
    assert bool((spectral_norm(quadratic, x, torch.Generator().manual_seed(0), 1) <= largest + 1e-9).all())
    small = spectral_norm(lambda rows: quadratic(rows) / 1000, x, torch.Generator().manual_seed(0), 60)
    torch.testing.assert_close(small, largest / 1000)
    directions = unit_directions(5, 7, torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert abs(float(directions[0] @ directions[1])) < 0.95


@pytest.mark.parametrize("exact", [False, True])
def test_gaps_are_what_a_linear_map_misses(exact):
    x, d = numbers(3), unit_directions(2, 3, torch.Generator().manual_seed(1), numbers(1))
    steps = (0.01, 0.1, 0.3)
    found = gaps(quadratic, x, d, steps, exact)
    for e, step in enumerate(steps):
        for r in range(2):
            delta = step * x.norm() * d[r]
            moved = (quadratic((x + delta)[None]) - quadratic(x[None]))[0]
            wanted = (moved - jacobian_of(x) @ delta).norm() / moved.norm()
            assert float(found[e, r]) == pytest.approx(float(wanted), rel=1e-6)
    slope, fit = order(np.array([1e-3, 4e-3]), (0.01, 0.02))
    assert (slope, fit) == pytest.approx((3.0, 1.0))
    line = scipy.stats.linregress(np.log(steps), np.log([0.1, 0.5, 0.7]))
    assert order(np.array([0.1, 0.5, 0.7]), steps) == pytest.approx((line.slope + 1, line.rvalue**2))
    for none in ([0.0, 1.0], [1e-7, 1e-8], [np.nan, 1.0], [np.inf, 1.0]):
        assert math.isnan(order(np.array(none), (0.01, 0.02))[0])


def test_consistency_is_the_mean_cosine_of_pairs():
    along = numbers(3, 4, 5)
    pairs = [(0, 1), (0, 2), (1, 2)]
    wanted = np.mean([float(torch.cosine_similarity(along[i], along[j], dim=-1).mean()) for i, j in pairs])
    assert consistency(along) == pytest.approx(wanted)
    assert math.isnan(consistency(along[:1]))


def test_ridge_regression_holds_every_fifth_prompt_out():
    x, true, bias = numbers(300, 4), numbers(3, 4, seed=1), numbers(3, seed=2)
    group = torch.arange(300) % 10
    y = x @ true.T + bias + 0.3 * numbers(300, 3, seed=3)
    weight, level, fit = ridge_regression(x, y, group)
    held = (group == 4) | (group == 9)

    def solved(chosen, ridge):
        a, b = x[chosen], y[chosen]
        centred, mean = a - a.mean(0), b.mean(0)
        covariance = centred.T @ centred / len(a)
        scale = torch.linalg.eigvalsh(covariance).mean()
        w = torch.linalg.solve(
            covariance + ridge * scale * torch.eye(4, dtype=x.dtype), centred.T @ (b - mean) / len(a)
        ).T
        return w, mean - w @ a.mean(0)

    def r_squared(w, b):
        spread = (y[held] - y[held].mean(0)).pow(2).sum()
        return float(1 - (y[held] - x[held] @ w.T - b).pow(2).sum() / spread)

    fits = {ridge: r_squared(*solved(~held, ridge)) for ridge in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)}
    best = max(fits, key=fits.get)
    assert fit == pytest.approx(fits[best])
    torch.testing.assert_close(weight, solved(torch.ones(300, dtype=torch.bool), best)[0])
    torch.testing.assert_close(level, solved(torch.ones(300, dtype=torch.bool), best)[1])
    few, few_level, none = ridge_regression(x, y, group % 4)
    assert math.isnan(none)
    torch.testing.assert_close(few, solved(torch.ones(300, dtype=torch.bool), 1e-3)[0])
    torch.testing.assert_close(few_level, solved(torch.ones(300, dtype=torch.bool), 1e-3)[1])


def test_a_linear_map_stands_in_a_blocks_place():
    made = LinearMap(numbers(5, 5), numbers(5, seed=1), 7)
    stream = numbers(2, 3, 5, seed=2)
    wanted = stream + torch.einsum("btd,od->bto", stream, made.weight_DD) + made.bias_D
    torch.testing.assert_close(made(stream, mask=None), wanted)
    model = opened("llama")
    maps = fit_blocks([recorded(model, 9, 6), recorded(model, 7)], model.parts.stacks[0])
    assert len(maps) == 4
    assert LinearMap.fitted_on(maps) == 9 + 6 + 7


def test_moments_and_updates_are_sums_over_tokens():
    h = [numbers(4, 3, seed=i) for i in range(3)]
    total, grouped, norms = _moments(h[0], torch.tensor([1, 0, 1, 1]), 2)
    second = _add_second_moments(_add_second_moments(None, [h[0][:1]]), [h[0][1:]])[0]
    torch.testing.assert_close(total, h[0].sum(0))
    torch.testing.assert_close(second, sum(torch.outer(row, row) for row in h[0]))
    torch.testing.assert_close(grouped, torch.stack([h[0][1], h[0][[0, 2, 3]].sum(0)]))
    assert float(norms) == pytest.approx(sum(float(row.norm()) for row in h[0]))
    persistence, size, along, towards = _updates(h)

    def cosine(a, b):
        return sum(float(x @ y / x.norm() / y.norm()) for x, y in zip(a, b, strict=True))

    assert persistence.tolist() == pytest.approx([cosine(one, h[2]) for one in h])
    assert along.tolist() == pytest.approx([cosine(h[i + 1] - h[i], h[i]) for i in range(2)])
    assert towards.tolist() == pytest.approx([cosine(h[i + 1] - h[i], h[2]) for i in range(2)])
    lengths = [
        sum(float((b - a).norm() / a.norm()) for a, b in zip(h[i], h[i + 1], strict=True)) for i in range(2)
    ]
    assert size.tolist() == pytest.approx(lengths)
    one, other = _pairs(5, torch.Generator().manual_seed(0))
    assert len(one) == 5000
    assert bool((one != other).all())
    assert len({(int(a), int(b)) for a, b in zip(one, other, strict=True)}) == 20


def test_a_cloud_by_its_definitions():
    cloud = Cloud()
    states = numbers(2, 6, 4)
    labels = [0, 0, 1, 1, 1, 2]
    cloud.mean = states.mean(1)
    covariance = torch.stack([torch.cov(s.T, correction=0) for s in states])
    cloud.variance, cloud.squares = covariance.diagonal(dim1=1, dim2=2).sum(1), covariance.pow(2).sum((1, 2))
    cloud.group_count = torch.tensor([2.0, 3, 1], dtype=torch.float64)
    cloud.group_mean = torch.stack(
        [
            torch.stack([s[[i for i, g in enumerate(labels) if g == k]].mean(0) for k in range(3)])
            for s in states
        ]
    )
    cloud.sample, cloud.pairs = states, (torch.tensor([0, 1]), torch.tensor([2, 5]))
    for depth in range(2):
        values = torch.linalg.eigvalsh(covariance[depth])
        assert cloud.participation_ratio()[depth] == pytest.approx(
            float(values.sum() ** 2 / (values**2).sum())
        )
        mean = states[depth].mean(0)
        between = sum(float((cloud.group_mean[depth, g] - mean).pow(2).sum()) for g in labels) / 6
        within = (
            sum(
                float((states[depth, i] - cloud.group_mean[depth, g]).pow(2).sum())
                for i, g in enumerate(labels)
            )
            / 6
        )
        assert cloud.separation()[depth] == pytest.approx(between / within)
        for centred in (False, True):
            at = states[depth] - (mean if centred else 0)
            pairs = [float(torch.cosine_similarity(at[a], at[b], dim=0)) for a, b in ((0, 2), (1, 5))]
            assert cloud.pair_cosine(centred)[depth] == pytest.approx(np.mean(pairs))
    cloud.group_count = torch.tensor([6.0])
    assert np.isnan(cloud.separation()).all()
    a, b = (s - s.mean(0) for s in states)
    wanted = float((a.T @ b).norm() ** 2 / (a.T @ a).norm() / (b.T @ b).norm())
    assert float(linear_cka(states)[0, 1]) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="no stack"):
        geometry(opened("llama"), ["5,6"], stack="encoder")


def test_tokens_that_count_in_texts():
    model = opened("llama")
    model.tokenizer = SimpleNamespace(all_special_ids=[9])
    texts = [([5, 6, 9, 7], "a"), ([8, 9], "b"), ([5, 6, 7], "c")]
    for skip, tokens in ((True, [6, 7, 6, 7]), (False, [8, 5, 6, 7, 5, 6, 7])):
        seen = _of_texts(model, texts, model.parts.stacks[0], skip)
        ((prompt, position),) = seen.pairs
        assert seen.recordings[0].ids_BT[prompt, position].tolist() == tokens
        assert seen.categories == (["c", "c", "a", "a"] if skip else ["b", "c", "c", "c", "a", "a", "a"])
        assert seen.tokens == len(tokens)
        ((first, states),) = seen.walk()
        assert first == 0
        assert len(states) == 5
        assert torch.equal(states[4], seen.recordings[0].post(3)[prompt, position])
        assert torch.equal(states[1], seen.recordings[0].pre(1)[prompt, position])
    with pytest.raises(ValueError, match="special tokens only"):
        _of_texts(model, [([9, 9], "a")], model.parts.stacks[0], True)
    two = opened("t5")
    for stack, places in ((0, [0, 1, 2]), (1, [1, 2, 3])):
        assert (
            _of_texts(two, [([5, 6, 7], "a")], two.parts.stacks[stack], False).pairs[0][1].tolist() == places
        )
    assert isinstance(observed(two, ["5,6"], 1, 1, "encoder"), Observed)


def test_what_a_lens_reads():
    logits = numbers(3, 8)
    logits[0, 4] = logits[0, 2]
    target = torch.tensor([2, 0, 7])
    end = numbers(3, 8).flip(1)
    found = _describe(logits, target, end)
    p, q = logits.softmax(-1), end.softmax(-1)
    divergence = (q * (q.log() - p.log())).sum(1)
    assert found["kl_to_end"].tolist() == pytest.approx(divergence.tolist())
    assert float(_describe(end, target, end)["kl_to_end"].max()) < 1e-6
    assert found["rank"].tolist() == [
        sum(float(v) > float(row[t]) for v in row) for row, t in zip(logits, target, strict=True)
    ]
    assert found["probability"].tolist() == pytest.approx(
        [float(p[i, t]) for i, t in enumerate(target.tolist())]
    )
    assert found["entropy"].tolist() == pytest.approx([-sum(float(v * v.log()) for v in row) for row in p])
    assert found["top"].shape == (3, 5)
    assert found["top_probability"].tolist()[1] == pytest.approx(
        p[1].sort(descending=True).values[:5].tolist()
    )
    assert _first_depth(np.array([[False, True, False], [True, True, False]])).tolist()[:2] == [1.0, 0.0]
    assert np.isnan(_first_depth(np.array([[False], [False]]))[0])
    for piece, kind in (
        (" the", "function word"), ("The", "function word"), (" sea", "content word"), (" 12", "number"),
        ("1,234.5", "number"),
        (".", "punctuation"), (" \n", "punctuation"), ("x1", "content word"), (",", "punctuation"),
    ):  # fmt: skip
        assert token_type(piece) == kind
    with pytest.raises(ValueError, match="k is 0"):
        lens(opened("llama"), k=0)


def test_summaries_of_a_lens_by_kind():
    nan = np.nan
    data = xr.Dataset(
        {
            "rank": (("depth", "token"), [[3, 1, 0, 2], [2, 2, 0, 5], [0, 0, 1, 5]]),
            "crystallization": ("token", [1.0, 2.0, nan, nan]),
            "first_top1": ("token", [2.0, 2.0, 0.0, nan]),
        },
        {
            "type": ("token", ["a", "a", "b", "c"]),
            "category": ("token", ["x", "y", "y", "y"]),
            "block": ["0", "1"],
            "depth": [0, 1, 2],
        },
    )
    found = _split(data, "type")
    assert found["tokens_by_type"].values.tolist() == [2, 1, 1]
    assert found["hurt_rate_by_type"].values.tolist() == [[0.5, 0.0], [0.0, 1.0], [1.0, 0.0]]
    assert found["crystallization_by_type"].values[0] == 1.5
    assert np.isnan(found["crystallization_by_type"].values[1:]).all()
    assert found["first_top1_by_type"].values[:2].tolist() == [2.0, 0.0]
    found = _split(data, "category")
    assert found["crystallization_by_category"].values.tolist() == [1.0, 2.0]
    assert found["first_top1_by_category"].values.tolist() == [2.0, 1.0]


def test_neurons_that_texts_have_in_common():
    assert top(np.array([1.0, 5, 5, 3, 5]), 2) == {1, 2}
    inside = [[np.array([5.0, 4, 3, 0])], [np.array([4.0, 1, 5, 3])]]
    outside = [[np.array([0.0, 1, 2, 9])]]
    block = opened("llama").blocks[0]
    assert [n.index for n in _consistent(0, block, "f", inside, [], 3)] == [0, 2]
    assert [n.index for n in _consistent(0, block, "f", inside, outside, 2)] == [0]
    model = opened("llama")
    model.tokenizer = SimpleNamespace(all_special_ids=[9])
    ids, real = padded([[5, 6, 9, 7], [5], [9, 9], [9, 6]], model)
    counted = [_counted(model, *row).tolist() for row in zip(ids, real, strict=True)]
    assert counted == [
        [False, True, False, True],
        [True, False, False, False],
        [True, True, False, False],
        [False, True, False, False],
    ]
    for wrong in (
        dict(k=0),
        dict(contexts=0),
        dict(show=0),
        dict(prompts=["5"]),
        dict(control=["5"]),
        dict(category="none"),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            neurons(opened("llama"), **wrong)
    with pytest.raises(ValueError, match="48 neurons"):
        neurons(opened("llama"), ["5,6", "7,8"], k=48)


def test_a_clouds_table_holds_what_its_columns_say(tmp_path, monkeypatch):
    """Against all pairs of all tokens, of which some thousand are drawn; exact where nothing is drawn."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    model = opened("llama")
    data = geometry(model, ["5,6,7,8", "9,10,11"], tokens=12)
    seen = observed(model, ["5,6,7,8", "9,10,11"], 1, 12, "")
    ((_, states),) = seen.walk()
    assert data.attrs["tokens"] == len(states[0]) == seen.tokens
    for depth, h in enumerate(h.double() for h in states):
        for name, at in (("cosine_raw", h), ("cosine_centred", h - h.mean(0))):
            cosines = torch.nn.functional.normalize(at, dim=1) @ torch.nn.functional.normalize(at, dim=1).T
            mean = (cosines.sum() - len(h)) / (len(h) * (len(h) - 1))
            assert float(data[name][depth]) == pytest.approx(float(mean), abs=0.03)
        assert float(data.mean_norm[depth]) == pytest.approx(float(h.norm(dim=1).mean()))
        last = states[-1].double()
        assert float(data.persistence[depth]) == pytest.approx(
            float(torch.cosine_similarity(h, last, dim=1).mean())
        )
        if depth:
            before = states[depth - 1].double()
            moved = ((h - before).norm(dim=1) / before.norm(dim=1)).mean()
            assert float(data.update_size[depth - 1]) == pytest.approx(float(moved))
    assert float(data.cosine_raw[4] - data.cosine_centred[4]) > 0.05
    assert np.diag(data.cka) == pytest.approx(np.ones(5))
