"""Run folders listed, shown, drawn and compared; pages made of them without measuring; two models side by
side."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import regraft
from families import FAMILIES
from regraft.cli.main import app, prepared
from regraft.core.files import RunFolderError
from regraft.core.runs import open_run, read_mark, store
from regraft.jobs.run_folders import compare_runs, difference, found_runs
from regraft.model.load import load
from regraft.reporting.beside_section import MOST, differences, median_gap
from regraft.reporting.chapter_inputs import Reading
from regraft.reporting.drawings import drawing_of
from regraft.reporting.run_pages import command_again, page_from_runs


def run(*words):
    found = CliRunner().invoke(app, prepared([*map(str, words)]))
    return found.exit_code, " ".join(found.output.split())


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Two small reports of two models, one of one chapter more."""
    place = tmp_path_factory.mktemp("reports")
    for name, chapters in (("gpt2", ["knockout", "spectra", "lens"]), ("qwen3", ["knockout", "spectra"])):
        model = load(f"specimen:{name}")
        reading = Reading(count=2)
        regraft.report(model, place / name, chapters=chapters, reading=reading)
    return place


def mark_of(folder, **changes):
    mark = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**mark, **changes}))


def copied(folder, to, **changes):
    shutil.copytree(folder, to)
    mark_of(to, **changes)
    return to


def test_runs_are_listed_with_the_chapters_of_reports(reports, tmp_path):
    found = found_runs(reports)
    assert [one.folder.relative_to(reports).as_posix() for one in found] == [
        "gpt2", "gpt2/knockout", "gpt2/lens", "gpt2/spectra", "qwen3", "qwen3/knockout", "qwen3/spectra",
    ]  # fmt: skip
    assert {one.model for one in found} == {"specimen:gpt2", "specimen:qwen3"}
    assert {one.state for one in found} == {"done"}
    begun = copied(reports / "gpt2" / "lens", tmp_path / "runs" / "half", finished=False)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    assert [one.state for one in found_runs(begun.parent)] == ["cannot be read", "begun"]
    code, said = run("runs", begun.parent)
    assert code == 0
    assert "experiment model weights made s state" in said
    assert f"{begun} lens specimen:gpt2" in said
    code, said = run("show", begun)
    assert code == 2
    assert "did not come to its end: the command that began it goes on with it" in said
    code, said = run("runs", tmp_path / "nothing")
    assert code == 2
    assert "there is no folder" in said
    (tmp_path / "empty").mkdir()
    assert "there is no run folder in" in run("runs", tmp_path / "empty")[1]


def test_a_run_is_shown_and_drawn_where_that_is_asked_for(reports, tmp_path):
    folder = copied(reports / "gpt2" / "knockout", tmp_path / "one")
    code, said = run("show", folder)
    assert code == 0
    assert "Block 0 is the critical one" in said
    assert not (folder / "figure.html").exists()
    code, said = run("show", folder, "--draw")
    assert code == 0
    page = (folder / "figure.html").read_text()
    assert page.count('-data">') == len(drawing_of(open_run(folder)).all_figures(open_run(folder))) > 0
    assert "plotly.js (cartesian" in page
    assert "regraft knockout --model specimen:gpt2 --count" in page
    code, said = run("show", folder, "--json")
    assert (
        json.loads(CliRunner().invoke(app, ["show", str(folder), "--json"]).stdout)["attrs"]["experiment"]
        == "knockout"
    )
    code, said = run("show", reports / "gpt2")
    assert code == 2
    assert "is a whole report: open its report.html, or name one of its chapters" in said


def test_a_run_of_a_newer_version_is_refused(reports, tmp_path):
    folder = copied(reports / "gpt2" / "knockout", tmp_path / "one", regraft="99.0")
    for words in (["show", folder], ["report", "--from", folder, "--out", tmp_path / "page"]):
        code, said = run(*words)
        assert code == 2
        assert "is a run of regraft 99.0, this is" in said
    mark_of(folder, regraft="0.0.1")
    assert open_run(folder).attrs["experiment"] == "knockout"
    mark_of(folder, regraft="nonsense")
    with pytest.raises(RunFolderError, match="is of version 'nonsense'"):
        open_run(folder)


