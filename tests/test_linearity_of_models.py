"""Linearity of the parts of real models: exact derivatives beside differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from families import FAMILIES
from regraft.experiments.observe import linearity
from regraft.experiments.observe.block_functions import PARTS, sampled_tokens
from regraft.experiments.observe.jacobian import (
    STEPS,
    central_difference,
    exact_derivative,
    gaps,
    spectral_norm,
    unit_directions,
)
from regraft.experiments.observe.token_states import observed
from regraft.model.load import load

CLOSE = 1e-5  # the recorded run rounds, the functions do not


@pytest.fixture(scope="module")
def looked():
    """Two tokens of every decoder family, in float64."""
    made = {}

    def of(name):
        if name not in made:
            torch.manual_seed(1)
            hf = FAMILIES[name]().double().eval()
            hf.set_experts_implementation("eager")
            model = load(hf, pack=False)
            made[name] = (model, sampled_tokens(model, observed(model, ["5 6 7 8 9 10"], 1, 5, ""), 2, 0))
        return made[name]

    return of


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "bert_headless"])
def test_exact_derivatives_and_differences_agree_in_float64(name, looked):
    model, tokens = looked(name)
    for block in model.parts.stacks[-1].blocks:
        for part in PARTS:
            made = tokens[0].function(block.index, part)
            if made is None:
                assert part != "block"
                continue
            g, x_D = made
            d = unit_directions(4, len(x_D), torch.Generator().manual_seed(0), x_D)
            x_RD = x_D.expand_as(d)
            exact = exact_derivative(g, x_RD, d)
            step = 1e-4 * x_D.norm()
            with torch.no_grad():
                difference = central_difference(g, x_RD, step * d) / step
            assert float((exact - difference).norm() / exact.norm()) < 1e-6, (block.address, part)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "bert", "t5", "gpt2", "qwen3_5"])
def test_parts_are_what_the_model_adds(name, looked):
    """At the recorded state the functions give what the sites hold, and a shifted MLP input is not the
    recorded one."""
    model, tokens = looked(name)
    token = tokens[1]
    at = token.position
    for block in model.parts.stacks[-1].blocks:
        recording, index = token.recording, block.index
        whole = (recording.post(index) - recording.pre(index))[0, at]
        values = {}
        for part in PARTS:
            made = token.function(index, part)
            if made is not None:
                g, x_D = made
                values[part] = g(x_D[None])[0]
        assert torch.allclose(values["block"], whole, atol=CLOSE)
        if block.sum_norms:
            middle = recording[f"{block.address}.resid_mid"][0, at] - recording.pre(index)[0, at]
            assert torch.allclose(values["attention"], middle, atol=CLOSE)
            assert torch.allclose(values["attention"] + values["mlp"], whole, atol=CLOSE)
        elif block.branch("cross") is None:
            assert torch.allclose(values["attention"] + values["mlp"], whole, atol=CLOSE)
        else:
            cross = recording[f"{block.address}.cross_out"][0, at]
            assert torch.allclose(values["attention"] + cross + values["mlp"], whole, atol=CLOSE)
        if not block.parallel:
            g, x_D = token.function(index, "mlp")
            assert torch.allclose(x_D, recording[f"{block.address}.resid_mid"][0, at], atol=CLOSE)


def test_the_mlp_alone_does_not_feel_the_attention(looked):
    """Pre-norm parts ignore the length of what they read, the block as a whole does not: the attention is
    held still."""
    _, tokens = looked("llama")
    for part, still in (("attention", True), ("mlp", True), ("block", False)):
        g, x_D = tokens[0].function(1, part)
        far = 1000 * x_D[None]
        radial = exact_derivative(g, far, far / far.norm()).norm()
        sideways = exact_derivative(
            g, far, unit_directions(1, len(x_D), torch.Generator().manual_seed(0), far)
        ).norm()
        assert (float(radial / sideways) < 1e-4) == still, part


def test_tokens_on_suffixes_and_on_whole_prompts_are_the_same(looked, monkeypatch):
    _, tokens = looked("qwen3")
    assert all(token.cone is not None for token in tokens)
    for part in PARTS:
        g, x_D = tokens[0].function(2, part)
        rows = torch.stack([x_D, x_D * 1.1, x_D + 0.1])
        fast = g(rows)
        monkeypatch.setattr(tokens[0], "cone", None)
        g, _ = tokens[0].function(2, part)
        assert torch.allclose(g(rows), fast, atol=1e-10)
        monkeypatch.undo()


def test_a_part_at_a_token_is_run_three_times(looked):
    """Once for the derivatives along all directions and their proof, once for the steps both ways, and one
    row of it for all powers; and the numbers are those of the single measures."""
    _, tokens = looked("llama")
    g, x_D = tokens[0].function(1, "block")
    runs = []

    class Counted:
        def function(self, block, part):
            return (lambda rows: runs.append(len(rows)) or g(rows)), x_D

    found = linearity._measure([Counted()], 1, "block", (3, 0), False)
    assert runs == [3 + 1, 1 + 2 * len(STEPS) * 3, 1]
    generator = torch.Generator().manual_seed(0)
    drawn = unit_directions(3, len(x_D), generator, x_D)
    assert np.allclose(found["gap"], gaps(g, x_D, drawn).mean(1).numpy(), rtol=1e-9)
    assert found["spectral_norm"] == pytest.approx(float(spectral_norm(g, x_D[None], generator)[0]), rel=1e-9)
    along = exact_derivative(g, x_D.expand_as(drawn), drawn)
    assert found["amplification"] == pytest.approx(float(along.norm(dim=1).mean()), rel=1e-9)
    size = STEPS[0] * x_D.norm()
    near = central_difference(g, x_D.expand_as(drawn), size * drawn) / size
    assert found["difference_error"] == pytest.approx(float((near - along).norm() / along.norm()), rel=1e-3)
    exact = linearity._measure([Counted()], 1, "block", (3, 0), True)
    assert np.allclose(exact["gap"], gaps(g, x_D, drawn, exact=True).mean(1).numpy(), rtol=1e-9)
