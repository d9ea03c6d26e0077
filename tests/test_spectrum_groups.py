"""Measures of spectra beside the first ones: by hand, against noise, between groups of roles, outside the
blocks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind

from regraft.core.registry import experiments
from regraft.experiments.observe import spectra as spectra_module
from regraft.experiments.observe.spectra import singular_values, spectra
from regraft.experiments.observe.spectrum_groups import early_against_late, group_quantities
from regraft.experiments.observe.spectrum_measures import measures, rank_at_energy, straight_line
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from regraft.reporting.figures import block_panels
from regraft.reporting.figures.block_panels import spectra_panels
from small import opened
from test_spectra import held

RUN = partial(run_experiment, experiments()["spectra"])


def test_measures_by_hand():
    sigma = np.array([4.0, 2.0, 1.0, 1.0])
    energy = np.array([16.0, 4.0, 1.0, 1.0]) / 22
    found = measures(sigma, (4, 12))
    assert found["frobenius_norm"] == pytest.approx(np.sqrt(22))
    assert found["top1_share"] == pytest.approx(0.5)
    assert found["norm_over_spectral"] == pytest.approx(np.sqrt(22) / 4)
    assert found["norm_over_spectral"] ** 2 == pytest.approx(found["stable_rank"])
    assert found["stable_rank_ratio"] == pytest.approx(22 / 16 / 4)
    assert found["spectral_entropy"] == pytest.approx(-(energy * np.log(energy)).sum() / np.log(4))
    assert found["random_rank_ratio"] == pytest.approx(12 / 17)
    ratio = 1 / (energy**2).sum() / 4
    assert found["rank_over_random"] == pytest.approx(ratio / (12 / 17))
    assert measures(np.ones(6))["spectral_entropy"] == pytest.approx(1.0)


def test_the_least_number_of_directions_is_counted():
    assert rank_at_energy(np.array([4.0, 2.0, 1.0, 1.0])) == [1, 2, 4]
    assert rank_at_energy(np.ones(10)) == [5, 9, 10]
    assert rank_at_energy(np.array([1.0, 0.0])) == [1, 1, 1]
    assert np.isnan(rank_at_energy(np.zeros(3))).all(), "no energy lies in no direction"


def test_the_power_law_of_the_whole_spectrum():
    """The tail counts here and not in the head's; values up to 1e-6 count in neither."""
    law = np.arange(1, 101.0) ** -0.6
    found = measures(law)
    assert found["power_law_full"] == pytest.approx(0.6)
    assert found["power_law_full_r2"] == pytest.approx(1.0)
    bent = law.copy()
    bent[50:] *= 1e-3
    assert measures(bent)["power_law"] == pytest.approx(0.6)
    assert measures(bent)["power_law_full"] > 1
    cut = np.where(np.arange(100) < 60, law, 1e-7)
    assert measures(cut)["power_law_full"] == pytest.approx(straight_line(law[:60])[0]) == pytest.approx(0.6)


@pytest.mark.parametrize("shape", [(192, 192), (64, 192), (512, 192)])
def test_noise_has_the_rank_that_is_said_of_noise(shape):
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(*shape, generator=draw)
    found = measures(singular_values(noise).numpy(), shape)
    assert found["rank_over_random"] == pytest.approx(1.0, abs=0.02)
    low = noise @ torch.diag(torch.linspace(0.01, 1, shape[1]) ** 2)
    assert measures(singular_values(low).numpy(), shape)["rank_over_random"] < 0.8


def test_groups_and_their_difference():
    ratio = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, np.nan], [0.7, 0.8], [0.9, 1.0]])
    found = group_quantities(["q", "k", "v", "o", "up"], ratio)
    group = found["group_rank_ratio"][1]
    assert np.allclose(group[0], [0.2, 0.3])
    assert np.allclose(group[1], [0.6, 0.8]), "what a block does not have is left out"
    assert np.allclose(group[2], [0.4, 1.4 / 3])
    assert np.allclose(group[3], [0.9, 1.0])
    assert np.allclose(found["vo_minus_qk"][1], [0.4, 0.5])
    assert np.allclose(found["mean_rank_ratio"][1], [0.5, 0.6])
    alone = group_quantities(["q", "k"], ratio[:2])
    assert np.isnan(alone["group_rank_ratio"][1][1]).all()


