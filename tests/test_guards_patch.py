"""Patching by hand: positions and cases, the cells of every grid, and what several cases say together."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from regraft.experiments.intervene.patch import Cells, _dataset, patch
from regraft.experiments.intervene.patch_cases import pair_of, read_cases
from regraft.experiments.intervene.patch_grid import PatchGrid
from regraft.model.sites import SiteError
from regraft.sweeps.plan import Work
from regraft.sweeps.sweep_result import SweepResult
from small import ids, opened


def test_positions_that_belong_together():
    assert pair_of("3:4", 4, 5) == (3, 4)
    for wrong in ("34", "3:", "a:1", "4:0", "0:5"):
        with pytest.raises(ValueError, match=wrong.rstrip(":")):
            pair_of(wrong, 4, 5)


def test_cases_are_read_from_a_file(tmp_path):
    case = {"clean": "a", "corrupt": "b", "answer": "c", "wrong": "d"}
    (tmp_path / "pairs.json").write_text(json.dumps([case, {**case, "answer": "e"}]))
    assert [c.answer for c in read_cases(tmp_path / "pairs.json")] == ["c", "e"]
    for broken, told in (
        ("[]", "holds no pairs"),
        ("{", "is not JSON"),
        ('[{"clean": "a"}]', "pair 0 of .* has no corrupt, answer, wrong"),
        ("[3]", "pair 0 of .* has no clean, corrupt, answer, wrong"),
    ):
        (tmp_path / "pairs.json").write_text(broken)
        with pytest.raises(ValueError, match=told):
            read_cases(tmp_path / "pairs.json")


def test_cells_of_grids():
    model = opened("llama")
    source = model.record([ids(5, 3)])
    places = [(0, 1), (3, 2)]
    for grid, columns, cells in (("position", [1, 2], 8), ("block", ["all"], 4), ("head", [0, 1, 2, 3], 16)):
        plan = PatchGrid(model, grid, "resid_pre" if grid == "head" else "attn_out", 2, -1)
        variants, named = plan.variants(source, places)
        assert named == columns
        assert len(variants) == len(plan.cells) == cells
        assert [len(v.edits) for v in variants] == [2 if row < 3 else 1 for row, _ in plan.cells]
    plan = PatchGrid(model, "position", "attn_out", 1, -1)
    edit = plan.variants(source, places)[0][plan.cells.index((2, 1))].edits[0]
    assert (edit.site, edit.position) == ("2.attn_out", 2)
    assert torch.equal(edit.value, source["2.attn_out"][0, 3])
    plan = PatchGrid(model, "block", "attn_out", 1, -1)
    edit = plan.variants(source, places)[0][2].edits[0]
    assert (edit.site, list(edit.position)) == ("2.attn_out", [1, 2])
    assert torch.equal(edit.value, source["2.attn_out"][0, [0, 3]])
    plan = PatchGrid(model, "head", "resid_pre", 1, -1)
    edit = plan.variants(source, places)[0][plan.cells.index((1, 3))].edits[0]
    assert edit.site == "1.head.3"
    assert torch.equal(edit.value, source["1.z"][0, [0, 3], 3])
    plan = PatchGrid(model, "neuron", "resid_pre", 1, -2)
    variants, named = plan.variants(source, places)
    assert (len(variants), named[-1], variants[7].edits[0].site) == (48, 47, "2.neuron.7")
    assert torch.equal(variants[7].edits[0].value[:, 0], source["2.mlp_act"][0, [0, 3], 7])
    for block in (4, -5):
        with pytest.raises(ValueError, match=f"no block {block}"):
            PatchGrid(model, "neuron", "resid_pre", 1, block)
    with pytest.raises(ValueError, match="not known"):
        PatchGrid(model, "other", "resid_pre", 1, -1)
    with pytest.raises(SiteError, match="whole"):
        PatchGrid(model, "block", "pattern", 1, -1)
    for wrong in (dict(direction="up"), dict(window=0), dict(window=5)):
        with pytest.raises(ValueError, match=r"known|window"):
            patch(model, **wrong)


def patched(*effects, attribution=None):
    """A result of so many cases on a grid of blocks."""
    plan = SimpleNamespace(
        grid="block",
        rows=[SimpleNamespace(address=str(i)) for i in range(len(effects[0]))],
        window=1,
        site="z",
    )
    plan.addresses = ["", *(f"{i}.z" for i in range(1, len(effects[0])))]
    result = SweepResult({}, {}, {}, {}, {}, Work(1, 0, 4, 1), 0.25, [])
    parts = []
    for number, effect in enumerate(effects):
        column = np.array(effect)[:, None]
        estimate = np.array(effect if attribution is None else attribution)[:, None]
        values = (2 * column, column, estimate, 3 * column)
        levels = (1.0 + number, -1.0, (2.0, 0.0))
        parts.append(Cells(*values, result, *levels, ["all"], [], []))
    return _dataset(plan, parts, "denoise")


def test_a_correlation_needs_three_cells_that_vary():
    assert patched([0.0, 1.0, 3.0], attribution=[0.0, 2.0, 6.0]).attrs[
        "attribution_correlation"
    ] == pytest.approx(1.0)
    for effect, attribution in (
        ([0.0, 1.0], [0.0, 1.0]),
        ([1.0] * 3, [0.0, 1.0, 2.0]),
        ([0.0, 1.0, 2.0], [1.0] * 3),
        ([np.nan, 1.0, 2.0], [1.0, 2.0, 3.0]),
    ):
        assert math.isnan(patched(effect, attribution=attribution).attrs["attribution_correlation"])


def test_several_cases_are_averaged_with_their_error():
    data = patched([0.0, 1.0, 3.0], [1.0, 2.0, 3.0], [2.0, 6.0, 3.0])
    assert data.effect.values[:, 0].tolist() == [1.0, 3.0, 3.0]
    assert data.logit_difference.values[:, 0].tolist() == [2.0, 6.0, 6.0]
    assert data.effect_error.values[:, 0] == pytest.approx([1 / 3**0.5, 7**0.5 / 3**0.5, 0.0])
    assert data.pair_effect.values[:, 1, 0].tolist() == [1.0, 2.0, 6.0]
    assert (data.attrs["pairs"], data.attrs["source_value"], data.attrs["target_value"]) == (3, 2.0, -1.0)
    assert data.attrs["control_deviation"] == 0.25
    assert "block 0" in data.attrs["notes"]
    two = patched([0.0, 1.0, 3.0], [1.0, 2.0, 3.0])
    assert two.effect_error.values[:, 0] == pytest.approx([0.5, 0.5, 0.0])
    assert two.pair_effect.sizes["pair"] == 2
    assert "effect_error" not in patched([0.0, 1.0, 3.0])
