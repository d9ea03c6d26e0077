"""Linearity: toys with known answers, exact derivatives against differences in float64, parts, and linear
maps."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd.function import once_differentiable

from families import FAMILIES
from regraft.core.registry import experiments
from regraft.data.evaluation import evaluation
from regraft.experiments.observe.jacobian import (
    consistency,
    exact_derivative,
    gaps,
    linearized,
    order,
    spectral_norm,
    unit_directions,
)
from regraft.experiments.observe.linear_fit import LinearMap, fit_blocks, ridge_regression
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from regraft.sweeps.metrics import loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant
from small import opened

RUN = partial(run_experiment, experiments()["linearity"])
DECODERS = [n for n in FAMILIES if n not in ("bert", "bert_headless", "roberta", "modernbert", "t5", "bart")]
STATES, MATRIX = (
    unit_directions(n, 16, torch.Generator().manual_seed(n), torch.empty(0)).double() * 4 for n in (5, 16)
)
DIRECTIONS = unit_directions(16, 16, torch.Generator().manual_seed(1), STATES)


def linear(x):
    return x @ MATRIX.t() + 1


def normed(x):
    return torch.tanh(x / x.norm(dim=-1, keepdim=True) @ MATRIX.t())


@pytest.mark.parametrize("exact", [False, True])
def test_a_linear_block_has_no_gap(exact):
    assert float(gaps(linear, STATES[0], DIRECTIONS, exact=exact).max()) < 1e-6


def test_relu_has_its_known_gap():
    """At a kink the central difference takes half of each step: |relu(d) - d/2| / |relu(d)| = |d| / (2
    |relu(d)|)."""
    x = torch.zeros(16, dtype=torch.float64)
    x[0] = 1.0
    d = DIRECTIONS.clone()
    d[:, 0] = 0
    wanted = d.norm(dim=1) / 2 / torch.relu(d).norm(dim=1)
    assert torch.allclose(gaps(torch.relu, x, d, steps=(0.05,))[0], wanted)
    assert float(wanted.mean()) == pytest.approx(math.sqrt(0.5), abs=0.06)
    away = torch.ones(16, dtype=torch.float64)
    assert float(gaps(torch.relu, away, d, steps=(0.05,)).max()) < 1e-12


def test_orders_of_a_quadratic_and_a_cubic():
    def quadratic(x):
        return x + 0.3 * x * x

    def cubic(x):
        return x**3

    for exact in (False, True):
        slope, fit = order(gaps(quadratic, STATES[0], DIRECTIONS, exact=exact).mean(1).numpy())
        assert slope == pytest.approx(2.0, abs=0.02)
        assert fit > 0.999
    at_zero = gaps(lambda x: x + cubic(x - STATES[0]), STATES[0], DIRECTIONS, exact=True)
    assert order(at_zero.mean(1).numpy())[0] == pytest.approx(3.0, abs=0.05)
    assert np.isnan(order(np.zeros(5))).all()


def test_spectral_norm_is_the_largest_singular_value_or_a_little_less():
    u = torch.linalg.qr(MATRIX).Q
    stretched = u @ torch.diag(torch.tensor([9.0] + [1.0] * 15, dtype=torch.float64)) @ u.t()
    found = spectral_norm(lambda x: x @ stretched.t(), STATES, torch.Generator().manual_seed(0))
    assert torch.allclose(found, torch.full((5,), 9.0, dtype=torch.float64), rtol=1e-6)
    hard = spectral_norm(linear, STATES, torch.Generator().manual_seed(0))
    largest = float(torch.linalg.svdvals(MATRIX)[0])
    assert float(hard.max()) <= largest + 1e-9
    assert float(hard.min()) > 0.8 * largest


def test_the_spectral_norm_runs_the_function_once():
    """Six products with J and six with its transpose come from one run, the proof among them."""
    runs = []

    def counted(x):
        runs.append(1)
        return normed(x)

    found = spectral_norm(counted, STATES, torch.Generator().manual_seed(0))
    assert len(runs) == 1
    v = unit_directions(len(STATES), STATES.shape[1], torch.Generator().manual_seed(0), STATES)
    matrices = [torch.func.jacrev(lambda x: normed(x[None])[0])(x) for x in STATES]
    for row, jacobian in enumerate(matrices):
        w = v[row]
        for _ in range(5):
            w = jacobian.T @ (jacobian @ w)
            w = w / w.norm()
        assert float(found[row]) == pytest.approx(float((jacobian @ w).norm()), rel=1e-12)


class Once(torch.autograd.Function):
    """A layer with rules of its own: it can be differentiated forward, and backward once."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, u):
        return 3 * ctx.saved_tensors[0] ** 2 * u

    @staticmethod
    def jvp(ctx, v):
        return 3 * ctx.saved_tensors[0] ** 2 * v


