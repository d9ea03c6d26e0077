"""Make the pictures of the README and the docs: open a fresh report in headless Chromium and cut sections out
of it.

Run from the project's root with the `browser` extra installed and Debian's chromium: `python
tools/make_pictures.py`, or with the report.html to cut up.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from regraft import load
from regraft.reporting.build import build

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SECTIONS = {
    "Attention": "attention.png",
    "Logit lens": "lens.png",
    "Completions": "completions.png",
    "Residual geometry": "geometry.png",
    "Weight spectra": "spectra.png",
    "Layer linearity": "linearity.png",
    "Contrastive trajectories": "trajectories.png",
    "Neurons": "neurons.png",
    "What goes with what": "correlations.png",
    "Knockout": "knockout.png",
    "Swap cost": "swap.png",
    "Activation patching": "patch.png",
    "Patching heads": "patch-heads.png",
    "Push": "push.png",
    "Neuron ablation": "ablate.png",
    "Repetition": "repeat.png",
    "Noise": "noise.png",
    "Shuffle recovery": "shuffle.png",
    "Quantization": "quantize.png",
    "Quantizers": "quantizers.png",
    "Activation and norm replacement": "replacement.png",
}


def section(page: Page, title: str, path: Path) -> None:
    """One section as a picture, down to its main figure."""
    found = page.locator("section").filter(has=page.locator("h3", has_text=title)).first
    found.scroll_into_view_if_needed()
    found.evaluate(
        "s => { for (const mark of s.querySelectorAll('.here')) mark.remove();"
        " let h = s.querySelector('figure').nextSibling;"
        " while (h) { const n = h.nextSibling; h.remove(); h = n; } }"
    )
    for _ in range(100):
        if found.evaluate("s => !!s.querySelector('.plot svg.main-svg')"):
            break
        page.wait_for_timeout(100)
    page.wait_for_timeout(300)
    found.screenshot(path=path)


def main() -> None:
    """Write every picture; of the report in a folder where one is named."""
    IMAGES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("the pictures need a browser: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        file = Path(sys.argv[1]) if sys.argv[1:] else build(load(), Path(folder) / "report")[0]
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5)
        page.goto(file.absolute().as_uri())
        page.wait_for_timeout(300)
        page.screenshot(path=IMAGES / "report.png")
        page.set_viewport_size({"width": 1060, "height": 900})
        for title, name in SECTIONS.items():
            section(page, title, IMAGES / name)
        browser.close()


if __name__ == "__main__":
    main()
