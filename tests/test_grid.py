"""Variants on a grid, results that are addressed by block, and what a notebook shows."""

from __future__ import annotations

from functools import partial

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr

import regraft
from regraft.core.registry import experiments
from regraft.core.results import as_result
from regraft.core.runs import open_run, store
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting import notebook
from regraft.sweeps import grids
from regraft.sweeps.grids import grid
from regraft.sweeps.metrics import kl_to_clean, loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Scale, Variant, Zero
from small import ids, opened


def cells(model, positions=(0, -1)):
    return grid(
        lambda block, position, factor: Scale(f"{block}.mlp_out", factor, position),
        block=range(len(model.blocks)),
        position=positions,
        factor=[0.0, 0.5, 2.0],
    )


def test_a_grid_is_its_variants_in_order_and_a_dataset_of_its_shape():
    model = opened("llama")
    recording = model.record([ids(5, 1), ids(4, 2)], [ids(3, 3), ids(2, 4)])
    grid_of = cells(model)
    listed = list(grid_of)
    assert len(grid_of) == len(listed) == len(model.blocks) * 2 * 3
    assert [(v.edits[0].site, v.edits[0].position, v.edits[0].factor) for v in listed[:4]] == [
        ("0.mlp_out", 0, 0.0), ("0.mlp_out", 0, 0.5), ("0.mlp_out", 0, 2.0), ("0.mlp_out", -1, 0.0),
    ]  # fmt: skip
    plain = sweep(recording, listed, [loss(), kl_to_clean()])
    data = sweep(recording, grid_of, [loss(), kl_to_clean()])
    assert isinstance(data, xr.Dataset)
    assert data.loss.dims == ("block", "position", "factor")
    assert data.loss.attrs["units"] == "nats per token"
    for name in ("loss", "kl_to_clean"):
        near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
        near(data[name].values.ravel(), plain.mean(name).numpy())
        near(data[f"{name}_by_prompt"].values.reshape(-1, 2), plain.values[name].numpy())
        near(data[f"clean_{name}"].values, plain.clean[name].numpy())
    one = sweep(recording, Scale("2.mlp_out", 0.5, -1), loss()).mean("loss")
    for chosen in (
        data.loss.sel(block=2, position=-1, factor=0.5),
        data.loss.sel(block="2").sel(position=-1, factor=0.5),
    ):
        assert float(chosen) == pytest.approx(float(one), rel=1e-5)
    assert data.attrs["weights_sha256"] == model.weights_sha256
    assert data.attrs["control_deviation"] <= model.rounding
    read = sweep(recording, grid_of, loss(), read="1.z")
    heads = model.tap("1.z").heads
    assert read["1.z"].dims == (
        "block",
        "position",
        "factor",
        "prompt",
        "1.z position",
        "1.z head",
        "1.z feature",
    )
    assert read["1.z"].sizes["1.z head"] == heads
    clean = read["1.z"].sel(block=2).isel(position=0, factor=0)
    torch.testing.assert_close(torch.from_numpy(clean.values), recording["1.z"])


def test_routes_and_words_are_coordinates_too():
    model = opened("llama")
    count = len(model.blocks)
    recording = model.record([ids(5, 1)], [ids(3, 3)])
    data = sweep(
        recording,
        grid(
            lambda block, way: Route.skip(count, {block}) if way == "skip" else Route.repeat(count, block, 2),
            block=range(count), way=["skip", "twice"],
        ),
        loss(),
    )  # fmt: skip
    wanted = sweep(recording, Variant(route=Route.repeat(count, 1, 2)), loss()).mean("loss")
    assert float(data.loss.sel(block=1, way="twice")) == pytest.approx(float(wanted), rel=1e-6)
    several = sweep(recording, grid(lambda at: [Zero("0.z", at), Zero("1.z", at)], at=[0, 1]), loss())
    assert several.loss.dims == ("at",)
    mixed = sweep(recording, grid(lambda at: Zero("0.z", at), at=[0, [0, 1]]), loss())
    assert mixed["at"].values.tolist() == ["0", "[0, 1]"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((Zero("0.z"), dict(block=[0])), "is a function of the coordinates that returns an edit, not a Zero"),
        ((lambda: Zero("0.z"), {}), "a grid needs coordinates"),
        ((lambda block: Zero("0.z"), dict(block=[])), "block has no values"),
        ((lambda prompt: Zero("0.z"), dict(prompt=[0])), "prompt is the result's own dimension"),
        ((lambda at: Zero("0.z"), dict(at=[1, 1])), "at has a value twice"),
        (
            (lambda a, b: Zero("0.z"), dict(a=range(4000), b=range(4000))),
            "16,000,000 cells, more than 10,000,000",
        ),
    ],
)
def test_what_is_no_grid_is_refused(given, said):
    edit, coordinates = given
    with pytest.raises(ValueError, match=said):
        grid(edit, **coordinates)