@pytest.mark.parametrize("beside", [0.0, 1.0], ids=["alone", "beside another"])
def test_what_cannot_be_differentiated_twice_is_pushed_by_forward_mode(beside):
    """Beside a layer that can, it drops out of the second derivative without an error: the proof along a
    direction notices."""
    forward = []

    def function(x):
        forward.append(1)
        return Once.apply(x) + torch.tanh(x) * beside if beside else Once.apply(x)

    some, other = DIRECTIONS[: len(STATES)], DIRECTIONS[len(STATES) : 2 * len(STATES)]
    push, pull, moved = linearized(function, STATES, some)
    slope = 3 * STATES**2 + beside / torch.cosh(STATES) ** 2
    assert all(torch.allclose(product(other), slope * other, atol=1e-12) for product in (push, pull))
    assert len(forward) == 3, "the run, the proof, and one more for J v; none for u J"
    assert torch.allclose(moved, slope * some, atol=1e-12)


def test_transposed_and_forward_derivatives_are_one_matrix():
    jacobian = torch.func.jacrev(lambda x: normed(x[None])[0])(STATES[0])
    push, pull, moved = linearized(normed, STATES[:1], DIRECTIONS[1:2])
    assert torch.allclose(moved[0], jacobian @ DIRECTIONS[1], atol=1e-12)
    assert torch.allclose(pull(DIRECTIONS[:1])[0], DIRECTIONS[0] @ jacobian, atol=1e-12)
    assert torch.allclose(push(DIRECTIONS[:1])[0], jacobian @ DIRECTIONS[0], atol=1e-12)
    assert torch.allclose(
        exact_derivative(normed, STATES[:1], DIRECTIONS[:1])[0], jacobian @ DIRECTIONS[0], atol=1e-12
    )


def test_a_scale_invariant_block_does_not_see_the_radial_direction():
    assert float(exact_derivative(normed, STATES, STATES).abs().max()) < 1e-12
    assert float(exact_derivative(linear, STATES, STATES).abs().max()) > 1


