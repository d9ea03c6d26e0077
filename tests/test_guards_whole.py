"""Whole results of an experiment from plain forward passes: every variable at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.experiments.observe.lens import lens
from regraft.experiments.observe.linearity import _replacement
from regraft.model.weights import _live_reader, _stack_names
from regraft.reporting.figures.route_figures import noise_finding
from small import opened

NAN = float("nan")


def test_a_lens_from_the_hidden_states_of_plain_runs():
    model, k = opened("llama"), 40
    data = lens(model, ["5 6 7 8", "9 10 11"], tokens=5, k=k)
    states, targets, rows = [], [], []
    for prompt in range(2):
        own = np.flatnonzero(data.prompt.values == prompt)
        begun = {4: [5, 6, 7, 8], 3: [9, 10, 11]}[int(data.position.values[own].min())]
        ids = [*begun, *data.token_id.values[own].tolist()]
        assert data.position.values[own].tolist() == list(range(len(begun), len(ids)))
        with torch.no_grad():
            hidden = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
            last = [layer.register_forward_hook(
                lambda m, a, out: states.append(out if torch.is_tensor(out) else out[0]))
                    for layer in [model.hf.model.layers[-1]]]  # fmt: skip
            model.hf(torch.tensor([ids]))
            last[0].remove()
            depths = torch.stack([*hidden[:-1], states.pop()])[:, 0, len(begun) - 1 : -1]
            rows.append(model.hf.lm_head(model.hf.model.norm(depths)).log_softmax(-1))
        targets += ids[len(begun) :]
    logp = torch.cat(rows, 1).numpy()
    n = np.arange(len(targets))
    true = logp[:, n, targets]
    rank = (logp > true[..., None]).sum(-1)
    assert (data["rank"].values == rank).mean() > 0.98
    rank = data["rank"].values
    assert np.allclose(data.probability, np.exp(true), rtol=1e-3)
    assert np.allclose(data.entropy, -(np.exp(logp) * logp).sum(-1), rtol=1e-4)
    assert np.allclose(data.top_probability, -np.sort(-np.exp(logp), -1)[..., :5], rtol=1e-3)
    assert data.sizes["place"] == 5
    within, first = rank < k, rank == 0
    settled = [next((d for d in range(5) if within[d:, i].all()), NAN) for i in n]
    tops = [next((d for d in range(5) if first[d, i]), NAN) for i in n]
    assert len({*settled}) > 1
    assert np.array_equal(data.crystallization.values, np.array(settled, float), equal_nan=True)
    assert np.array_equal(data.first_top1.values, np.array(tops, float), equal_nan=True)
    assert np.allclose(data.hurt_rate, [(rank[b + 1] > rank[b]).mean() for b in range(4)])
    assert data.attrs["mean_crystallization"] == pytest.approx(np.nanmean(settled))
    assert data.attrs["mean_first_top1"] == pytest.approx(np.nanmean(tops))
    assert (data.attrs["k"], data.depth.values.tolist()) == (k, [0, 1, 2, 3, 4])
    assert data.attrs["last_depth_difference"] < 1e-4


def test_what_linear_maps_win_back_of_what_skipping_costs():
    model = opened("llama", seed=2)
    with torch.no_grad():
        for part in (model.blocks[2].module.self_attn.o_proj, model.blocks[2].module.mlp.down_proj):
            part.weight.mul_(1e-2)
    found = _replacement(
        model, model.parts.stacks[0], ["5 6 7 8 9", "9 10 11 12", "20 21 22", "30 31 32 33"], 4, 6
    )
    clean, skipped, put = found["clean_loss"], found["knockout_loss"], found["linear_loss"]
    felt = np.abs(skipped - clean) > 0.001
    assert felt.any()
    assert not felt[2], "a block that adds next to nothing is not missed, so nothing of it can be won back"
    assert np.allclose(found["recovered"][felt], (skipped - put)[felt] / (skipped - clean)[felt], atol=1e-4)
    assert np.isnan(found["recovered"][~felt]).all()


def test_lists_of_blocks_are_called_as_the_live_model_calls_them():
    maps = [(name, {"stack": name, "block": block, "rest": "self_attn.q_proj"}) 
            for name in ("layers", "tower.blocks", "heads.x")
            for block in "01"]  # fmt: skip
    paths = {"model.layers": "", "blocks": "second"}
    assert _stack_names(maps, {}, paths) == {"layers": "", "tower.blocks": "second", "heads.x": "heads.x"}
    assert _stack_names(maps[:2], {}, {"layers": "same"}) == {"layers": "same"}
    assert _stack_names(maps[:2], {}, {"players": "other"}) == {"layers": ""}
    sides = [(name, {"stack": name, "block": block, "rest": "self_attn.q_proj"}) 
             for name in ("encoder.block", "decoder.block")
             for block in "01"]  # fmt: skip
    assert _stack_names(sides, {}, {}) == {"encoder.block": "encoder", "decoder.block": "decoder"}
    single = [("head.layers", {"stack": "head.layers", "block": "0", "rest": "strange"})]
    assert _stack_names([*maps[:2], *single], {}, {}) == {"layers": ""}


def test_a_matrix_of_many_experts_is_read_one_by_one():
    live = {"whole": torch.arange(12.0).view(3, 4), "many": torch.arange(24.0).view(2, 3, 4)}
    read = _live_reader(live)
    assert read("many", 1).tolist() == live["many"][1].tolist()
    assert read("many", 0).shape == (3, 4)
    for name, expert in (("many", -1), ("whole", -1), ("whole", 0), ("whole", 5)):
        assert read(name, expert) is live[name]


def test_noise_is_loud_only_where_every_block_passes_more_on():
    def said(*passed):
        loss = (("block", "level"), [[1.0], [2.0]])
        data = {"loss": loss, "passed_on": ("block", list(passed))}
        return noise_finding(xr.Dataset(data, {"block": ["a", "b"], "level": [0.1]}, {"clean_loss": 1.0}))

    assert said(1.5, 2.0).endswith("No block damps it: each passes on more than it gets.")
    for passed in ((1.5, 1.0), (1.5, NAN), (NAN, NAN), (1.5, float("inf"))):
        assert said(*passed).endswith("No block damps it.")
    assert said(1.5, 0.5).endswith("Blocks that damp it: b.")


def test_a_place_to_draw_to_is_asked_for_with_the_headers_only(tmp_path):
    shown = CliRunner().invoke(app, ["inspect", "specimen:gpt2"])
    assert shown.exit_code == 0, shown.output
    refused = CliRunner().invoke(app, ["inspect", "specimen:gpt2", "--out", str(tmp_path / "x")])
    assert refused.exit_code != 0
    assert "add --weights-only" in refused.output
    assert not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("1")
    told = CliRunner().invoke(app, ["inspect", "specimen:gpt2", "--weights-only"])
    assert told.exit_code == 0, told.output
    full = CliRunner().invoke(
        app, ["inspect", "specimen:gpt2", "--weights-only", "--out", str(tmp_path / "full")]
    )
    assert full.exit_code != 0
    assert "is not empty" in " ".join(full.output.split())