def test_run_json_is_plain_json_throughout(reports):
    for folder in (one.folder for one in found_runs(reports)):
        mark = read_mark(folder)
        texts = [value for value in mark.values() if isinstance(value, str)]
        assert not [text for text in texts if re.match(r'\s*[\[{]"', text)], "no JSON inside a string"
        assert isinstance(mark.get("options", {}), dict)
    assert isinstance(read_mark(reports / "gpt2" / "lens")["completions"], list)


def test_two_runs_are_compared_in_how_they_were_made_and_in_their_values(reports, tmp_path):
    one, other = reports / "gpt2" / "knockout", reports / "qwen3" / "knockout"
    same = compare_runs(one, one)
    assert same.provenance == {}
    assert all(value.largest == 0 for value in same.values)
    bent = copied(one, tmp_path / "bent")
    data = open_run(one)
    moved = data.loss + np.array([0.0, 0.25, 0.0, 0.0])
    store(data.assign(loss=moved), bent)
    found = {value.name: value for value in compare_runs(one, bent).values}
    assert found["loss"].largest == pytest.approx(0.25)
    assert found["loss"].place == "block 1"
    assert found["loss"].share == pytest.approx(0.25 / float(np.abs(moved).max()))
    assert found["ratio"].largest == 0
    apart_ = compare_runs(one, other)
    assert apart_.provenance["model"] == ("specimen:gpt2", "specimen:qwen3")
    assert all("of other shapes" in value.reason for value in apart_.values)
    code, said = run("compare", one, bent)
    assert code == 0
    assert "Both were made in the same way." in said
    assert "loss 0.25" in said
    assert "block 1 nats per token" in said
    code, said = run("compare", one, reports / "gpt2" / "lens")
    assert code == 2
    assert "is a run of knockout," in said
    assert "is a whole report: name one of its chapters" in run("compare", reports / "gpt2", one)[1]
    assert (
        json.loads(CliRunner().invoke(app, ["compare", str(one), str(bent), "--json"]).stdout)["provenance"]
        == {}
    )


def test_missing_numbers_and_labels_count_as_differences():
    one = xr.DataArray([1.0, np.nan], dims="a", coords={"a": ["x", "y"]}, name="v")
    assert difference(one, one).largest == 0, "no number is no number on both sides"
    assert difference(one, one.fillna(2.0)).largest == np.inf
    assert difference(one, one.assign_coords(a=["x", "z"])).reason == "its a are called otherwise"
    assert median_gap(one, one * 3) == pytest.approx(2 / 3)
    assert median_gap(one * 0, one * 0) == 0


