"""Make the pictures of the README and the docs: open a fresh report in headless Chromium and cut sections out
of it.

Run from the project's root with the `browser` extra installed and Debian's chromium: `python
tools/make_pictures.py`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from regraft import load
from regraft.reporting.build import build

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SECTIONS = {
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


def section(page: Page, title: str, path: Path, until_reading: bool) -> None:
    """One section as a picture; `until_reading` leaves out what stands below its figures."""
    found = page.locator("section").filter(has=page.locator("h2", has_text=title)).first
    if until_reading:
        found.evaluate(
            "s => { let h = s.querySelector('h3'); while (h) { const n = h.nextSibling; h.remove(); h ="
            " n; } }"
        )
    found.screenshot(path=path)


def main() -> None:
    """Write every picture."""
    IMAGES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("the pictures need a browser: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        file, _ = build(load(), Path(folder) / "report")
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1060, "height": 900}, device_scale_factor=1.5)
        page.goto(file.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn")
        page.wait_for_timeout(800)
        section(page, "Activation patching", IMAGES / "report.png", True)
        for title, name in SECTIONS.items():
            section(page, title, IMAGES / name, True)
        browser.close()


if __name__ == "__main__":
    main()