def test_blocks_are_found_by_number_and_by_address_also_on_disk(tmp_path):
    data = run_experiment(
        experiments()["knockout"], load("specimen:gpt2"), prompts=["14 + 43 =", "The capital of"]
    )
    assert float(data.loss.sel(block=2)) == float(data.loss.sel(block="2")) == float(data.loss[2])
    assert data.loss.sel(block=[0, 3]).block.values.tolist() == ["0", "3"]
    assert data.loss.sel(block=slice(1, 2)).block.values.tolist() == ["1", "2"]
    assert data.loss.sel(block=np.int64(1)).block.item() == "1"
    picked = data.loss.sel(block=xr.DataArray([3, 0], dims="way"))
    assert picked.values.tolist() == data.loss.values[[3, 0]].tolist()
    with pytest.raises(KeyError):
        data.sel(block=9)
    with pytest.raises(KeyError):
        data.sel(block="encoder.1")
    store(data, tmp_path)
    again = open_run(tmp_path)
    assert float(again.loss.sel(block=2)) == float(data.loss.sel(block=2))
    assert again.attrs["experiment"] == "knockout"
    assert regraft.open_run is open_run
    two = as_result(xr.Dataset({"a": ("block", [1.0, 2.0])}, coords={"block": ["encoder.0", "decoder.0"]}))
    assert float(two.a.sel(block="decoder.0")) == 2.0
    numbered = xr.Dataset({"a": ("block", [1.0])}, coords={"block": [7]})
    assert float(as_result(numbered).a.sel(block=7)) == 1.0, "numbers stay numbers"


def test_a_result_of_python_says_where_it_comes_from_and_draws_itself():
    model = load("specimen:gpt2")
    data = regraft.knockout(model, prompts=["14 + 43 =", "The capital of"])
    assert data.attrs["experiment"] == "knockout"
    assert data.attrs["weights_sha256"] == model.weights_sha256
    assert '"prompts": ["14 + 43 =", "The capital of"]' in data.attrs["options"]
    figure = data.regraft.figure()
    assert isinstance(figure, go.Figure)
    assert "one block skipped" in figure.layout.title.text
    assert regraft.figure(data).layout.title.text == figure.layout.title.text
    assert "loss [nats per token]" in data.regraft.table().columns
    with pytest.raises(ValueError, match="there is no figure 99: this result has"):
        data.regraft.figure(99)
    other = as_result(xr.Dataset({"a": ("x", [1.0])}))
    for ask in (other.regraft.figure, other.regraft.table):
        with pytest.raises(ValueError, match="only a result of regraft"):
            ask()
    seeded = regraft.noise(model, prompts=["14 + 43 =", "The capital of"], levels=[0.1], seed=3)
    assert seeded.attrs["seed"] == 3
    again, unlike = (
        run_experiment(
            experiments()["noise"], model, seed, prompts=["14 + 43 =", "The capital of"], levels=[0.1]
        )
        for seed in (3, 4)
    )
    np.testing.assert_allclose(again.loss, seeded.loss, rtol=1e-4)
    assert not np.allclose(unlike.loss, seeded.loss, rtol=1e-2), "the seed reaches the experiment"


def test_what_a_notebook_shows():
    model = load("specimen:gpt2")
    assert "<svg" in model._repr_html_()
    assert "Model specimen:gpt2" in model._repr_html_()
    live = opened("llama")
    assert "<svg" not in live._repr_html_(), "a live model has no files to draw"
    recording = model.record(["a <b> c", "d"], [" e f", " g"])
    shown = recording._repr_html_()
    assert "&lt;" in shown
    assert "<b>" not in shown
    assert shown.count("#cfe2ff") == int(recording.scored_BT.sum())
    assert shown.count("<span") == int(recording.lengths_B.sum())
    long = model.record([ids(notebook.TOKENS + 3, 1), ids(notebook.TOKENS, 2)])._repr_html_()
    assert long.count("<span") == 2 * notebook.TOKENS
    assert long.count("… 3 more") == long.count("more</div>") == 1
    many = model.record([[5, 6, 7]] * 9)
    assert "and 3 more" in many._repr_html_()
    result = sweep(recording, Zero("0.mlp_out"), loss())
    assert "SweepResult of 1 variants" in result._repr_html_()


def test_a_grid_of_too_many_cells_is_refused(monkeypatch):
    monkeypatch.setattr(grids, "MOST", 6)
    assert len(grid(lambda a, b: Zero("0.mlp_out"), a=range(2), b=range(3))) == 6
    with pytest.raises(ValueError, match="the grid has 7 cells, more than 6"):
        grid(lambda a: Zero("0.mlp_out"), a=range(7))