def test_a_page_of_runs_measures_nothing_and_has_every_chapter(reports, tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.cli.report.open_model", None)
    monkeypatch.setattr("regraft.experiments.running.measured", None)
    code, said = run(
        "report", "--from", reports / "gpt2" / "lens", reports / "gpt2" / "knockout", "--out", tmp_path / "p"
    )
    assert code == 0, said
    page = (tmp_path / "p" / "report.html").read_text()
    assert re.findall(r'<section id="([\w-]+)"', page) == ["found", "check", "lens", "knockout"]
    assert "a page from 2 run folders; nothing was measured again" in page
    assert run("report", "--from", reports / "gpt2" / "lens", "--out", tmp_path / "p")[0] == 0, "and again"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    code, said = run("report", "--from", reports / "gpt2", "--out", tmp_path / "full")
    assert code == 2
    assert "is not empty and is no run of regraft" in said
    whole = page_from_runs([reports / "gpt2"], tmp_path / "q").read_text()
    assert re.findall(r'<section id="([\w-]+)"', whole) == ["found", "check", "spectra", "lens", "knockout"]


def test_a_page_of_runs_takes_no_measured_reports_place_and_reads_nothing_else(reports, tmp_path):
    measured = copied(reports / "gpt2", tmp_path / "report")
    before = (measured / "report.html").read_bytes()
    code, said = run("report", "--from", reports / "gpt2" / "lens", "--out", measured)
    assert code == 2
    assert "holds a report that was measured: choose another with --out" in said
    assert (measured / "report.html").read_bytes() == before
    words = ["--chapters", "lens", "--prompts", "a text", "--out", tmp_path / "p"]
    code, said = run("report", "--from", reports / "gpt2" / "lens", *words)
    assert code == 2
    assert "measures nothing: leave out --chapters, --prompts" in said


def test_texts_that_no_chapter_reads_are_refused_before_a_model_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.cli.report.open_model", None)
    code, said = run("report", "--chapters", "spectra", "--prompts", "a text", "--out", tmp_path / "p")
    assert code == 2
    assert "none of the chapters spectra reads prompts or a text" in said


def test_runs_are_looked_for_so_deep_and_not_in_results(reports, tmp_path):
    for place in ("a/b/c", "a/b/d/e"):
        copied(reports / "gpt2" / "lens", tmp_path / place)
    (tmp_path / "a" / "run.zarr").mkdir()
    (tmp_path / "a" / "run.zarr" / "run.json").write_text("{}")
    assert [one.folder.relative_to(tmp_path).as_posix() for one in found_runs(tmp_path)] == ["a/b/c"]


def test_the_most_different_quantities_come_first_and_are_few():
    told = {"units": "u", "how_to_read": "r"}
    one = xr.Dataset({f"q{n:02}": ((), 1.0, told) for n in range(15)})
    other = xr.Dataset({f"q{n:02}": ((), 1.0 + n, told) for n in range(15)})
    rows = re.findall(r"<tr><td>(q\d+)</td>", differences(["a", "b"], one, other))
    assert rows == [f"q{n:02}" for n in range(14, 14 - MOST, -1)]


def test_runs_of_two_models_want_the_second_named(reports, tmp_path):
    folders = [reports / "gpt2", reports / "qwen3"]
    with pytest.raises(
        ValueError, match="these runs are of specimen:gpt2 and specimen:qwen3: two models side by"
    ):
        page_from_runs(folders, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    page = page_from_runs(folders, tmp_path / "p", "specimen:qwen3").read_text()
    assert "Of specimen:gpt2 alone." in page, "the lens is of one"
    knockout = page[page.index('<section id="knockout"') :]
    assert knockout.index("What differs most") < knockout.index("<figure>")
    assert "specimen:gpt2: Loss with one block skipped" in knockout
    assert "specimen:qwen3: Loss with one block skipped" in knockout
    with pytest.raises(ValueError, match=r"these runs are of specimen:gpt2 alone: two models side by side"):
        page_from_runs(folders[:1], tmp_path / "p", "specimen:qwen3")
    other = copied(reports / "gpt2" / "lens", tmp_path / "lens", weights_sha256="0" * 64)
    with pytest.raises(ValueError, match="these runs are of specimen:gpt2 with different weights"):
        page_from_runs([reports / "gpt2" / "knockout", other], tmp_path / "p")
    half = copied(reports / "gpt2" / "lens", tmp_path / "half", finished=False)
    with pytest.raises(RunFolderError, match="did not come to its end"):
        page_from_runs([half], tmp_path / "p")


def test_two_models_are_measured_and_set_side_by_side(tmp_path):
    one, other = (load(FAMILIES[name]().eval(), pack=False) for name in ("gpt2", "llama"))
    page, missing = regraft.report_beside(one, other, tmp_path / "r", chapters=["spectra"])
    assert missing == []
    text = page.read_text()
    assert page.name == "beside.html"
    assert text.count('class="pair"') > 1
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [
        "beside",
        "beside.html",
        "report.html",
        "run.json",
        "spectra",
    ]
    places = re.findall(r'id="([\w-]+)-data"', text)
    assert len(set(places)) == len(places) > 4
    assert {place[-1] for place in places} == {"0", "1"}


def test_the_command_that_makes_a_run_again_is_the_one_that_it_keeps(reports):
    folder = reports / "gpt2" / "knockout"
    said = command_again(folder, read_mark(folder))
    assert said.startswith("regraft knockout --model specimen:gpt2 --count ")
    (words,) = re.findall(r"--count (\d+)", said)
    assert int(words) == open_run(folder).sizes["prompt"]
