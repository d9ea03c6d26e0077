"""The documentation's own code: references that leave nothing out, figures that say where they come from,
links that lead somewhere, tutorials as pages."""

from __future__ import annotations

import json
import re

import nbformat
import numpy as np
import pytest
from plotly.graph_objects import Figure, Heatmap

from regraft.cli.main import app
from regraft.reporting.build import Missing
from tools.docs_site import command_pages, gallery, site_page, tutorials
from tools.docs_site.build import BESIDE, ROOT, SCHEMES, SHIM, from_here, lay_pages, moved
from tools.docs_site.figures import filled, like, without_source
from tools.docs_site.gallery import GUIDES
from tools.docs_site.public_names import GROUPS
from tools.docs_site.site_links import wrong_links
from tools.make_badges import IMAGES, badge, facts

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_figure_of_a_page_says_where_it_comes_from(page):
    assert without_source(page) == []


def test_a_figure_that_no_script_made_is_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "measured_x.md").write_text("| loss | 0.2049 |\n")
    page.write_text(
        "On the specimen it is 0.205<!--measured_x.md--> and 3.4<!--=lens.mean()-->.\n\n"
        "`0.777` of a Qwen3-1.7B by torch 2.13 and transformers 5.23 on the specimen.\n\n"
        "A setting of 0.5 elsewhere.\n"
    )
    assert without_source(page) == []
    page.write_text("On the specimen it is 0.206<!--measured_x.md-->.\n\nThe specimen gains +0.12 of 40%.\n")
    said = "\n".join(without_source(page))
    assert "0.206 is said to stand in measured_x.md" in said
    assert "+0.12" in said
    assert "40%" in said
    page.write_text("# Made\n\nWritten by `a script`: the specimen has 0.12.\n")
    assert without_source(page) == []


def test_figures_are_filled_in_with_the_digits_that_they_are_written_with():
    text = "from 1.35<!--=x[0]--> to 1,200<!--=x[1]-->, +2%<!--=share-->, 0.2<!--measured.md-->"
    names = {"x": np.array([1.2345, 34567.8]), "share": 0.034}
    assert filled(text, names) == (
        "from 1.23<!--=x[0]--> to 34,568<!--=x[1]-->, +3%<!--=share-->, 0.2<!--measured.md-->"
    )
    assert like(-0.0021, "-0.002") == "-0.002"


def test_every_command_and_every_option_stands_in_the_reference(tmp_path):
    command_pages.write_pages(tmp_path / "commands")
    pages = {file.stem: file.read_text() for file in (tmp_path / "commands").glob("*.md")}
    whole, seen = "\n".join(pages.values()), 0
    for words, command in command_pages.commands():
        start = whole.index(f"## {words} {{ #")
        own = whole[start : whole.find("\n## ", start + 4) % (len(whole) + 1)]
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                seen += 1
                assert all(re.search(rf"{re.escape(name)}\b", own) for name in parameter.opts), (
                    words,
                    parameter.name,
                )
        assert " ".join((command.help or "").split())[:30].replace("<", "&lt;") in own, words
    assert seen > 500
    assert {words.split()[0] for words, _ in command_pages.commands()} == set(
        command_pages.typer.main.get_command(app).commands
    )
    with pytest.raises(ValueError, match="has no page"):
        command_pages.page_of("unheard-of")


def site_with(folder, inside, other="<p id='there'>x</p>"):
    folder.mkdir()
    (folder / "one.html").write_text(f"<html><body>{inside}</body></html>")
    (folder / "two.html").write_text(f"<html><body>{other}</body></html>")
    return wrong_links(folder)


def test_links_that_lead_nowhere_and_what_is_fetched_from_elsewhere_are_found(tmp_path):
    good = "<a href='two.html#there'>a</a><a href='#me' id='me'>b</a><a href='https://example.org'>c</a>"
    assert site_with(tmp_path / "good", good) == []
    for number, (wrong, said) in enumerate(
        (
            ("<a href='three.html'>a</a>", "leads nowhere"),
            ("<a href='two.html#here'>a</a>", "a place that its page does not have"),
            ("<img src='missing.png'>", "is not there"),
            ("<script src='https://cdn.example.org/x.js'></script>", "is fetched from elsewhere"),
            ("<link rel='stylesheet' href='//fonts.example.org/x.css'>", "is fetched from elsewhere"),
        )
    ):
        (one,) = site_with(tmp_path / str(number), wrong)
        assert one.startswith("one.html: ")
        assert said in one


