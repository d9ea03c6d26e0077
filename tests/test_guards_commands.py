"""What a command does with its options: which work is begun, what is written, what is printed, how it ends.
Work is planted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import xarray as xr

from regraft.cli import console as commands
from regraft.jobs import experiment_job


@pytest.fixture
def begun(monkeypatch):
    """The work that a command began, in order; nothing of it is done."""
    seen = []
    found = xr.Dataset({"it": ("x", [1.5])}, attrs={"agrees": True, "experiment": "it"})

    def planted(name, value=None):
        monkeypatch.setattr(commands, name, lambda *args, **kwargs: seen.append((name, *args)) or value)

    planted("write_skeleton", ["first", "second"])
    planted("rebuild", found)
    for name in ("check_writable", "write_run", "print_stages", "print_result"):
        planted(name)
    monkeypatch.setattr(commands, "resolve", lambda source: (source, source))
    monkeypatch.setattr(
        commands, "open_rebuilt", lambda folder: SimpleNamespace(weights_sha256=f"sum of {folder}")
    )
    return seen, found


def test_a_student_gets_a_folder_and_nothing_is_compared(begun, capsys):
    seen, _ = begun
    assert (
        commands.rebuild_model("it", ["text"], "", "float32", False, Path("student"), Path("out"), False) == 0
    )
    assert seen == [("write_skeleton", "it", Path("student"), ["text"])]
    assert "2 stages written to student" in capsys.readouterr().out


@pytest.mark.parametrize("agrees", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("out", [None, Path("out")])
def test_a_rebuilt_model_is_compared_written_and_shown(begun, capsys, out, as_json, agrees):
    seen, found = begun
    found.attrs["agrees"] = agrees
    assert commands.rebuild_model("it", ["text"], "2.mlp", "float64", False, None, out, as_json) == (
        0 if agrees else 1
    )
    said = capsys.readouterr().out
    steps = [
        ("check_writable", out, "rebuild", "sum of it"),
        ("rebuild", "it", ["text"], "2.mlp", "float64"),
        ("write_run", found, out, None),
    ]
    wanted = steps if out else steps[1:2]
    assert [
        step[:4] if step[0] == "check_writable" else step for step in seen if step[0] != "print_stages"
    ] == wanted
    assert (("print_stages", found) in seen) == (not as_json)
    assert ("written to out" in said) == (out is not None and not as_json)
    if as_json:
        assert json.loads(said)["data_vars"]["it"]["data"] == [1.5]


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_an_experiment_is_run_written_and_shown(begun, capsys, kept, as_json, monkeypatch, tmp_path):
    seen, found = begun
    out = tmp_path / "out" if kept else None
    ran = []
    experiment = SimpleNamespace(name="it", parameters=())

    def run(of, model, seed, **options):
        assert of is experiment
        ran.append((model, seed, options))
        return found

    monkeypatch.setattr(commands, "run_experiment", run)
    monkeypatch.setattr(experiment_job, "run_experiment", run)
    model = SimpleNamespace(weights_sha256="sum", name="m", dtype="float32", device="cpu", proof=dict)
    commands.show_experiment(experiment, model, {"count": 3}, out, 7, as_json)
    said = capsys.readouterr().out
    assert ran == [(model, 7, {"count": 3})]
    assert (out is not None and (out / "run.json").is_file()) == kept
    assert (("print_result", found) in seen) == (not as_json)
    assert ("written to" in said) == (out is not None and not as_json)
    if as_json:
        assert json.loads(said)["data_vars"]["it"]["data"] == [1.5]
