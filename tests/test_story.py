"""What stands on top of a page, in which order its chapters are told, and which of them a user can choose."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.core.registry import experiments
from regraft.reporting.build import CHAPTERS
from regraft.reporting.chapter_inputs import Reading
from regraft.reporting.chosen_chapters import anchor_of, check_read, chosen_chapters
from regraft.reporting.drawings import drawings
from regraft.reporting.figures.observe_figures import (
    LONGEST_TEXT,
    SHOWN_TEXTS,
    completion_listings,
    short_token,
)
from regraft.reporting.figures.patch_figures import LEVEL_LABELS, marked, patch_figures, patch_listings
from regraft.reporting.headlines import HEADLINES, headline_of
from regraft.reporting.markup import Section, cell, chapter, table
from regraft.reporting.page import sheet
from regraft.reporting.story import GROUPS, MOST, findings, told_order

NAN = float("nan")
BLOCKS = {"block": ["0", "1", "2"]}


def result(experiment, coords=None, attrs=None, **variables):
    return xr.Dataset(variables, coords or {}, {"experiment": experiment, **(attrs or {})})


def section(anchor, experiment="", headline=""):
    return Section(
        anchor, anchor.title(), chapter(anchor, anchor.title(), "<p>text</p>"), {}, experiment, headline
    )


def test_a_knockout_tells_its_block_and_the_spread_over_prompts():
    losses = [[6.0, 8.0], [1.0, 1.0], [1.1, 0.9]]
    one = result(
        "knockout", BLOCKS, {"clean_loss": 0.5},
        ratio=("block", [14.0, 2.0, 2.0]), loss=("block", [7.2, 1.0, 1.0]),
        prompt_loss=(("block", "prompt"), losses),
    )  # fmt: skip
    assert headline_of(one) == (
        "Without block 0 the loss is 14.0 times the clean one (7.20 nats per token; single prompts from 6.00"
        " to 8.00)."
    )
    assert headline_of(one.assign(ratio=("block", [14.0, 14.0, 2.0]))) == "", "none stands out"
    assert headline_of(one.assign(ratio=("block", [NAN, NAN, NAN]))) == ""
    assert headline_of(one.assign_attrs(clean_loss=1e-6)) == "", "no multiple of nothing"


def test_a_patch_tells_where_the_answer_moves():
    effect = [[1.0, 0.0], [0.9, 0.1], [0.1, 1.0]]
    attrs = {"answer": " am", "wrong": " pm"}
    coords = {**BLOCKS, "token": ("position", [" 3", " the"])}
    one = result("patch", coords, attrs, effect=(("block", "position"), effect))
    said = "Whether it says ' am' or ' pm' is read at ' 3' up to block 1, and at ' the' from block 2 on."
    assert headline_of(one) == said
    stays = one.assign(effect=(("block", "position"), [[1.0, 0.0]] * 3))
    assert headline_of(stays) == ""
    heads = result(
        "patch", {**BLOCKS, "head": [0, 1]}, attrs, effect=(("block", "head"), [[0, 0], [0, 0.53], [0, 0]])
    )
    assert headline_of(heads) == "Head 1 of block 1 alone carries 53% of what parts ' am' from ' pm'."


def test_other_headlines_say_their_number():
    bits = result(
        "quantize", {"recipe": ["uniform", "oracle"]}, {"clean_loss": 0.6, "clean_bytes": 100.0},
        recipe_loss=("recipe", [0.7, 0.65]), recipe_bytes=("recipe", [14.0, 13.0]),
    )  # fmt: skip
    assert headline_of(bits) == (
        "Rounded to 4 bits on average, the blocks take 13% of their bytes and the loss changes by +0.050 nats"
        " per token (by the best of 2 ways to share the bits out, oracle)."
    )
    cost = np.array([[0.0, 0.5, 0.9], [0.5, 0.0, 0.1], [0.9, 0.1, 0.0]])
    swap = result(
        "swap",
        {**BLOCKS, "other": ["0", "1", "2"]},
        cost=(("block", "other"), cost),
        mean_cost=("block", [0.7, 0.3, 0.5]),
    )
    assert headline_of(swap) == (
        "Blocks 1 and 2 can change places for +0.100 nats per token; moving block 0 costs +0.70 on average."
    )
    line = result("linearity", BLOCKS, recovered=("block", [0.9, 0.2, 0.3]))
    assert headline_of(line) == (
        "A linear map in place of block 0 wins back 90% of what skipping it costs; in the median block it is"
        " 30%."
    )
    assert headline_of(line.assign(recovered=("block", [NAN] * 3))) == ""
    parts = result(
        "contributions",
        {"contributor": ["embedding", "1"]},
        contribution=("contributor", [1.0, 4.5]),
        logit=("token", [6.0, 5.0]),
    )
    assert headline_of(parts) == "Of the true next token's logit, 5.5 on average, block 1 adds most: +4.5."
    order = result(
        "shuffle", {"method": ["a", "bubble"]}, in_place=("method", [0.5, 1.0]), place=("place", [0, 1])
    )
    assert headline_of(order) == "Bubble found the order of all 2 blocks again after they were shuffled."
    assert headline_of(result("spectra")) == ""


def test_the_most_telling_findings_stand_on_top_and_are_few():
    names = list(HEADLINES)
    made = [section(name, name, f"{name} found it.") for name in reversed(names)]
    found = findings(made)
    assert [said for said, _ in found] == [f"{name} found it." for name in names[:MOST]]
    page = sheet(("t", "h", "A model."), made, "")
    top = page[page.index('id="found"') : page.index('class="group"')]
    assert re.findall(r'<a href="#(\w+)">', top)[-MOST:] == names[:MOST]
    assert "What this model is and what was found" not in sheet(
        ("t", "h", "l"), [section("lens", "lens")], ""
    )


def test_chapters_are_told_in_groups_and_every_one_has_a_place():
    anchors = ["correlations", "lens", "patch-head", "anatomy", "left-out", "new"]
    made = [section(one, {"patch-head": "patch", "new": "another"}.get(one, "")) for one in anchors]
    told = [(group.title, [one.anchor for one in own]) for group, own in told_order(made)]
    assert told == [
        ("What it is made of", ["anatomy"]),
        ("What flows through it", ["lens"]),
        ("What each part does", ["patch-head", "correlations"]),
        ("What else was measured", ["new"]),
        ("What is not here", ["left-out"]),
    ]
    named = {name for group in GROUPS for name in group.names}
    assert {name for name, _ in CHAPTERS} <= named
    assert len([name for group in GROUPS for name in group.names]) == len(named)
    page = sheet(("t", "h", "l"), made, "")
    assert [page.index(f'<section id="{one}"') for own in told for one in own[1]] == sorted(
        page.index(f'<section id="{one}"') for one in anchors
    )
    for one in anchors:
        assert f'<li><a href="#{one}">' in page, "it stands in the contents"
    assert page.count('<a href="#top">Back to top</a>') == len(anchors)


def test_both_prompts_are_shown_with_what_differs_marked():
    attrs = {
        "clean": "It is 3 am here",
        "corrupt": "It is 4 pm here <b>",
        "answer": " am",
        "wrong": " pm",
        "pairs": 1,
    }
    (listing,) = patch_listings(result("patch", attrs=attrs))
    clean, corrupt = (cell(row[1]) for row in listing.rows)
    assert clean == "It is <mark>3</mark> <mark>am</mark> here"
    assert corrupt == "It is <mark>4</mark> <mark>pm</mark> here<mark> &lt;b&gt;</mark>"
    assert [row[2] for row in listing.rows] == ["' am', the answer", "' pm', the wrong answer"]
    for one, other in (("a b", "a b"), ("", "x"), ("x", ""), ("a", "b")):
        texts = marked(one, other)
        assert [str(text) for text in texts] == [one, other]
    assert patch_listings(result("patch")) == []


def test_long_texts_and_many_prompts_are_cut():
    texts = [f"prompt {n}" for n in range(SHOWN_TEXTS + 3)]
    long = ["a\nb"] + ["x" * (LONGEST_TEXT + 50)] * (len(texts) - 1)
    kinds = ["k"] * len(texts)
    (listing,) = completion_listings(
        result("completions", category=("prompt", kinds), text=("prompt", texts), completion=("prompt", long))
    )
    assert listing.caption.startswith(f"The first {SHOWN_TEXTS} prompts")
    assert [row[0] for row in listing.rows] == [str(n) for n in range(SHOWN_TEXTS)]
    assert listing.rows[0][3] == "a⏎b"
    assert listing.rows[1][3] == "x" * LONGEST_TEXT + "…"
    assert [short_token(piece) for piece in ("everywhere", "everywher", " a")] == [
        "everywhe…",
        "everywher",
        "a",
    ]


def test_many_tokens_below_a_map_are_written_aslant():
    for count, angle, between in ((LEVEL_LABELS, 0, "<br>"), (LEVEL_LABELS + 1, -45, " ")):
        effect = np.zeros((2, count))
        attrs = {"site": "resid_pre", "direction": "denoise", "pairs": 1, "window": 1}
        data = result(
            "patch",
            {"block": ["0", "1"], "position": range(count), "token": ("position", [" a"] * count)}, attrs,
            effect=(("block", "position"), effect), attribution=(("block", "position"), effect * NAN),
        )  # fmt: skip
        ((_, figure),) = patch_figures(data)
        assert figure.layout.xaxis.tickangle == angle
        assert figure.data[0].x[0] == f"a{between}0"


def test_minor_columns_leave_a_phone():
    text = table(["a", "b"], [["1", "2"]], numbers=(0,), minor=(1,))
    assert '<th class="number">a</th><th class="minor">b</th>' in text
    assert "@media (max-width: 640px) { .minor { display: none; }" in sheet(("t", "h", "l"), [], "")


def test_chapters_are_chosen_by_folder_or_by_experiment():
    assert chosen_chapters([], CHAPTERS) == list(CHAPTERS)
    assert chosen_chapters(["lens", "patch-head"], CHAPTERS) == [("lens", {}), ("patch", {"grid": "head"})]
    assert [anchor_of(*one) for one in chosen_chapters(["patch", "patch-head"], CHAPTERS)] == [
        "patch", "patch-head", "patch-last-resid_post",
    ]  # fmt: skip
    assert chosen_chapters(["transplant"], CHAPTERS) == [("transplant", {})]
    with pytest.raises(ValueError, match=r"there is no chapter 'lense' \(nearest: lens\): choose of "):
        chosen_chapters(["lense"], CHAPTERS)
    assert not {"transplant", "prune", "reorder"} & {name for name, _ in CHAPTERS}
    assert {name for name, _ in CHAPTERS} <= set(experiments())
    assert set(HEADLINES) <= set(drawings())


def test_texts_that_no_chapter_reads_are_refused():
    with pytest.raises(ValueError, match="none of the chapters spectra reads prompts or a text"):
        check_read([("spectra", {})], Reading(("a text",)))
    with pytest.raises(ValueError, match="none of the chapters lens reads pairs"):
        check_read([("lens", {})], Reading(pairs="cases.json"))
    check_read([("spectra", {}), ("lens", {})], Reading(("a text",)))


def test_the_command_refuses_before_a_model_is_opened(monkeypatch, tmp_path):
    monkeypatch.setattr("regraft.cli.report.open_model", None)
    found = CliRunner().invoke(app, ["report", "--chapters", "lenss,patch", "--out", str(tmp_path / "r")])
    assert found.exit_code == 2
    assert "there is no chapter 'lenss' (nearest: lens)" in " ".join(found.output.split())
    assert not (tmp_path / "r").exists()
