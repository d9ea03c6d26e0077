"""Linearity in its published second version, held to loops with the blocks' own modules in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from regraft.core.registry import experiments
from regraft.data.evaluation import evaluation
from regraft.experiments.observe.block_functions import Doubled
from regraft.experiments.observe.jacobian import STEP, STEPS
from regraft.experiments.observe.moved_sequences import (
    DIRECTIONS,
    added,
    between_prompts,
    completed,
    on_and_off,
    unit_rows,
)
from regraft.experiments.observe.paired import pearson
from regraft.experiments.observe.published_fits import FittedMap, fits_of, input_norm, r_squared
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from regraft.sweeps.metrics import loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant
from small import opened

RUN = partial(run_experiment, experiments()["linearity"])
TEXTS = ["5 6 7 8", "9 10 11 12 13", "20 21 22"]
SMALL = dict(prompts=TEXTS, tokens=8, sample=1, directions=1)


@pytest.fixture(scope="module")
def model():
    return opened("llama")


@pytest.fixture(scope="module")
def data(model):
    return RUN(model, published=True, **SMALL)


def test_the_gap_of_one_prompt_by_hand(model, data):
    """The same directions, the block's own module run in float64, one row at a time."""
    text = evaluation(model, TEXTS, 20, 8)
    runs = completed(model, text)
    double = model.hf.double()
    try:
        first, block = runs[0], double.model.layers[1]
        x = first.states[1].double()
        rotary = double.model.rotary_emb(x[None], torch.arange(len(x))[None])

        def g(stream):
            with torch.no_grad():
                out = block(stream[None], position_embeddings=rotary, attention_mask=None)
            return (out[0] if isinstance(out, tuple) else out)[0] - stream

        drawn = unit_rows((DIRECTIONS, *x.shape), torch.Generator().manual_seed(0), x)
        gaps = []
        for d in drawn:
            delta = STEP * x.norm(dim=1, keepdim=True) * d
            change, linear = g(x + delta) - g(x), (g(x + delta) - g(x - delta)) / 2
            gaps.append(((change - linear).norm(dim=1) / change.norm(dim=1)).mean())
    finally:
        model.hf.float()
    found = float(data.gap_by_prompt.sel(part="block").isel(prompt=0, block=1))
    assert found == pytest.approx(float(torch.stack(gaps).mean()), rel=1e-3)


def test_prompts_are_weighted_by_their_tokens(model, data):
    weights = [len(one.states[0]) for one in completed(model, evaluation(model, TEXTS, 20, 8))]
    wanted = np.average(data.gap_by_prompt.values, axis=0, weights=weights)
    assert np.allclose(data.gap_all_positions.values, wanted)
    assert np.nanmedian(data.gap_order.values) == pytest.approx(2, abs=0.2)


def test_parts_add_up_to_the_block(model):
    one = completed(model, evaluation(model, TEXTS, 20, 8))[0]
    found = added(one.alone, model.blocks[2], Doubled(), one.states[2].double()[None])
    torch.testing.assert_close(found["attention"] + found["mlp"], found["block"], rtol=1e-9, atol=1e-12)


def test_completions_stand_where_they_stood(model):
    """A block on the completion alone is not the block in its context: the prompt is out of its attention."""
    one = completed(model, evaluation(model, TEXTS, 20, 8))[0]
    recording = evaluation(model, TEXTS, 20, 8).recordings[0]
    assert all(torch.isfinite(state).all() for state in one.states)
    alone = added(one.alone, model.blocks[0], Doubled(), one.states[0].double()[None])["block"][0]
    assert alone.shape == one.states[0].shape
    assert recording.positions > len(alone)
    assert not torch.allclose(alone.float() + one.states[0], one.states[1], atol=1e-4)


def test_shared_directions_are_what_confounds_the_ratio():
    """A block that is linear in the mean over positions and bends only where positions differ: random
    directions for each position see the bend, shared ones do not, whatever the data."""

    class Run:
        model = None

    import regraft.experiments.observe.moved_sequences as module

    def planted(run, block, doubled, x, deltas):
        def g(stream):
            spread = stream - stream.mean(-2, keepdim=True)
            return stream.mean(-2, keepdim=True).expand_as(stream) + spread**2 + spread

        ahead, behind, here = g(x + deltas), g(x - deltas), g(x[None])[0]
        return {"block": (here, ahead - here, (ahead - behind) / 2)}

    before, module.moved = module.moved, planted
    try:
        x = torch.randn(12, 30, generator=torch.Generator().manual_seed(0)).double()
        x = x / x.norm(dim=1, keepdim=True)
        found = on_and_off(Run(), None, None, x, seed=0)
    finally:
        module.moved = before
    assert found["on"] < 1e-9
    assert found["off_shared"] < 1e-9 < found["off"]
    assert 1 <= found["data_rank"] <= 20


def test_the_data_rank_counts_its_directions(model):
    draw = torch.Generator().manual_seed(0)
    one = completed(model, evaluation(model, TEXTS, 20, 8))[0]
    basis = torch.linalg.qr(torch.randn(model.width, 3, generator=draw)).Q
    x = (torch.randn(len(one.states[0]), 3, generator=draw) @ basis.t()).double()
    found = on_and_off(one.alone, model.blocks[0], Doubled(), x, seed=0)
    assert found["data_rank"] <= 3


def test_a_single_state_has_no_direction_of_its_own(model):
    one = completed(model, evaluation(model, TEXTS, 20, 8))[0]
    found = on_and_off(one.alone, model.blocks[0], Doubled(), one.states[0][:1].double(), seed=0)
    assert all(np.isnan(value) for value in found.values())


