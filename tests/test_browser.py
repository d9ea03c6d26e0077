"""The report in a real browser: drawn whole, no console error, no request that leaves the file, at four
looks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from regraft.model.load import load
from regraft.reporting.build import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "report"
    os.environ["REGRAFT_CACHE"] = str(out.parent / "cache")
    path, left_out = build(load(), out)
    assert left_out == []
    return path


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "this test needs a browser: apt-get install chromium"
    with sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_report_is_drawn_offline(page_file, browser, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    errors, requests = [], []
    page.on(
        "console",
        lambda message: errors.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_function("document.documentElement.dataset.drawn")
    page.wait_for_timeout(500)
    plots = page.locator(".plot")
    assert plots.count() >= 7
    for index in range(plots.count()):
        assert plots.nth(index).locator("svg.main-svg").count() >= 1
        assert plots.nth(index).bounding_box()["height"] > 200
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    lightness = [sum(int(n) for n in c[4:-1].split(",")) for c in (ink, paper)]
    assert (lightness[0] < lightness[1]) == (scheme == "light")
    keep = os.environ.get("REGRAFT_SCREENSHOTS")
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{keep}/report-{width}-{scheme}.png", full_page=True)
        page.emulate_media(media="print")
        page.screenshot(path=f"{keep}/report-{width}-{scheme}-print.png", full_page=True)
    context.close()
