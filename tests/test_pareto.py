"""Adapters of several weights of sparsity side by side, and the options of these commands from a file."""

from __future__ import annotations

import html
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from typer.testing import CliRunner

import regraft
from regraft.cli.main import app, prepared
from regraft.core.interrupts import StoppedError
from regraft.data import windows as data_windows
from regraft.jobs import pareto_job, transcoder_jobs
from regraft.jobs.pareto_job import pareto_table
from regraft.jobs.transcoder_jobs import fit_transcoder
from regraft.reporting.figures.transcoder_figures import pareto_figures, pareto_finding
from regraft.training.trainer import TrainingPlan

pytestmark = pytest.mark.usefixtures("quick_pairs")
PLAN = TrainingPlan(steps=4, batch=2, warmup=1, rate=1e-2)


@pytest.fixture(scope="module")
def models():
    return regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")


def told(*words):
    return CliRunner().invoke(app, prepared([*words]))


@pytest.mark.slow
def test_weights_and_controls_stand_side_by_side_and_are_made_once(models, tmp_path, monkeypatch):
    monkeypatch.setattr(transcoder_jobs, "HELD", 6)
    options = {"features": 12, "plan": PLAN}
    controls = ("base", "next-token", "random")
    data = regraft.pareto_transcoder(*models, tmp_path, l1=(0.5, 0.0001), controls=controls, **options)
    names = [
        "0.5",
        "0.0001",
        "0.001, base's backbone",
        "0.001, next-token loss alone",
        "0.001, random features",
    ]
    assert list(data.fit.values) == names
    assert data.l1.values.tolist() == [0.5, 0.0001, 0.001, 0.001, 0.001]
    alone = regraft.evaluate_transcoder(tmp_path / "l1-0.5" / "graft")
    for name, wanted in (
        ("loss", alone.loss.sel(model="adapted")), ("recovered", alone.recovered), ("active", alone.active),
        ("never", alone.never.mean("block")), ("error", alone.nmse.isel(depth=-1)),
    ):  # fmt: skip
        np.testing.assert_allclose(data[name].sel(fit="0.5"), wanted, rtol=1e-3, atol=1e-6)
    assert float(data.active_mean.sel(fit="0.5").mean()) < float(data.active_mean.sel(fit="0.0001").mean()), (
        "fewer"
    )
    head, rows = pareto_table(data)
    assert [len(row) for row in rows] == [len(head)] * 5
    assert json.loads((tmp_path / "pareto.json").read_text())["attrs"]["experiment"] == "transcoder_pareto"
    page = (tmp_path / "pareto.html").read_text()
    assert html.escape(pareto_finding(data)) in page
    drawn = load_file(tmp_path / "l1-0.001-random" / "graft" / "graft.safetensors")
    start = load_file(tmp_path / "l1-0.001-next-token" / "graft" / "graft.safetensors")
    fresh = first_weights(models, tmp_path / "fresh")
    encoders = [name for name in drawn if ".enc." in name]
    assert encoders
    assert all(torch.equal(drawn[name], fresh[name]) for name in encoders), "encoders stay as drawn"
    assert not any(torch.equal(start[name], fresh[name]) for name in encoders), "others learn"
    assert all(float(drawn[name].abs().sum()) > 0 for name in drawn if ".dec." in name), "decoders learn"

    def never(*words, **more):
        raise AssertionError("fitted again")

    monkeypatch.setattr(pareto_job, "fit_transcoder", never)
    again = regraft.pareto_transcoder(*models, tmp_path, l1=(0.5,), **options)
    np.testing.assert_allclose(again.kl, data.kl.isel(fit=[0]), rtol=1e-3)
    for other, said in (
        ({"plan": TrainingPlan(steps=9, batch=2)}, "plan"), ({"seed": 1}, "text_sha256, seed"),
        ({"features": 13}, "features"), ({"backbone": "base"}, "backbone"),
        ({"weights": regraft.TranscoderLoss(nmse=0.5)}, "loss"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"l1-0\.5 holds adapters that were made otherwise \({said}\)"):
            regraft.pareto_transcoder(*models, tmp_path, l1=(0.5,), **{**options, **other})
    (tmp_path / "other.txt").write_text("some other text " * 400)
    with pytest.raises(ValueError, match=r"made otherwise \(text_sha256\)"):
        regraft.pareto_transcoder(*models, tmp_path, [str(tmp_path / "other.txt")], l1=(0.5,), **options)
    with pytest.raises(ValueError, match=r"made otherwise \(text_sha256\)"):
        regraft.pareto_transcoder(*models, tmp_path, l1=(0.5,), length=30, **options)
    assert "pair_backbone" not in data.attrs, "fits differ in it"
    assert data.attrs["pair_target_sha256"] == models[1].weights_sha256
    (line,) = re.findall(r"regraft graft transcoder pareto [^<]*", html.unescape(page))
    for word in (
        "--l1=0.5",
        "--l1=0.0001",
        "--control=next-token",
        "--features=12",
        "--steps=4",
        "--rate=0.01",
    ):
        assert word in line.split(), line


def test_what_cannot_be_fitted_or_measured_is_refused_before_the_first_fit(models, tmp_path, monkeypatch):
    def never(*words, **more):
        raise AssertionError("fitted")

    monkeypatch.setattr(pareto_job, "fit_transcoder", never)
    live = regraft.load((models[0].hf, models[0].tokenizer), pack=False)
    short = tmp_path / "short.txt"
    short.write_text("few words")
    for pair_, given, said in (
        (models, {"l1": ()}, "there is no weight of sparsity to fit"),
        (models, {"l1": (0.1, -1.0)}, "there is no weight of sparsity to fit: name at least one, 0 or more"),
        (
            models,
            {"controls": ["rand"]},
            "the control 'rand' is not known: choose of base, next-token, random",
        ),
        (models, {"held": ["books"]}, "'books' names no domain"),
        (models, {"held": [f"a={short}"]}, "less than one sequence of 256"),
        ((live, models[1]), {}, "is a live model, which is not found again: save it to a folder"),
    ):
        with pytest.raises(ValueError, match=said):
            regraft.pareto_transcoder(*pair_, tmp_path / "p", **given)
    monkeypatch.setattr(pareto_job, "processes", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="fits are made one after the other: start without a launcher"):
        regraft.pareto_transcoder(*models, tmp_path / "p")


def test_text_is_encoded_once_for_all_fits(models, tmp_path, monkeypatch):
    monkeypatch.setattr(transcoder_jobs, "HELD", 2)
    (tmp_path / "books.txt").write_text("some text to read " * 400)
    encoded, real = [], data_windows.write_ids
    monkeypatch.setattr(data_windows, "write_ids", lambda *given: encoded.append(given) or real(*given))
    plan = TrainingPlan(steps=1, batch=2)
    words = {"l1": (0.1, 0.01), "features": 4, "plan": plan, "length": 32}
    regraft.pareto_transcoder(*models, tmp_path / "p", [str(tmp_path / "books.txt")], **words)
    assert len(encoded) == 1


def test_a_page_of_more_fits_than_there_are_colours():
    fits = [f"{10.0**-n!r}" for n in range(9)] + ["0.001, base's backbone"]
    kinds = {"kl": 0.1, "active_mean": 2.0, "recovered": 0.9}
    data = xr.Dataset(
        {name: (("fit", "domain"), np.full((10, 1), value)) for name, value in kinds.items()}
        | {"active": (("fit", "domain", "block"), np.arange(30.0).reshape(10, 1, 3))},
        coords={"fit": fits, "domain": ["sums"], "block": ["0", "1", "2"]},
    )
    (_, curve), (_, active) = pareto_figures(data)
    assert [len(trace.x) for trace in curve.data] == [9, 1], "controls are points of their own"
    assert np.array(active.data[0].z).tolist() == np.arange(30.0).reshape(10, 3).tolist()


def first_weights(models, out):
    """What adapters of that seed start with: the encoders that one step at no rate leaves."""
    plan = TrainingPlan(steps=1, batch=2, rate=0.0)
    fit_transcoder(*models, out, features=12, plan=plan)
    return load_file(out / "graft" / "graft.safetensors")


@pytest.mark.slow
def test_a_sweep_that_was_broken_off_goes_on_where_it_was(models, tmp_path, monkeypatch):
    """The first fit is kept, the second continues from its checkpoint: the same weights as unbroken."""
    monkeypatch.setattr(transcoder_jobs, "HELD", 2)
    plan = TrainingPlan(steps=6, batch=2, warmup=1, rate=1e-2, save_every=2)
    options = {"l1": (0.1, 0.01), "features": 8, "plan": plan}
    regraft.pareto_transcoder(*models, tmp_path / "whole", **options)
    real, fits = transcoder_jobs.train, []

    def broken(*words, **more):
        def watch(step):
            if len(fits) == 2 and step == 3:
                raise StoppedError("stopped")

        fits.append(1)
        return real(*words, watch=watch, **more)

    monkeypatch.setattr(transcoder_jobs, "train", broken)
    with pytest.raises(StoppedError):
        regraft.pareto_transcoder(*models, tmp_path / "broken", **options)
    assert (tmp_path / "broken" / "l1-0.1" / "graft").exists()
    assert not (tmp_path / "broken" / "l1-0.01" / "graft").exists()
    regraft.pareto_transcoder(*models, tmp_path / "broken", **options)
    assert len(fits) == 3, "the first fit was not made again"
    for name in ("l1-0.1", "l1-0.01"):
        one, other = (
            load_file(tmp_path / run / name / "graft" / "graft.safetensors") for run in ("whole", "broken")
        )
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_options_come_from_a_file_and_the_line_goes_first(tmp_path):
    file, out = tmp_path / "fit.yaml", tmp_path / "out"
    file.write_text(
        "command: graft transcoder fit\nfeatures: 6\nsteps: 2\nbatch: 2\nl1: 0.25\nrandom-features: true\n"
    )
    done = told("--config", str(file), "graft", "transcoder", "fit", "--out", str(out), "--features", "7")
    assert done.exit_code == 0, done.output
    about = json.loads((out / "graft" / "graft.json").read_text())
    assert about["shape"]["features"] == 7, "the line goes first"
    assert about["pair"]["loss"]["l1"] == 0.25
    assert about["pair"]["random_features"] is True
    assert "features: 7" in (out / "run.yaml").read_text()
    for text, said in (
        ("featurs: 6\n", "says 'featurs', which is no option of this command (nearest: features): it has"),
        ("steps: many\n", "Invalid value for '--steps'"),
        ("l1: -1\n", "--l1 is -1.0: write 0 or more"),
        ("backbone: both\n", "Invalid value for '--backbone'"),
    ):
        file.write_text(text)
        done = told("--config", str(file), "graft", "transcoder", "fit", "--out", str(tmp_path / "none"))
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    assert not (tmp_path / "none").exists()


def test_the_command_prints_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(transcoder_jobs, "HELD", 2)
    words = ["--features", "6", "--steps", "2", "--batch", "2", "--l1", "0.1", "--control", "random"]
    done = told("graft", "transcoder", "pareto", "--out", str(tmp_path / "p"), *words)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "domain loss recovered" in text.replace("base's ", "")
    kept = json.loads((tmp_path / "p" / "pareto.json").read_text())
    for (divergence,) in kept["data_vars"]["kl"]["data"]:
        assert f" {divergence:.4f} " in text
    assert "command: graft transcoder pareto" in (tmp_path / "p" / "run.yaml").read_text()
    for wrong, said in (
        (["--control", "none"], "--control none is not known: choose of base, next-token, random"),
        (["--l1", "-0.1"], "--l1 is -0.1: write 0 or more"),
    ):
        done = told("graft", "transcoder", "pareto", "--out", str(tmp_path / "q"), *wrong)
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stderr.split())
