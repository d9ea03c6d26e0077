"""What stands on a page: any text as it is, no word that a theme reverses, no way to send data, commands that
can be pasted."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.model.load import load
from regraft.reporting import figures
from regraft.reporting.chapter_section import result_section
from regraft.reporting.drawings import drawings
from regraft.reporting.figures.component_figures import push_figures
from regraft.reporting.figures.observe_figures import completion_figures, lens_table
from regraft.reporting.figures.patch_figures import patch_figures
from regraft.reporting.markup import in_script, plain_section
from regraft.reporting.page import sheet
from regraft.reporting.plotly_script import write_figure
from regraft.reporting.shell_commands import command_line, next_step, option_words
from regraft.reporting.theme import axis_labels, plain_text

HOSTILE = ("<!-- <script ", "</script>", "]]>", "\"'`", "\u2028", "&lt;", "%{x}", "<b>a</b>")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_ends_the_script_that_holds_it(text):
    held = in_script({text: [text]})
    assert json.loads(held) == {text: [text]}
    assert not set(held) & set("<>&\u2028\u2029")


def completed(text):
    attrs = {"experiment": "completions", "scored_tokens": 3, "seconds": 0.0}
    return xr.Dataset(
        {
            "completion_tokens": ("prompt", [3]), "category": ("prompt", [text]), "text": ("prompt", [text]),
            "completion": ("prompt", [text]),
        },
        {"prompt": [text]}, attrs,
    )  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_the_page(text):
    section = result_section(completed(text), text, "one")
    page = sheet((text, text, text), [section, plain_section("two", text, text, [(text, text)])], "")
    before = page[: page.index('<script type="text/plain"')]
    scripts = re.findall(r"<script[ >].*?</script>", before, re.S)
    assert len(scripts) == len(re.findall(r"<script[ >]", before)) == 1
    assert scripts[0].startswith('<script type="application/json" id="one-figure-0-data">')
    assert set(json.loads(scripts[0].partition(">")[2].removesuffix("</script>"))) == {"data", "layout"}
    assert "<!--" not in before
    assert "<b>a" not in before


def test_figures_show_texts_as_they_are():
    assert [plain_text(t) for t in ("<b>", "%{x}", "a\nb", "&lt;")] == [
        "&lt;b&gt;",
        "&#37;{x}",
        "a⏎b",
        "&amp;lt;",
    ]
    assert axis_labels(axis_labels(["<br>"])) == ["&lt;br&gt;"]
    assert axis_labels([np.str_("a")]) == ["a"]


def written(figure):
    return figure.to_json()


def test_hovers_name_no_type_of_numpy():
    words = np.array([" winter", "<br>"])
    lens = xr.Dataset(
        {
            "top": (("depth", "token", "place"), np.tile(words, (1, 2, 1))),
            "top_probability": (("depth", "token", "place"), np.full((1, 2, 2), 0.5)),
            "rank": (("depth", "token"), [[0, 1]]),
            "probability": (("depth", "token"), [[0.5, 0.1]]),
            "prompt": ("token", [0, 0]),
        },
        coords={"depth": [0], "text": ("token", words)},
    )
    hover = lens_table(lens).data[0].customdata
    assert (
        hover[0][0]
        == "' winter' 0.500<br>'&lt;br&gt;' 0.500<br>true ' winter': rank 0 (0 is first), p 0.5000"
    )
    grid = (("block", "position"), [[0.5, 1.0]])
    patched = xr.Dataset(
        {"effect": grid, "attribution": grid},
        {"block": ["0"], "position": [0, 1], "token": ("position", words)},
        {"pairs": 1, "window": 1, "site": "resid_pre", "direction": "denoise"},
    )
    pushed = xr.Dataset(
        {
            "push": (("component", "target"), [[1.0, 2.0], [1.0, 2.0]]),
            "kind": ("component", ["mlp", "head"]),
            "component_block": ("component", ["0", "0"]),
            "head": ("component", [0, 0]),
        },
        {"component": ["MLP0", "L0H0"], "target": words},
    )
    figures = [
        lens_table(lens),
        *(f for _, f in patch_figures(patched)),
        *(f for _, f in push_figures(pushed)),
    ]
    assert all("np.str_" not in written(figure) and "str_(" not in written(figure) for figure in figures)


SHADES = re.compile(r"\b(dark|pale|light|bright|faint|deep(?!th))(er|est|ly)?\b(?! theme)", re.I)


@pytest.mark.parametrize(
    "file", sorted(Path(figures.__file__).parent.glob("*.py")), ids=lambda file: file.stem
)
def test_no_sentence_speaks_of_shades(file):
    """In the dark theme the scales run the other way."""
    assert SHADES.findall(file.read_text(encoding="utf-8")) == []


def test_no_drawing_speaks_of_shades():
    for known in drawings().values():
        assert not SHADES.search(" ".join([known.title, known.question, known.how_to_read]))


def test_no_figure_offers_to_send_the_data(tmp_path):
    page = sheet(("t", "t", "t"), [result_section(completed("a"), "c", "one")], "")
    assert "library().react(plot, data, layout, {" in page
    write_figure(completion_figures(completed("a"))[0][1], tmp_path / "figure.html", "One")
    for text in (page, (tmp_path / "figure.html").read_text(encoding="utf-8")):
        settings = re.findall(r'\{"responsive".*?\}', text)
        assert len(settings) == 1
        config = json.loads(settings[0])
        assert config["showSendToCloud"] is False
        assert config["displaylogo"] is False
        assert "sendChartToCloud" in config["modeBarButtonsToRemove"]


def test_a_page_on_paper_holds_whole_figures():
    page = sheet(("t", "t", "t"), [], "")
    style = page[page.index("@media print") : page.index("</style>")]
    for rule in (
        ".wide, pre { overflow: visible; }",
        ".plot { min-width: 0 !important; }",
        "white-space: pre-wrap",
    ):
        assert rule in style
    assert "for (const plot of plots.filter(shown)) draw(plot, looks.light, true)" in page
    assert "plot.style.zoom = String(690 / needed)" in page


def test_commands_carry_what_the_model_was_opened_with():
    model = load("specimen:gpt2")
    model.source = "./my model"
    said = next_step(
        ["graft", "head", "eval"],
        model,
        ("graft", Path("a folder/graft")),
        {"device": "cpu", "tokenizer": "my 'own'"},
    )
    words = shlex.split(said.removeprefix("Next: `").removesuffix("`"))
    assert words == ["regraft", "graft", "head", "eval", "--graft", "a folder/graft", "--model", "./my model",
                     "--tokenizer", "my 'own'"]  # fmt: skip
    assert shlex.split(command_line("inspect", model, {"dtype": "float64"}))[1:] == [
        "inspect",
        "--model",
        "./my model",
        "--dtype",
        "float64",
    ]
    assert option_words({"answer": "-1", "remote_code": True, "seed": 0}) == ["--answer=-1", "--remote-code"]


@pytest.mark.slow
def test_a_hint_runs_when_it_is_pasted(tmp_path):
    source = load("specimen:gpt2")
    folder, out = tmp_path / "my model", tmp_path / "my head"
    source.hf.save_pretrained(folder)
    words = [
        "graft",
        "head",
        "build",
        "--model",
        str(folder),
        "--tokenizer",
        "specimen:gpt2",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(
        app, [*words, "--tree", "by-id", "--start", "means", "--states", "200", "--length", "32"]
    )
    assert result.exit_code == 0, result.output
    hint = re.search("Next: `regraft (.*)`", result.stdout)
    assert hint is not None
    pasted = shlex.split(hint[1])
    assert pasted[:3] == ["graft", "head", "fit"]
    result = CliRunner().invoke(app, [*pasted, "--steps", "1", "--batch", "1", "--length", "32"])
    assert result.exit_code == 0, result.output
    assert f"--model '{folder}' --tokenizer specimen:gpt2" in result.stdout
