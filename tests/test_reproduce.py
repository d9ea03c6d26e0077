"""Published figures beside results: studies as data, places in results, plans, and the command to its end on
the specimens and on a stand-in of the hub."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import regraft
from regraft.cli.main import app
from regraft.core.registry import experiments
from regraft.features.active_features import active_features
from regraft.jobs import reproduce_job
from regraft.landmarks import study as study_module
from regraft.landmarks.beside import beside, in_words
from regraft.landmarks.study import Landmark, Step, check_shape, read_study, studies, study_for
from regraft.model.load import load
from small import ids
from test_hub import FOLDER, hub  # noqa: F401  # the fixture is used by its name
from test_published_adapters import folder  # noqa: F401

NAMES = """qwen3-4b-instruct-2507 qwen3-1.7b llama-3.2-1b sarvam-m qwen3.5-9b""".split()
FEW = ("--only", "lens", "--only", "spectra")


def run(*words):
    result = CliRunner().invoke(app, ["reproduce", *map(str, words)])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("name", list(studies()))
def test_steps_are_experiments_with_options_that_they_have(name):
    for step in studies()[name].steps:
        if not step.experiment:
            assert step.command or step.adapters
            continue
        known = {parameter.name for parameter in experiments()[step.experiment].parameters}
        assert set(step.options) <= known
        for landmark in step.landmarks:
            low, high = landmark.value if isinstance(landmark.value, tuple) else [landmark.value] * 2
            assert low <= high


def test_every_model_of_the_published_studies_is_there():
    assert set(NAMES) < set(studies())
    assert sum(name.startswith("r1-distill-qwen-7b-adapters") for name in studies()) == 5
    assert studies()["qwen3-4b-instruct-2507"].landmarks > 150


RESULT = xr.Dataset(
    {
        "gap": (("part", "block"), [[0.1, 0.2, 0.4], [0.5, np.nan, 0.7]], {"units": "share"}),
        "size": ("matrix", [1.0, 2.0, 6.0]),
        "one": ((), 3.0),
    },
    coords={"part": ["block", "mlp"], "block": ["0", "1", "2"], "role": ("matrix", ["q", "k", "q"])},
)


@pytest.mark.parametrize(
    ("at", "variable", "value", "found"),
    [
        ({"part": "block", "block": 1}, "gap", 0.2, 0.2),
        ({"part": "block", "block": "2"}, "gap", 0.2, 0.4),
        ({"part": "block", "block": [1, 2]}, "gap", (0.0, 1.0), (0.2, 0.4)),
        ({"part": "mlp", "block": [0, 2]}, "gap", (0.0, 1.0), (0.5, 0.7)),
        ({"part": "block", "block": "mean"}, "gap", 0.2, 0.7 / 3),
        ({"role": "q", "matrix": "mean"}, "size", 1.0, 3.5),
        ({}, "one", 6.0, 3.0),
    ],
)
def test_a_place_in_a_result(at, variable, value, found):
    one = beside("step", Landmark("q", variable, at, value), RESULT)
    assert one.value == pytest.approx(found)
    assert one.reason == ""
    assert one.ratio == pytest.approx(found / value, nan_ok=True) if isinstance(value, float) else True


@pytest.mark.parametrize(
    ("at", "variable", "reason"),
    [
        ({}, "none", "the result has no none"),
        ({"part": "block", "block": 7}, "gap", "gap has no block 7"),
        ({"head": 1}, "gap", "gap has no head"),
        ({"part": "block"}, "gap", "3 numbers stand there: name one"),
        ({"part": "mlp", "block": 1}, "gap", "no finite number stands there"),
    ],
)
def test_a_place_that_is_not_there_says_so(at, variable, reason):
    one = beside("step", Landmark("q", variable, at, 1.0), RESULT)
    assert (one.value, one.reason) == (None, reason)
    assert np.isnan(one.ratio)


def test_values_in_words():
    assert [in_words(v) for v in (None, 0.12345, 524288.0, (2.5, 3.7))] == [
        "-",
        "0.1235",
        "524,288",
        "2.5 to 3.7",
    ]


def test_a_step_is_one_thing():
    told = 'model = "m"\nsource = "s"\ndtype = "float32"\n[[steps]]\nname = "x"\n'
    with pytest.raises(ValueError, match="the step 'x' is to be an experiment, a command or adapters"):
        read_study("x", told)
    with pytest.raises(ValueError, match="the step 'x' is to be"):
        read_study("x", told + 'experiment = "lens"\ncommand = ["a"]\n')


def test_a_plan_fetches_nothing(monkeypatch):
    def fetched(*args, **kwargs):
        raise AssertionError("something was fetched")

    monkeypatch.setattr("regraft.checkpoint.hub.snapshot_download", fetched)
    monkeypatch.setattr("socket.socket.connect", fetched)
    code, said = run("Qwen/Qwen3-4B-Instruct-2507", "--plan", "--count", 2)
    assert code == 0, said
    assert "completions, made once" in said
    assert "4,022,468,096 parameters, 7.49 GiB to fetch and to hold in bfloat16" in said
    assert said.endswith("which was measured now. Nothing was fetched")
    code, said = run("Qwen/Qwen3.5-9B", "--plan")
    assert code == 2
    assert "is not stated, so there is no plan: `regraft inspect Qwen/Qwen3.5-9B --weights-only`" in said


def test_the_list_and_what_is_refused(tmp_path, monkeypatch):
    code, said = run()
    assert code == 0
    assert "qwen3-4b-instruct-2507 Qwen/Qwen3-4B-Instruct-2507 10 " in said
    code, said = run("owner/unknown")
    assert code == 2
    assert "no figures of owner/unknown are known here" in said
    code, said = run("specimen:gpt2", "--only", "lenses")
    assert code == 2
    assert "specimen-gpt2 has no step 'lenses': its steps are lens, knockout, " in said
    monkeypatch.setattr("regraft.cli.reproduce.open_model", None)
    code, said = run("specimen:gpt2", "--study", "llama-3.2-1b", "--only", "ablate", "--out", tmp_path / "x")
    assert code == 2, "before anything is opened"
    assert "this model has 4 blocks of width 128 and 4,096 tokens, meta-llama/Llama-3.2-1B has 16" in said
    with pytest.raises(ValueError, match="there is no study 'none': choose one of "):
        study_for("x", "none")
    check_shape(studies()["specimen-gpt2"], 4, 128, 4096)


def near(rows):
    """Every landmark of a specimen is found again: computed numbers, so to a share, not to the bit."""
    return all(abs(row["here"] - row["landmark"]) <= 0.02 * abs(row["landmark"]) + 1e-6 for row in rows)


def test_the_specimens_own_figures_are_found_again(tmp_path, monkeypatch):
    out = tmp_path / "again"
    code, said = run("specimen:gpt2", *FEW, "--out", out)
    assert code == 0, said
    rows = json.loads((out / "landmarks.json").read_text())
    wanted = [
        n for s in studies()["specimen-gpt2"].steps if s.name in ("lens", "spectra") for n in s.landmarks
    ]
    assert len(rows) == len(wanted) > 8
    assert near(rows)
    page = (out / "report.html").read_text()
    assert page.index("Published figures, and what was found here") < page.index('id="lens-4-12"')
    assert "rank, mean depth 0 " in said
    monkeypatch.setattr("regraft.reporting.build.measured", None)
    code, again = run("specimen:gpt2", *FEW, "--out", out)
    assert code == 0, "a second run reads what the first has finished"
    assert again == said


@pytest.mark.slow
def test_a_step_that_is_a_command_runs_once_and_leaves_its_certificate(tmp_path):
    words = ("specimen:gpt2", "--only", "byte embedding", "--only", "byte embedding, its certificate")
    code, said = run(*words, "--out", tmp_path)
    assert code == 0, said
    made = tmp_path / "byte-embedding" / "graft" / "graft.safetensors"
    before = made.stat().st_mtime_ns
    assert near(json.loads((tmp_path / "landmarks.json").read_text()))
    assert run(*words, "--out", tmp_path)[0] == 0
    assert made.stat().st_mtime_ns == before


def test_a_command_that_fails_says_why(tmp_path, monkeypatch):
    told = studies()["specimen-gpt2"]
    wrong = Step("fit", command=("graft", "embedding", "fit", "--steps", "-1"), makes="x")
    job = reproduce_job.Reproduction(told, "specimen:gpt2", tmp_path, load)
    with pytest.raises(ValueError, match=r"fit: regraft: .*steps"):
        job.run([wrong])


def test_figures_of_a_text_ask_for_it_and_differences_are_told(tmp_path):
    """A figure without its text has no result; settings that differ are sentences."""
    steps = (Step("lens", "lens", {"count": 2, "tokens": 6}, text=True, differs="Another text.",
                  landmarks=(Landmark("x", "corpus_loss", {}, 1.0),)),)  # fmt: skip
    model = load("specimen:gpt2")
    other = study_module.Study("x", "m", "s", "bfloat16", None, steps, weights_sha256="0", note="A note.")
    job = reproduce_job.Reproduction(other, "specimen:gpt2", tmp_path, lambda: model)
    (found,) = job.run(steps)
    assert found.reason == "it is of a text: name it with --text"
    assert reproduce_job.differences(other, model, 3) == [
        "A note.",
        "Numbers are float32 here and bfloat16 there.",
        "The weights are not those that the figures were measured on: their hash is another.",
        "Steps that count prompts read 3 here.",
        "lens: Another text.",
    ]


def test_a_step_that_the_model_refuses_leaves_the_others(tmp_path):
    steps = (
        Step("patch", "patch", {"clean": "a"}, landmarks=(Landmark("x", "effect", {}, 1.0),)),
        Step("lens", "lens", {"count": 2, "tokens": 6}),
    )
    other = study_module.Study("x", "m", "s", "float32", None, steps)
    job = reproduce_job.Reproduction(other, "specimen:gpt2", tmp_path, lambda: load("specimen:gpt2"))
    (found,) = job.run(steps)
    assert found.value is None
    assert found.reason
    assert job.refused == ["patch"]
    assert (tmp_path / "lens-2-6").is_dir()


def test_active_features_by_hand(folder):  # noqa: F811
    model, graft = regraft.open_transcoder(folder)
    rows = [ids(7, 1), ids(5, 2)]
    data = active_features(model, graft, rows)
    wanted = np.zeros(graft.shape.blocks)
    for row in rows:
        record = model.record([row])
        for block in range(graft.shape.blocks):
            wanted[block] += float((torch.as_tensor(record[f"{block}.feature"]) > 0).sum())
    assert data.active.values == pytest.approx(wanted / 12)
    assert int(data.tokens) == 12
    with pytest.raises(ValueError, match="there is no text"):
        active_features(model, graft, [])


def test_the_same_from_python(tmp_path):
    found = regraft.reproduce(load("specimen:gpt2"), tmp_path, only=["spectra"])
    assert {one.landmark.variable for one in found} == {"block_norm", "mean_rank_ratio"}
    assert all(one.ratio == pytest.approx(1, rel=1e-3) for one in found)


def test_published_adapters_are_counted_by_the_command(folder, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "text.txt").write_text("5 6 7 8 9 10")
    words = ("--study", "r1-distill-qwen-7b-adapters-0.001", "--text", tmp_path / "text.txt")
    code, said = run(folder, *words, "--out", tmp_path / "out")
    assert code == 2
    assert "this model has 4 blocks of width 32 and 96 tokens, nathu0/" in said
    theirs = studies()["r1-distill-qwen-7b-adapters-0.001"]
    small = dataclasses.replace(
        theirs, shape=dataclasses.replace(theirs.shape, blocks=4, width=32, vocabulary=96)
    )
    monkeypatch.setattr("regraft.cli.reproduce.study_for", lambda model, name: small)
    code, said = run(folder, *words, "--out", tmp_path / "out")
    assert code == 0, said
    (row,) = json.loads((tmp_path / "out" / "landmarks.json").read_text())
    assert row["landmark"] == 1.4
    assert 0 < row["here"] < 12
    assert "features are active at a token, mean over blocks" in said


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_and_reproduced(hub, tmp_path):  # noqa: F811
    """The specimen's own study under a hub's name, from a server of this machine."""
    told = (study_module.resources.files("regraft.landmarks") / "studies" / "specimen-gpt2.toml").read_text()
    told = told.replace("specimen:gpt2", "owner/small")
    code = (
        "import sys; from regraft.landmarks import study; from regraft.cli import reproduce\n"
        f"own = study.read_study('small', {told!r})\n"
        "reproduce.study_for = lambda model, name: own\n"
        "from regraft.cli.main import app\n"
        f"app(['reproduce', 'owner/small', '--only', 'spectra', '--out', {str(tmp_path / 'out')!r}])"
    )
    environment = {
        **os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert FOLDER.is_dir()
    assert near(json.loads((tmp_path / "out" / "landmarks.json").read_text()))
    assert "mean rank ratio" in done.stdout
