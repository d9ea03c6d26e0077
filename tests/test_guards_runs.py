"""Folders of runs and what experiments are read from: whole or not there, replaced by their like only, run
once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from regraft.core.files import RunFolderError, check_empty, check_place, whole_folder
from regraft.core.progress import advance, listening
from regraft.core.registry import Experiment, experiments, read_experiment
from regraft.core.runs import check_writable, open_run, read_mark, store
from regraft.core.signatures import unfit
from regraft.experiments.running import measured
from small import opened


def test_folders_are_whole_or_not_there(tmp_path):
    out = tmp_path / "deep" / "out"
    with whole_folder(out) as fresh:
        (fresh / "a").write_text("1")
        assert not out.exists()
    with pytest.raises(OSError, match="none"), whole_folder(out) as fresh:
        (fresh / "none" / "a").write_text("2")
    assert (out / "a").read_text() == "1"
    with whole_folder(out) as fresh:
        (fresh / "b").write_text("3")
    assert [path.name for path in out.iterdir()] == ["b"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    check_empty(tmp_path / "new", "--out")
    (tmp_path / "none").mkdir()
    check_empty(tmp_path / "none", "--out")
    for full in (out, out / "b"):
        with pytest.raises(RunFolderError):
            check_empty(full, "--out")
    with pytest.raises(RunFolderError):
        check_place(out / "b" / "c", "--out")
    check_place(out / "x" / "y", "--out")


def test_runs_are_replaced_by_their_like_only(tmp_path):
    check_writable(tmp_path, "lens", "abc", "0.0.1")
    store(
        xr.Dataset(
            {"x": ("a", [1.0, 2.0])},
            attrs={"experiment": "lens", "weights_sha256": "abc", "regraft": "0.0.1", "n": np.int64(3)},
        ),
        tmp_path,
    )
    assert read_mark(tmp_path)["n"] == 3
    assert open_run(tmp_path).x.values.tolist() == [1.0, 2.0]
    check_writable(tmp_path, "lens", "abc", "0.0.1")
    for other in (("swap", "abc", "0.0.1"), ("lens", "abd", "0.0.1"), ("lens", "abc", "2")):
        with pytest.raises(RunFolderError):
            check_writable(tmp_path, *other)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunFolderError):
        check_writable(tmp_path, "lens", "abc", "1")
    with pytest.raises(RunFolderError):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({})[:-1])
    with pytest.raises(RunFolderError):
        read_mark(tmp_path)


SOURCE = '''
def thing(model, size: int = 3, *, words: list[str] | None = None, bare=-1.5):
    """What it does,
    in two lines.

    More of it.

    Args:
        size: how large,
            on two lines.
        bare: without a type.

    Raises:
        ValueError: never.
    """


def other(rows, size=3):
    """No experiment."""
'''


def test_an_experiment_is_read_from_its_source(tmp_path):
    file = tmp_path / "thing.py"
    file.write_text(SOURCE)
    found = read_experiment("some.thing", "thing", file)
    assert (found.name, found.module, found.summary, found.needs) == (
        "thing",
        "some.thing",
        "What it does, in two lines.",
        "model",
    )
    assert [(p.name, p.annotation, p.default, p.help) for p in found.parameters] == [
        ("size", "int", 3, "how large, on two lines."),
        ("words", "list[str] | None", None, ""),
        ("bare", "str", -1.5, "without a type."),
    ]
    assert read_experiment("some.thing", "other", file) is None
    assert read_experiment("some.thing", "none", file) is None
    file.write_text(SOURCE.replace("(model,", "(weights,"))
    assert read_experiment("some.thing", "thing", file).needs == "weights"
    every = experiments()
    assert {"lens", "knockout", "patch"} <= set(every)
    assert not {"states", "surgery", "rounding"} & set(every)
    assert all(p.help for e in every.values() for p in e.parameters)


def test_a_result_is_measured_once_as_long_as_nothing_changes(monkeypatch):
    model, runs = opened("llama"), []

    def function(self):
        return lambda model, size=1: runs.append(size) or xr.Dataset(attrs={"model": "own", "extra": 1})

    monkeypatch.setattr(Experiment, "function", function)
    monkeypatch.setattr(
        "regraft.experiments.running.experiments", lambda: {"thing": Experiment("thing", "m", "s", ())}
    )
    first = measured(model, "thing", size=2)
    assert measured(model, "thing", size=2) is first
    assert first.attrs["experiment"] == "thing"
    assert (first.attrs["model"], first.attrs["extra"], first.attrs["seed"]) == ("own", 1, 0)
    assert first.attrs["options"] == '{"size": 2}'
    assert first.attrs["weights_sha256"] == model.weights_sha256
    assert first.attrs["dtype"] == "float32"
    measured(model, "thing", size=3)
    measured(model, "thing", 1, size=2)
    model.blocks[0].module.mlp.up_proj.weight.data.mul_(1.0)
    model.blocks[0].module.mlp.up_proj.weight.detach().add_(1.0)
    measured(model, "thing", size=2)
    measured(opened("llama"), "thing", size=2)
    assert runs == [2, 3, 2, 2, 2]


def test_only_the_listener_hears():
    heard = []
    advance("a", 1, 2)
    with listening(lambda *said: heard.append(said)):
        advance("b", 2, 3)
        with listening(lambda *said: heard.append(("inner", *said))):
            advance("c", 3, 4)
        advance("d", 4, 5)
    advance("e", 5, 6)
    assert heard == [("b", 2, 3), ("inner", "c", 3, 4), ("d", 4, 5)]


def test_values_of_parameters_are_of_their_kind():
    fits = {
        "int": [0, np.int64(3)],
        "float": [1, 0.5, np.float32(2)],
        "bool": [True, False],
        "str": ["", "a"],
        "list[int]": [[], [1, 2], (3,)],
        "list[str]": [["a"], ("b", "c")],
        "list[odd]": [[None, True, object()]],
        "TextFile": ["a", Path("a")],
        "odd": [None is None, 1, "a"],
        "int | None": [None, 4],
    }
    wrong = {
        "int": [True, 0.5, "1", None],
        "float": [False, "1", 1j, None],
        "bool": [1, 0, "True"],
        "str": [1, b"a", Path("a")],
        "list[int]": [["a"], [1, True], 3, "12"],
        "list[str]": ["ab", b"ab", [1], ["a", 1]],
        "TextFile": [1, b"a"],
        "int | None": [False, "a"],
    }
    assert {kind: [unfit(kind, value) for value in values] for kind, values in fits.items()} == {
        kind: [""] * len(values) for kind, values in fits.items()
    }
    said = {
        kind: {unfit(kind, value) for value in values if value is not None} for kind, values in wrong.items()
    }
    assert said == {
        "int": {"a whole number"},
        "float": {"a number"},
        "bool": {"True or False"},
        "str": {"a text"},
        "list[int]": {"a list, each a whole number"},
        "list[str]": {"a list, each a text"},
        "TextFile": {"the name of a file or folder: write it to one"},
        "int | None": {"a whole number"},
    }
    assert unfit("int", None) == "to be left out"
