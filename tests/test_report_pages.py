"""The report as a folder and a page: what is done stays, what is missing is named, no text breaks the page,
nothing is sent."""

from __future__ import annotations

import json
import re
from types import FunctionType

import numpy as np
import pytest
from typer.testing import CliRunner

from families import FAMILIES
from regraft.cli.main import app
from regraft.experiments.running import measured
from regraft.model.load import load
from regraft.reporting import build as building
from regraft.reporting import chapter_section
from regraft.reporting.build import BEFORE, build
from regraft.reporting.chapter_section import NOTHING, has_numbers
from regraft.reporting.drawings import drawing_of

QUICK = (("spectra", {}), ("lens", {}), ("patch", {"grid": "head"}))


def _raise(error):
    raise error


def _compute(error):
    return np.stack([])


REFUSES, COMPUTES = (
    FunctionType(f.__code__, {"__name__": "regraft.planted", "np": np}) for f in (_raise, _compute)
)
"""As if they stood in a file of regraft: one says no, one has a fault."""


@pytest.fixture(scope="module")
def model():
    return load(FAMILIES["gpt2"]().eval(), pack=False)


@pytest.fixture
def planted(monkeypatch):
    """Three chapters, of which `raises` says which ones end how; the others give the spectra."""

    def plant(by=REFUSES, **raises):
        def planted_measured(model, name, seed=0, **options):
            if name in raises:
                by(raises[name])
            return measured(model, "spectra", seed)

        monkeypatch.setattr(building, "CHAPTERS", QUICK)
        monkeypatch.setattr(building, "measured", planted_measured)

    return plant


def body(path):
    text = path.read_text(encoding="utf-8")
    return text[: text.index('<script type="text/plain"')]


def headings(path):
    return re.findall("<h3>(.*?) <a class=", body(path))


def test_a_chapter_that_fails_is_named_and_takes_no_other_with_it(model, planted, tmp_path):
    planted(lens=KeyError("a key <b>"))
    path, missing = build(model, tmp_path / "report")
    assert [(one.name, bool(one.trace)) for one in missing] == [("lens", True)]
    assert str(missing[0]) == "lens failed: KeyError: 'a key <b>'"
    assert headings(path) == ["Anatomy", "Self-check", "Weight spectra", "Weight spectra", "Logit lens"]
    assert "This chapter failed: KeyError: &#x27;a key &lt;b&gt;&#x27;" in body(path)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "patch-head",
        "report.html",
        "run.json",
        "spectra",
    ]


def test_a_fault_while_drawing_is_a_fault_and_no_refusal(model, planted, tmp_path, monkeypatch):
    planted()

    def broken(result, command, anchor):
        if anchor == "patch-head":
            raise ValueError("zero-size array")
        return drawn(result, command, anchor)

    drawn = chapter_section.result_section
    monkeypatch.setattr(chapter_section, "result_section", broken)
    path, missing = build(model, tmp_path / "report")
    assert [str(one) for one in missing] == ["patch failed: ValueError: zero-size array"]
    assert headings(path)[-1] == "Activation patching (grid head)"


def test_what_does_not_apply_is_left_out_with_its_reason(model, planted, tmp_path):
    planted(lens=ValueError("the model\nhas no <words>"), patch=ImportError("no such library"))
    path, missing = build(model, tmp_path / "report")
    assert [bool(one.trace) for one in missing] == [False, False]
    assert headings(path) == ["Anatomy", "Self-check", "Weight spectra", "Left out"]
    assert "<td>Logit lens</td><td>the model has no &lt;words&gt;</td>" in body(path)
    assert "<td>Activation patching (grid head)</td><td>no such library</td>" in body(path)
    assert '<a href="#left-out">Left out</a>' in body(path)


@pytest.mark.parametrize("by", [COMPUTES, _raise], ids=["arithmetic", "a library"])
def test_a_value_error_that_nobody_here_raised_is_a_fault(by, model, planted, tmp_path):
    """NumPy has types for nothing: what does not fit is a ValueError there, as a refusal is here."""
    planted(by=by, lens=ValueError("need at least one array to stack"))
    path, missing = build(model, tmp_path / "report")
    assert [str(one) for one in missing] == ["lens failed: ValueError: need at least one array to stack"]
    assert "Left out" not in headings(path)


def test_what_is_killed_leaves_a_page_of_what_was_done(model, planted, tmp_path):
    planted(patch=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build(model, tmp_path / "report")
    path = tmp_path / "report" / "report.html"
    assert headings(path) == ["Anatomy", "Self-check", "Weight spectra", "Weight spectra", "Not measured yet"]
    assert "To come: Activation patching (grid head)." in body(path)
    drawn = re.findall(r'<script type="application/json" id="([a-z0-9-]+)-data">', path.read_text())
    spectra = measured(model, "spectra")
    figures, sites = drawing_of(spectra).all_figures(spectra), 1
    empty = sum(not has_numbers(figure) for _, figure in figures)
    assert len(set(drawn)) == len(drawn) == 2 * (len(figures) - empty) > 8, "folded ones are there too"
    assert body(path).count(NOTHING) == 2 * empty > 0, "what holds no number says so in its place"
    assert body(path).count("<details>") == 2 * len(figures) + sites, (
        "all but the main one, and every quantity"
    )
    assert body(path).count('<svg class="still"') == 2, "a still picture of each main one"
    for name in ("spectra", "lens"):
        assert (path.parent / name / "run.json").is_file()
    assert json.loads((path.parent / "run.json").read_text())["experiment"] == "report"


def test_an_earlier_page_is_kept_until_the_new_one_is_whole(model, planted, tmp_path):
    out = tmp_path / "report"
    planted(lens=ValueError("first"))
    build(model, out)
    planted(patch=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build(model, out, seed=1)  # another seed: no chapter is there yet
    assert "first" in (out / BEFORE).read_text(encoding="utf-8")
    planted(patch=TypeError("a fault"))
    build(model, out, seed=2)
    assert "first" in (out / BEFORE).read_text(encoding="utf-8"), (
        "a page that ended early takes no other's place"
    )
    planted()
    path, missing = build(model, out, seed=3)
    assert missing == []
    assert not (out / BEFORE).exists()
    assert headings(path).count("Weight spectra") == 3


@pytest.mark.parametrize(("error", "code"), [(TypeError("a fault"), 1), (ValueError("not this model"), 0)])
def test_the_command_ends_with_1_only_where_a_chapter_failed(error, code, planted, tmp_path):
    planted(lens=error)
    words = ["report", "--model", "specimen:gpt2", "--out", str(tmp_path / "report")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    assert ("lens failed: TypeError: a fault" in result.stdout) == bool(code)
    assert ("lens is left out: not this model" in result.stdout) == (not code)
    assert ("1 chapter failed" in result.stderr) == bool(code)
    assert "Traceback" not in result.output
    assert ("TypeError: a fault" in CliRunner().invoke(app, [*words, "--debug"]).stderr) == bool(code)
