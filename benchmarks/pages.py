"""What the pages of measurements share: results from disk, who made them, and figures as pictures."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
HEIGHT = 430
DOMAINS = ("books", "almanac", "code")


def runs(name: str, subject: str = "graft") -> dict[str, Any]:
    """The runs of one benchmark."""
    return json.loads((RESULTS / f"{subject}-{name}.json").read_text(encoding="utf-8"))["runs"]


def made_by(run: dict[str, Any]) -> str:
    """Machine and versions of a run."""
    made = run["made"]
    return (
        f"{made['machine']['cpu']}, {made['threads']} thread(s) of {made['machine']['cores']} cores, torch"
        f" {made['torch']}, transformers {made['transformers']}, {made['time'][:10]}"
    )


def draw(figures: dict[str, go.Figure]) -> None:
    """Write figures as pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 840, "height": HEIGHT + 16}, device_scale_factor=1.5)
        for name, figure in figures.items():
            file = Path(folder) / "figure.html"
            figure.write_html(file)
            view.goto(file.as_uri())
            view.wait_for_selector(".main-svg")
            view.wait_for_timeout(500)
            view.screenshot(path=IMAGES / name)
        browser.close()
