"""The report in a real browser: text at once, figures drawn when they are scrolled to, no console error, no
request that leaves the file; in both themes, on a phone, on paper and without JavaScript."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from regraft.model.load import load
from regraft.reporting.build import build

pytestmark = pytest.mark.slow
DRAWN = "document.querySelectorAll('.plot svg.main-svg').length"
SIZES, SCHEMES = (1280, 390), ("light", "dark")
MOST_BYTES, MOST_WORK = 10_000_000, 2_500_000
"""Of the page, and positions through a block that all its chapters may plan."""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "report"
    os.environ["REGRAFT_CACHE"] = str(out.parent / "cache")
    path, left_out = build(load(), out)
    assert left_out == []
    return path


class Seen:
    """A page that is open, and what it complained of and asked for."""

    def __init__(self, browser, file, width=1280, scheme="light", script=True):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", self.heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri(), wait_until="domcontentloaded")

    def heard(self, message):
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def quiet(self):
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []

    def to(self, place):
        self.page.evaluate("place => document.getElementById(place).scrollIntoView()", place)

    def wait_for(self, expression):
        """Until something is true: asked again and again, since the page allows no script to be made of a
        text."""
        for _ in range(200):
            if self.page.evaluate(f"!!({expression})"):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"never true: {expression}")

    def keep(self, name):
        if keep := os.environ.get("REGRAFT_SCREENSHOTS"):
            Path(keep).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{keep}/{name}.png")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
def test_every_main_figure_is_drawn_where_it_is_scrolled_to(page_file, browser, width, scheme):
    seen = Seen(browser, page_file, width, scheme)
    mains = seen.page.evaluate(
        "[...document.querySelectorAll('.plot')].filter(p => !p.closest('details')).map(p => p.id)"
    )
    assert len(mains) >= 20
    for place in mains:
        seen.to(place)
        seen.wait_for(f"document.querySelector('#{place} svg.main-svg')")
        box = seen.page.locator(f"#{place}").bounding_box()
        assert box["height"] > 200
    seen.quiet()
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    ink, paper = seen.page.evaluate(colours)
    lightness = [sum(int(n) for n in c[4:-1].split(",")) for c in (ink, paper)]
    assert (lightness[0] < lightness[1]) == (scheme == "light")
    seen.to("lens")
    seen.keep(f"report-{width}-{scheme}")
    seen.context.close()


def test_text_is_there_before_anything_is_drawn(page_file, browser):
    seen = Seen(browser, page_file)
    assert "What this model is and what was found" in seen.page.inner_text("main")
    assert seen.page.evaluate("typeof window.Plotly") == "undefined", "the library waits for a figure"
    assert seen.page.evaluate(DRAWN) == 0
    total = seen.page.evaluate("document.querySelectorAll('.plot').length")
    seen.to("knockout-figure-0")
    seen.wait_for("document.querySelector('#knockout-figure-0 svg.main-svg')")
    assert seen.page.evaluate("document.querySelectorAll('.plot > .plot-container').length") < total / 4
    seen.quiet()
    seen.context.close()


def test_a_folded_figure_is_drawn_when_it_is_opened_and_a_link_opens_it(page_file, browser):
    seen = Seen(browser, page_file)
    assert not seen.page.evaluate("document.querySelector('#lens-figure-1 svg')")
    seen.page.evaluate("location.hash = 'lens-figure-1'")
    seen.wait_for("document.querySelector('#lens-figure-1 svg.main-svg')")
    assert seen.page.evaluate("document.getElementById('lens-figure-1').closest('details').open")
    seen.quiet()
    seen.context.close()


def test_a_phone_that_is_turned_has_one_colour_bar(page_file, browser):
    seen = Seen(browser, page_file)
    seen.to("lens-figure-0")
    seen.wait_for("document.querySelector('#lens-figure-0 svg.main-svg')")
    for width in (600, 1280):
        seen.page.set_viewport_size({"width": width, "height": 900})
        seen.page.wait_for_timeout(1000)
        assert seen.page.evaluate("document.querySelectorAll('#lens-figure-0 .colorbar').length") == 1
        bar, cells = (
            seen.page.locator(f"#lens-figure-0 {part}").first.bounding_box()
            for part in (".colorbar .cbfills", ".heatmaplayer")
        )
        below = bar["y"] >= cells["y"] + cells["height"]
        assert below == (width == 600), "below the cells on a phone, beside them elsewhere"
    seen.quiet()
    seen.context.close()


def test_the_contents_stay_in_view_and_say_where_one_is(page_file, browser):
    for width in SIZES:
        seen = Seen(browser, page_file, width)
        seen.to("swap")
        seen.wait_for("document.querySelector('nav a.current')?.hash === '#swap'")
        box = seen.page.locator("nav").bounding_box()
        assert 0 <= box["y"] < 60
        assert seen.page.evaluate("document.getElementById('contents').open") == (width > 1159)
        seen.context.close()


def test_without_javascript_there_are_text_tables_and_still_pictures(page_file, browser):
    for width, scheme in ((1280, "dark"), (390, "light")):
        seen = Seen(browser, page_file, width, scheme, script=False)
        pictures = seen.page.locator("svg.still")
        assert pictures.count() >= 20
        for number in range(pictures.count()):
            assert pictures.nth(number).bounding_box()["height"] > 60
        assert seen.page.locator("table").count() > 4
        seen.page.locator("#lens").scroll_into_view_if_needed()
        seen.keep(f"still-{width}-{scheme}")
        seen.context.close()


def test_printed_pages_are_whole_and_light(page_file, browser, tmp_path):
    seen = Seen(browser, page_file, scheme="dark")
    seen.page.emulate_media(media="print")
    seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    mains = seen.page.locator(".plot > .plot-container")
    assert mains.count() >= 20, "what was not scrolled to is drawn, too"
    for number in range(mains.count()):
        assert mains.nth(number).bounding_box()["width"] <= 700, "A4 has room for 690"
    pdf = seen.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 12 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 80
    seen.quiet()
    seen.context.close()


def test_the_page_is_small_and_its_work_is_counted(page_file):
    assert page_file.stat().st_size <= MOST_BYTES
    marks = [json.loads(file.read_text()) for file in page_file.parent.glob("*/run.json")]
    assert sum(mark.get("work_planned", 0) for mark in marks) <= MOST_WORK
    folders = [folder for folder in page_file.parent.iterdir() if folder.is_dir()]
    sizes = [sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in folders]
    assert max(sizes) < 2_000_000, "no folder of a result holds a script"