def test_early_against_late_is_welch_and_corrected():
    draw = np.random.default_rng(0)
    ratio = draw.normal(0.5, 0.05, (4, 36))
    ratio[1, 17:] += 0.2
    ratio[2, :17] = 0.53 + 3 * (ratio[2, :17] - 0.5)
    ratio[3] = 0.4
    difference, p, corrected = early_against_late(ratio)
    for row in range(3):
        wanted = ttest_ind(ratio[row, 17:], ratio[row, :17], equal_var=False).pvalue
        assert p[row] == pytest.approx(wanted), "blocks 0 to 16 of 36 are the early ones"
    pooled = ttest_ind(ratio[2, 17:], ratio[2, :17]).pvalue
    assert p[2] != pytest.approx(pooled, rel=1e-3), "the two sides have variances of their own"
    assert difference[1] == pytest.approx(ratio[1, 17:].mean() - ratio[1, :17].mean())
    order = np.sort(p[:3])
    assert corrected[1] <= 1
    assert corrected[:3].min() == pytest.approx(min(order * 3 / np.arange(1, 4)))
    assert difference[3] == pytest.approx(0.0)
    assert np.isnan([p[3], corrected[3]]).all()
    few = early_against_late(ratio[:, :4])
    assert np.isnan(few[0]).all(), "one early block is no sample"


def test_what_stands_outside_the_blocks(tmp_path):
    model = opened("gpt2")
    inside, data = RUN(model), RUN(model, outside=True)
    outer = data.isel(matrix=data.matrix_block.values == "")
    names = sorted(str(name) for name in outer.tensor.values)
    assert names == ["lm_head.weight", "transformer.wpe.weight", "transformer.wte.weight"]
    wte = model.hf.transformer.wte.weight.detach().double()
    row = outer.isel(matrix=[str(t).endswith("wte.weight") for t in outer.tensor.values]).squeeze("matrix")
    sigma = torch.linalg.svdvals(wte).numpy()
    assert float(row.effective_rank) == pytest.approx((sigma**2).sum() ** 2 / (sigma**4).sum())
    for name in ("rank_ratio", "block_norm", "group_rank_ratio"):
        assert np.array_equal(inside[name].values, data[name].values, equal_nan=True), name
    assert len(drawing_of(data).folded(data)) == len(drawing_of(inside).folded(inside)) + 1


def test_the_norm_of_a_block_is_that_of_all_its_matrices():
    model = load("specimen:qwen3")
    data = RUN(model)
    block = model.blocks[3].module
    squares = sum(float(p.detach().double().square().sum()) for p in block.parameters() if p.dim() == 2)
    assert float(data.block_norm[3]) == pytest.approx(np.sqrt(squares), rel=1e-5)
    ratio = data.effective_rank_ratio.values / data.random_rank_ratio.values
    assert np.allclose(data.rank_over_random.values, ratio)


def test_a_matrix_of_zeros_has_no_ranks_and_takes_no_other_with_it():
    model = opened("gpt2")
    with torch.no_grad():
        model.hf.transformer.h[1].mlp.c_proj.weight.zero_()
    data = RUN(load(model.hf, pack=False))
    empty = [str(t).startswith("transformer.h.1.mlp.c_proj") for t in data.tensor.values]
    assert np.isnan(data.rank_at_energy.values[empty]).all()
    assert np.isfinite(data.rank_at_energy.values[~np.array(empty)]).all()
    assert drawing_of(data).folded(data)


