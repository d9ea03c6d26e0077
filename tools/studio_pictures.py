"""Make the pictures of docs/studio.md: start a studio of the specimen, play, and photograph it.

Run from the project's root with the `browser` and `studio` extras installed and Debian's chromium:
`python -m tools.studio_pictures`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tools.served_studio import Served

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SOON = 60_000
"""Milliseconds that a page has to show something."""


def touched(page: Page) -> None:
    """Set what a block's MLP writes to 0, so that the page shows what that does."""
    page.get_by_test_id("effects").wait_for(timeout=SOON)
    page.get_by_test_id("chip-3").click()
    page.get_by_test_id("block-0").click()
    page.get_by_test_id("pick-mlp_out").click()
    page.get_by_test_id("apply").click()
    page.get_by_test_id("text-changed").wait_for(timeout=SOON)
    page.wait_for_timeout(4000)


def ran(page: Page) -> None:
    """Run the experiment whose form is shown first, to its end."""
    page.get_by_test_id("tab-experiments").click()
    page.get_by_test_id("run").click()
    page.get_by_test_id("state-0").filter(has_text="done").wait_for(timeout=3 * SOON)
    so_far = page.get_by_test_id("pictures").filter(has_text="measured so far")
    so_far.wait_for(state="detached", timeout=SOON)
    page.locator("[data-testid=pictures] .js-plotly-plot .main-svg").first.wait_for(timeout=SOON)
    page.wait_for_timeout(1000)


def main() -> None:
    """Write every picture."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("the pictures need a browser: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        served = Served(Path(folder) / "runs")
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        wide = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        wide.goto(served.address)
        touched(wide)
        wide.screenshot(path=IMAGES / "studio.png", full_page=True)
        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        phone.goto(served.address)
        phone.get_by_test_id("effects").wait_for(timeout=SOON)
        phone.wait_for_timeout(3000)
        phone.screenshot(path=IMAGES / "studio-phone.png", full_page=True)
        ran(wide)
        wide.screenshot(path=IMAGES / "studio-experiments.png", full_page=True)
        browser.close()
        served.stop()


if __name__ == "__main__":
    main()
