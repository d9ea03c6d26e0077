"""Pages of a studio in a browser, for tests that look at it from outside."""

from __future__ import annotations

SOON = 30_000
"""Milliseconds that a page has to show something."""

CELLS = """() => {
  const cells = document.querySelector(".js-plotly-plot .nsewdrag");
  return cells && cells.getBoundingClientRect().toJSON();
}"""
"""Where the cells of a map are drawn, as things stand: nothing is waited for."""
TAP = """name => {
  const part = document.querySelector(`[data-testid="${name}"]`);
  if (part && part.offsetParent) part.click();
}"""
"""A click on what is to be seen at once, if it is."""


class Page:
    """A page that is open, what it complained of and asked for."""

    def __init__(self, browser, served, width=1280, scheme="light", shown="effects"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(served.address)
        self.at(shown).wait_for(timeout=SOON)

    def _heard(self, message):
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def at(self, name):
        return self.page.get_by_test_id(name)

    def tab(self, name):
        self.at(f"tab-{name}").click()

    def until(self, name, *texts):
        """Wait until a part says one of some texts; returns what it says."""
        for _ in range(SOON // 100):
            if self.at(name).count() and any(text in self.at(name).inner_text() for text in texts):
                return self.at(name).inner_text()
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{name}: {self.at(name).all_inner_texts()}, not {texts}")

    def differs(self, name, before):
        """Wait until a part says something else than before."""
        for _ in range(SOON // 100):
            if self.at(name).count() and self.at(name).inner_text() not in ("", before):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{name} still says {before}")

    def cell(self, across, up):
        box = self.page.evaluate(CELLS)
        if box is None:  # it is being drawn: who waits for what a click does clicks again
            return
        self.page.mouse.click(box["x"] + box["width"] * across, box["y"] + box["height"] * (1 - up))

    def tap(self, name):
        """Click a part if it is there now."""
        self.page.evaluate(TAP, name)

    def pick(self, across, up, wanted):
        """Click a cell until what is chosen is of the map that is waited for."""
        for _ in range(40):
            self.page.wait_for_timeout(250)
            self.cell(across, up)
            self.page.wait_for_timeout(250)
            if self.at("site").count() and wanted in self.at("site").inner_text():
                return
        raise AssertionError(f"{self.at('site').all_inner_texts()}, not {wanted}")

    def menu(self, block, item):
        """Choose what a block's menu offers; a page that shows an answer just then closes it, and it is
        opened again."""
        from playwright.sync_api import TimeoutError as TookTooLong

        for _ in range(SOON // 1000):
            self.at(block).click()
            try:
                self.at(item).click(timeout=1000)
            except TookTooLong:
                self.page.keyboard.press("Escape")
                continue
            return
        raise AssertionError(f"the menu of {block} does not offer {item}")

    def gone(self, selector):
        """Click a button, which goes with what it closes."""
        found = self.page.locator(selector)
        found.click()
        found.wait_for(state="detached", timeout=SOON)

    def next_job(self):
        """The number that the next job will have; the newest stands first, and old ones are not listed."""
        self.page.locator("[data-testid=jobs], [data-testid=no-jobs]").first.wait_for(timeout=SOON)
        newest = self.page.locator("[data-testid^=state-]").first
        return int(newest.get_attribute("data-testid").rpartition("-")[2]) + 1 if newest.count() else 0

    def choose(self, experiment):
        """Choose an experiment's form by its title."""
        self.at("experiment").click()
        self.page.get_by_role("option", name=experiment, exact=True).first.click()

    def undo(self):
        if self.at("undo").count():
            self.at("undo").click()
            self.at("changes").wait_for(state="detached", timeout=SOON)

    def close(self, quiet=True):
        overflow = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        self.context.close()
        if quiet:
            assert self.errors == [], self.errors
        assert overflow <= 0, f"{overflow} pixels wider than the screen"
        assert {url.split("/")[2].split(":")[0] for url in self.requests if url.startswith("http")} == {
            "127.0.0.1"
        }