def test_consistency_of_prompts():
    draw = torch.Generator().manual_seed(0)
    same = torch.randn(1, 5, 8, generator=draw).repeat(4, 1, 1)
    assert between_prompts(same)[0] == pytest.approx(1.0)
    along = torch.randn(3, 2, 8, generator=draw)
    pairs = [
        [float(torch.cosine_similarity(along[a, d], along[b, d], dim=0)) for a, b in ((0, 1), (0, 2), (1, 2))]
        for d in range(2)
    ]
    mean, spread = between_prompts(along)
    assert mean == pytest.approx(np.mean(pairs))
    assert spread == pytest.approx(np.std(np.mean(pairs, axis=1)))
    assert np.isnan(between_prompts(along[:1])).all()


def test_a_linear_block_is_fitted_wholly(model):
    """Planted: the second block adds a fixed map of the stream; every map of it but a low rank finds it."""
    recordings = [model.record([[5, 6, 7, 8, 9, 10, 11, 12] * 4], attention_mask="all") for _ in range(1)]
    recording = recordings[0]
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(model.width, model.width, generator=draw) / 8

    class Linear:
        model = recording.model
        prompts = 1

        def real_at(self, block):
            return torch.ones(1, 400, dtype=torch.bool)

        def pre(self, block):
            return torch.randn(1, 400, recording.model.width, generator=torch.Generator().manual_seed(7))

        def post(self, block):
            return self.pre(block) @ (torch.eye(recording.model.width) + matrix.t())

        def run_block(self, block, stream, rows):
            return stream

    found = fits_of([Linear()], model.blocks[1], seed=0)
    assert found["residual"][1] > 0.999
    assert found["full"][1] > 0.999
    assert torch.allclose(found["residual"][0].weight_DD, matrix, atol=1e-2)
    assert "normalised" not in found, "this block reads no norm of its stream"
    assert found["rank 16"][1] < 0.999


def test_the_blocks_own_norm_is_found(model):
    recording = model.record([[5, 6, 7, 8]], attention_mask="all")
    for index in (0, 3):
        assert input_norm(recording, model.blocks[index]) is model.hf.model.layers[index].input_layernorm
    bloom = opened("olmo2")  # its norms stand behind attention and MLP
    assert input_norm(bloom.record([[5, 6, 7, 8]], attention_mask="all"), bloom.blocks[0]) is None


def test_recovered_is_one_for_the_block_itself_and_none_for_nothing(model, data):
    assert (data.fit_recovered.sel(fit="identity") == 0).all()
    text = evaluation(model, TEXTS, 20, 8)
    made = fits_of(text.recordings, model.blocks[2], 0)["residual"][0]
    total = len(model.blocks)
    found = sweep(
        text.recordings,
        [Variant(route=Route.skip(total, {2})), Variant(route=Route.replace(total, {2: made}))],
        loss(),
    )
    skipped, put = (found.mean("loss") - found.clean_mean("loss")).tolist()
    wanted = 1 - put / skipped
    assert float(data.fit_recovered.sel(fit="residual").isel(block=2)) == pytest.approx(wanted, rel=1e-3)


def test_r_squared_and_maps_by_hand():
    wanted = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert r_squared(wanted, wanted) == 1.0
    assert r_squared(wanted.mean(0).expand(2, 2), wanted) == pytest.approx(0.0)
    stream = torch.randn(1, 3, 2)
    assert torch.allclose(FittedMap(torch.eye(2), adds=True)(stream), 2 * stream)
    assert torch.allclose(FittedMap(3 * torch.eye(2), adds=False)(stream), 3 * stream)


def test_relations_over_blocks_are_pearson(data):
    gap = data.gap.sel(part="block").values
    hurt = data.knockout_loss.values - data.attrs["clean_loss"]
    assert float(data.gap_criticality_r) == pytest.approx(np.corrcoef(gap, hurt)[0, 1])
    r2, won = (data[n].sel(fit="residual").values for n in ("fit_r2", "fit_recovered"))
    assert float(data.r2_recovered_r) == pytest.approx(np.corrcoef(r2, won)[0, 1])
    moved = data.gap_all_positions.sel(part="block").values
    assert float(data.published_gap_criticality_r) == pytest.approx(np.corrcoef(moved, hurt)[0, 1])
    alike = data.consistency_prompt.values
    assert float(data.published_gap_consistency_r) == pytest.approx(np.corrcoef(moved, alike)[0, 1])
    assert np.isnan(pearson(np.arange(3.0), np.arange(3.0))), "three blocks make no correlation"
    assert np.isnan(pearson(np.ones(5), np.arange(5.0)))
    assert pearson(np.array([1, 2, np.nan, 3, 5.0]), np.array([1, 2, 9, 3, 5.0])) == pytest.approx(1.0)


def test_figures_and_refusals(model, data):
    assert len(drawing_of(data).folded(data)) == 16
    plain = RUN(model, **SMALL)
    assert "gap_all_positions" not in plain
    assert len(drawing_of(plain).folded(plain)) == 5
    for name in ("t5", "bert"):
        with pytest.raises(ValueError, match="leave --published out"):
            RUN(opened(name), published=True, **SMALL)
    assert len(STEPS) == data.sizes["step"]


def test_families_that_are_not_a_llama():
    for name in ("gpt2", "qwen3_5", "olmo2", "bloom", "mixtral", "qwen3_moe"):
        found = RUN(opened(name), published=True, **SMALL)
        assert np.isfinite(found.gap_on_manifold).all(), name
        assert np.isfinite(found.fit_recovered.sel(fit="residual")).all(), name


@pytest.mark.slow
def test_the_specimen_shows_that_sharing_explains_the_ratio():
    data = RUN(load(), published=True, count=2, tokens=12, sample=1, directions=1)
    assert float(np.median(data.gap_ratio)) < 0.95 < float(np.median(data.gap_ratio_shared))