def test_blocks_of_two_stacks_over_depth(monkeypatch):
    """The mean of a block's matrices, stack by stack; a matrix of zeros has no rank and counts for none."""
    torch.manual_seed(1)
    tensors = {
        f"{stack}.{block}.mlp.{name}_proj.weight": torch.randn(6, 4) * (1 + block)
        for stack, count in (("slow.layers", 3), ("fast.layers", 2))
        for block in range(count)
        for name in ("up", "gate")
    }
    tensors["slow.layers.1.mlp.up_proj.weight"] = torch.zeros(6, 4)
    data = spectra(held(tensors))
    for place, address in enumerate(data.block.values):
        names = data.tensor.values[data.matrix_block.values == address]
        own = [tensors[str(name)] for name in names]
        assert len(own) == 2
        sigmas = [torch.linalg.svdvals(t.double()).numpy() for t in own if t.any()]
        norms = [float(np.sqrt((s**2).sum())) for s in sigmas]
        ranks = [float(np.exp(-((s / s.sum()) * np.log(s / s.sum())).sum())) for s in sigmas]
        assert float(data.block_frobenius_norm[place]) == pytest.approx(np.mean(norms))
        assert float(data.block_entropy_rank[place]) == pytest.approx(np.mean(ranks))
    (figure,) = [p.figure for p in spectra_panels(data) if p.caption.startswith("Mean entropy rank")]
    assert sorted(len(trace.y) for trace in figure.data) == [2, 3], "a line for each stack"
    assert not figure.layout.shapes, "three blocks have no phases"
    monkeypatch.setattr(block_panels, "PHASED", 3)
    figure = block_panels.over_depth(data, "block_entropy_rank", "entropy rank")
    assert [shape.x0 for shape in figure.layout.shapes] == pytest.approx(
        [3 * 5 / 36 - 0.5, 3 * 22 / 36 - 0.5]
    )


def test_a_long_table_has_the_values_of_its_triangle(monkeypatch):
    """Blocks of rows of a tall table and of a wide one, held to the decomposition of the whole."""
    torch.manual_seed(0)
    monkeypatch.setattr(spectra_module, "LONG", 50)
    monkeypatch.setattr(spectra_module, "ROWS", 16)
    table = torch.randn(70, 9) @ torch.diag(torch.logspace(0, -9, 9))
    whole = torch.linalg.svdvals(table.double())
    asked = []
    qr = torch.linalg.qr

    def counted(block, mode):
        asked.append(len(block))
        return qr(block, mode=mode)

    monkeypatch.setattr(torch.linalg, "qr", counted)
    for one in (table, table.T):
        found = spectra_module.singular_values(one)
        assert torch.allclose(found, whole, rtol=1e-6, atol=1e-15), "down to the smallest"
    assert max(asked) <= 16 + 9, "never the whole table"
    assert len(asked) == 2 * 5
    spectra_module.singular_values(torch.randn(40, 9))
    assert len(asked) == 2 * 5, "a table that is not long is decomposed as it is"


def test_kernels_outside_the_blocks_are_matrices_of_their_inputs_side_by_side():
    torch.manual_seed(0)
    kernel = torch.randn(5, 3, 4)
    tensors = {f"layers.{i}.mlp.up_proj.weight": torch.randn(4, 4) for i in range(2)}
    one = held(tensors | {"patch.weight": kernel, "scale.weight": torch.randn(7, 1, 1)})
    read = one.read
    one.read = lambda name, expert: kernel if name == "patch.weight" else read(name, expert)
    data = spectra(one, outside=True)
    place = data.tensor.values.tolist().index("patch.weight")
    assert (int(data["rows"][place]), int(data["columns"][place])) == (5, 12)
    wanted = torch.linalg.svdvals(kernel.double().flatten(1)).numpy()
    assert data.singular_values.values[place][:5] == pytest.approx(wanted, rel=1e-5)
    assert "scale.weight" not in data.tensor.values, "a vector has no directions"