def test_a_site_is_searched_from_a_folder_without_a_request(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("404.html", "index.html", "below/page.html"):
        (tmp_path / name).write_text(f'<script src="{SHIM}"></script>')
    from_here(tmp_path)
    assert not (tmp_path / "404.html").exists()
    assert 'src="assets/iframe-worker/shim.js"' in (tmp_path / "index.html").read_text()
    assert 'src="../assets/iframe-worker/shim.js"' in (tmp_path / "below/page.html").read_text()
    assert (ROOT / "docs" / "assets" / "iframe-worker" / "shim.js").is_file()


def test_pages_of_the_root_are_linked_as_they_are_on_the_site():
    assert moved("[a](../CONTRIBUTING.md) [b](CHANGELOG.md#x)") == "[a](contributing.md) [b](changelog.md#x)"
    assert all((ROOT / name).is_file() for name in BESIDE)


def test_pages_are_laid_out_with_their_links_and_without_the_sources_of_tutorials(tmp_path):
    lay_pages(tmp_path / "pages")
    laid = tmp_path / "pages"
    assert "](contributing.md)" in (laid / "architecture.md").read_text()
    for name in BESIDE.values():  # they name everything, and would come first for every word
        assert (laid / name).read_text().startswith("---\nsearch: {exclude: true}\n---\n")
        assert "](docs/" not in (laid / name).read_text()
    assert not (laid / "tutorials").exists()
    assert "slate" in (laid / "assets" / "scales.css").read_text()
    assert (laid / "assets" / "plotly-cartesian.min.js").stat().st_size > 1_000_000


def test_a_report_with_a_chapter_that_failed_makes_no_gallery(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("x")
    missing = [Missing("lens", "Logit lens", "it broke", "Traceback"), Missing("push", "Push", "no pair")]
    monkeypatch.setattr(gallery, "report", lambda model, out: (tmp_path / "report.html", missing))
    monkeypatch.setattr(gallery, "load", lambda: None)
    with pytest.raises(RuntimeError, match="lens failed: it broke"):
        gallery.make_report(tmp_path / "one")
    del missing[0]
    (tmp_path / "two").mkdir()
    gallery.make_report(tmp_path / "two")
    assert (tmp_path / "two" / gallery.REPORT / "report.html").read_text() == "x"


def test_every_page_stands_in_the_contents_and_every_guide_is_there():
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert f": {page.name}\n" in told, page.name
    for name in tutorials.TITLES:
        assert f": tutorials/{name}.md\n" in told
    for title in GROUPS:
        assert f": reference/{title.lower()}.md\n" in told
    assert all((ROOT / "docs" / f"{guide}.md").is_file() for guide in GUIDES.values())
    for part in SCHEMES.values():  # still pictures have colours in both schemes of the site
        scheme = part.split('"')[1]
        assert f"scheme: {scheme}\n" in told


def test_a_tutorial_becomes_a_page_with_its_figures_and_folded_solutions(tmp_path):
    made = nbformat.v4.new_notebook()
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    drawn = Figure(Heatmap(z=np.arange(6.0).reshape(2, 3))).update_layout(title={"text": "A <map>"})
    shown = nbformat.v4.new_output("display_data", {tutorials.PLOTLY: drawn.to_plotly_json()})
    shown.data[tutorials.PLOTLY] = nbformat.from_dict(json.loads(drawn.to_json()))
    made.cells = [
        text("# Title"),
        code("x = 1", outputs=[shown]),
        code("print(2)", metadata={"tags": ["solution"]}),
    ]
    made.cells[2].outputs = [nbformat.v4.new_output("stream", name="stdout", text="2\n")]
    page = tutorials.page(made, "title", tmp_path)
    assert page.count("<svg") == 1
    assert page.count('class="q') > 6  # every cell, and the scale
    assert "A &lt;map&gt;" in page
    assert '??? success "A solution"\n\n    ```python\n    print(2)' in page
    assert "(title.ipynb)" in page
    assert tutorials.SCRIPT in (tmp_path / "title-1.html").read_text()
    made.cells[1].outputs[0].data[tutorials.PLOTLY]["data"] = [{"type": "pie", "values": [1]}]
    with pytest.raises(ValueError, match="no still picture"):
        tutorials.page(made, "title", tmp_path)


@pytest.mark.parametrize("name", tutorials.TITLES)
def test_a_tutorial_has_a_title_a_task_and_places_to_go_on(name):
    made = tutorials.read(name)
    words = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert words.startswith("# ")
    assert "## Try it yourself" in words
    assert "## Where to go on" in words
    assert sum("solution" in cell.metadata.get("tags", []) for cell in made.cells) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", tutorials.TITLES)
def test_a_tutorial_runs(name):
    made, _ = tutorials.run(name)
    assert all(cell.execution_count for cell in made.cells if cell.cell_type == "code")


def test_every_site_has_a_meaning_and_the_shape_that_it_is_said_to_have():
    rows = site_page.rows()
    assert len(rows) == len(site_page.MEANINGS)
    for row in rows:
        _, address, what, letters, here, _ = (cell.strip() for cell in row.split("|"))
        assert what, address
        if here != "none in this model":
            assert letters.count(",") == here.count(" x "), address
    assert sum("none in this model" in row for row in rows) == 2  # no encoder, no recurrent mixer


def test_badges_say_what_is_so():
    for name, words in facts().items():
        assert (IMAGES / f"badge-{name}.svg").read_text(encoding="utf-8") == badge(*words)
        assert f"docs/images/badge-{name}.svg" in (ROOT / "README.md").read_text(encoding="utf-8")
