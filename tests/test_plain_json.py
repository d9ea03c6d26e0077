"""Whatever is written or printed as JSON is JSON: no NaN in it, and no Python in its texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.core.runs import open_run, store
from regraft.core.strict_json import json_text, numbers_again, opened_attributes


def strict(text):
    """As other languages read it: a bare NaN or Infinity is an error."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_numbers_that_are_none_are_null_wherever_they_stand():
    given = {
        "loss": float("nan"), "rows": [np.float32("inf"), np.float64(0.5), (1, -float("inf"))],
        "table": np.array([[1.0, np.nan]]),
        "flag": np.bool_(True), "count": np.int64(3), 4: None, "place": Path("a/b"), "yes": True,
    }  # fmt: skip
    assert strict(json_text(given)) == {
        "loss": None, "rows": [None, 0.5, [1, None]], "table": [[1.0, None]], "flag": True, "count": 3,
        "4": None,
        "place": "a/b", "yes": True,
    }  # fmt: skip


def test_options_are_objects_and_texts_of_other_packages_stay():
    attributes = {
        "options": '{"drop": [1]}',
        "texts": "no JSON [",
        "settings": 5,
        "prompt": "[1]",
        "note": "",
    }
    assert opened_attributes(attributes) == {**attributes, "options": {"drop": [1]}}


def test_a_dataset_survives_the_way_there_and_back():
    data = xr.Dataset(
        {
            "loss": ("block", [0.5, np.nan], {"units": "nats"}),
            "word": ("block", ["a", "b"]),
            "none": ("block", [np.nan, np.nan]),
        },
        coords={"block": ["0", "1"]},
        attrs={"gap": float("nan")},
    )
    again = numbers_again(xr.Dataset.from_dict(strict(json_text(data.to_dict()))))
    assert np.array_equal(again.loss.values, data.loss.values, equal_nan=True)
    assert np.isnan(again.none.values.astype(float)).all()
    assert again.loss.attrs["units"] == "nats"
    assert list(again.word.values) == ["a", "b"]


def test_a_run_folder_and_what_is_printed_hold_no_nan(tmp_path, monkeypatch):
    def broken(experiment, model, seed=0, **options):
        return xr.Dataset(
            {"loss": ("block", [0.5, np.nan], {"units": "nats"})},
            {"block": ["0", "1"]},
            {"options": json_text(options), "correlation": float("nan"), "experiment": "knockout"},
        )

    monkeypatch.setattr("regraft.cli.console.run_experiment", broken)
    words = ["knockout", "--model", "specimen:gpt2", "--count", "2", "--json"]
    said = strict(CliRunner().invoke(app, words).stdout)
    assert said["data_vars"]["loss"]["data"] == [0.5, None]
    assert said["attrs"]["correlation"] is None
    assert said["attrs"]["options"]["count"] == 2
    store(broken(None, None, count=3), tmp_path)
    mark = strict((tmp_path / "run.json").read_text())
    assert (mark["options"], mark["correlation"]) == ({"count": 3}, None)
    assert np.isnan(open_run(tmp_path).attrs["correlation"])