def test_consistency_of_linear_maps_is_one_and_of_opposite_ones_minus_one():
    along = torch.stack([exact_derivative(linear, x.expand_as(DIRECTIONS), DIRECTIONS) for x in STATES])
    assert consistency(along) == pytest.approx(1.0)
    assert consistency(torch.stack([along[0], -along[0]])) == pytest.approx(-1.0)
    assert math.isnan(consistency(along[:1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_derivatives_do_not_depend_on_the_weights_type(dtype):
    """Measured in float64: a half-precision model gives the gaps of the same weights in float64, not rounding
    noise."""
    torch.manual_seed(1)
    hf = FAMILIES["llama"]().to(dtype).eval()
    model = load(hf, pack=False)
    data = RUN(model, prompts=["5 6 7 8 9 10"], tokens=4, sample=2, directions=4)
    torch.manual_seed(1)
    precise = FAMILIES["llama"]().to(dtype).double().eval()
    wanted = RUN(load(precise, pack=False), prompts=["5 6 7 8 9 10"], tokens=4, sample=2, directions=4)
    assert np.allclose(data.order.sel(part="block"), wanted.order.sel(part="block"), atol=0.15)
    assert (data.difference_error.values < 0.05).all()
    assert np.allclose(data.gap, wanted.gap, rtol=0.35 if dtype == torch.bfloat16 else 1e-3)


def test_a_block_without_a_bend_has_no_order():
    """A linear MLP of tiny weights: in float32 rounding would pass for a gap of 20%."""
    model = opened("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.blocks[1].module.get_submodule(name).weight.zero_()
        model.blocks[2].module.self_attn.o_proj.weight.zero_()
    handle = model.blocks[2].module.mlp.register_forward_hook(lambda m, a, out: 1e-5 * a[0])
    handle2 = model.blocks[2].module.post_attention_layernorm.register_forward_hook(lambda m, a, out: a[0])
    try:
        data = RUN(model, prompts=["5 6 7 8 9 10"], tokens=4, sample=2, directions=4)
    finally:
        handle.remove()
        handle2.remove()
    assert float(data.gap.sel(part="block")[2]) < 1e-6
    assert np.isnan(float(data.order.sel(part="block")[2]))
    assert np.isnan(float(data.gap.sel(part="block")[1])), "nothing moves"
    assert "nan" not in drawing_of(data).finding(data)


def test_a_linear_relation_is_found_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, dtype=torch.float64, generator=generator) + 3
    prompt = torch.arange(400) // 8
    weight, bias, fit = ridge_regression(x, x @ MATRIX.t() + 2, prompt)
    assert torch.allclose(weight, MATRIX, atol=1e-4)
    assert torch.allclose(bias, torch.full((16,), 2.0, dtype=torch.float64), atol=1e-3)
    assert fit == pytest.approx(1.0, abs=1e-6)
    _, _, nothing = ridge_regression(
        x, torch.randn(400, 16, dtype=torch.float64, generator=generator), prompt
    )
    assert nothing < 0.02
    prompt = torch.arange(400) // 40
    own, answer = torch.randn(2, 10, 16, dtype=torch.float64, generator=generator)[:, prompt]
    assert ridge_regression(own + 1e-3 * x, answer, torch.arange(400))[2] > 0.9, "learnt by heart"
    assert ridge_regression(own + 1e-3 * x, answer, prompt)[2] < 0.5, (
        "a prompt that is held out is held out as a whole"
    )
    assert math.isnan(ridge_regression(x, x, torch.zeros(400, dtype=torch.long))[2])


def test_a_linear_block_is_replaced_without_loss_and_others_are_measured_by_the_engine():
    """Where the fitted map is the block, all of the knockout's loss is won back; a planted zero map wins
    nothing."""
    model = load("specimen:gpt2")
    text = evaluation(model, None, 4, 6)
    stack = model.parts.stacks[0]
    maps = fit_blocks(text.recordings, stack)
    x, y = text.recordings[0].pre(1), text.recordings[0].post(1)
    real = text.recordings[0].mask_BT
    fitted, _ = maps[1]
    residual = (fitted(x)[real] - y[real]).norm() / (y - x)[real].norm()
    assert float(residual) < 0.7
    nothing = LinearMap(torch.zeros_like(fitted.weight_DD), torch.zeros_like(fitted.bias_D), 1)
    routes = [Route.skip(4, {1}), Route.replace(4, {1: nothing}), Route.replace(4, {1: fitted})]
    skipped, zero, linear_map = (
        sweep(text.recordings, [Variant(route=r) for r in routes], loss()).mean("loss").tolist()
    )
    assert zero == pytest.approx(skipped, abs=1e-5)
    assert linear_map < skipped


@pytest.fixture(scope="module")
def measured():
    return RUN(load("specimen:gpt2"), count=6, tokens=6, sample=4, directions=8)


def test_the_experiment_on_the_specimen(measured):
    assert measured.gap.sizes == {"part": 3, "block": 4}
    assert np.isfinite(measured.gap.values).all()
    assert (measured.gap.values > 0).all()
    assert (measured.gap.values < 1).all()
    assert (measured.spectral_norm.values >= measured.amplification.values).all()
    assert (np.abs(measured.consistency.values) <= 1).all()
    assert (measured.difference_error.values < 0.02).all()
    assert measured.attrs["calibration_tokens"] > 100
    assert measured.attrs["control_deviation"] < 1e-3
    knockout = run_experiment(experiments()["knockout"], load("specimen:gpt2"), count=6, tokens=6)
    assert np.allclose(knockout.loss.values, measured.knockout_loss.values, atol=1e-4)
    by_hand = (measured.knockout_loss - measured.linear_loss) / (
        measured.knockout_loss - measured.attrs["clean_loss"]
    )
    assert np.allclose(by_hand, measured.recovered)


def test_exact_and_differences_give_nearly_one_gap(measured):
    exact = RUN(load("specimen:gpt2"), count=6, tokens=6, sample=4, directions=8, jacobian="exact")
    assert np.allclose(exact.gap, measured.gap, rtol=0.15)
    assert not np.array_equal(exact.gap, measured.gap)


QUICK = ("llama", "gpt2", "gptj", "mixtral", "qwen3_5", "bert_headless", "t5")
"""Families that stand for the others in the quick tests: after and beside one another, mixtures, linear
attention, stacks."""


@pytest.mark.parametrize(
    "name",
    [
        n if n in QUICK else pytest.param(n, marks=pytest.mark.slow)
        for n in (*DECODERS, "bert", "bert_headless", "t5")
    ],
)
def test_every_family_is_measured(name):
    model = opened(name)
    stacks = ("encoder", "decoder") if model.two_stacks else ("",)
    for stack in stacks:
        data = RUN(model, prompts=["5 6 7 8 9", "10 11 12"], tokens=4, sample=2, directions=3, stack=stack)
        assert np.isfinite(data.gap.sel(part="block")).all()
        if model.causal:
            assert np.isfinite(data.knockout_loss).all() or "no linear map" in data.attrs["notes"]
        else:
            assert "no next-token loss" in data.attrs["notes"]


def test_wrong_options_are_refused():
    model = opened("llama")
    with pytest.raises(ValueError, match="take at least one token"):
        RUN(model, prompts=["5 6 7"], directions=0)
    one = RUN(model, prompts=["5 6 7"], tokens=2, sample=1, directions=1)
    assert one.attrs["sampled_tokens"] == 1
    with pytest.raises(ValueError, match="there is no stack 'decoder' here"):
        RUN(model, prompts=["5 6 7"], stack="decoder")


def test_a_linear_map_takes_the_stream_wherever_a_block_is_given_it():
    """Alone, by name, or in front of other arguments that look like a stream."""
    x, other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 4)
    weight, bias = torch.arange(16.0).reshape(4, 4), torch.tensor([1.0, -1.0, 2.0, 0.5])
    wanted = torch.stack([torch.stack([v + weight.mv(v) + bias for v in row]) for row in x])
    linear = LinearMap(weight, bias, 6)
    for found in (
        linear(x),
        linear(hidden_states=x),
        linear(x, (other, other)),
        linear(x, position_embeddings=(other, other)),
    ):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
