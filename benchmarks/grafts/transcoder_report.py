"""Write what the benchmark of transcoder adapters measured into docs/transcoder.md, and its figure into
docs/images.

Reads benchmarks/results/graft-transcoder.json, and with `--pages` the page of features of the sparsest
adapters, of which it takes a picture. Run from the project's root with the
`browser` extra and Debian's chromium: `python -m benchmarks.grafts.transcoder_report`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

from benchmarks.measured_part import write_measured
from benchmarks.pages import HEIGHT, IMAGES, ROOT, draw, made_by, runs
from regraft.reporting.theme import FIRST, MUTED, base

OUT = ROOT / "docs" / "transcoder.md"
PICTURE = "transcoder-pareto.png"
PAGE = "transcoder-feature.png"
"""The page of features at the surest one, taken by `--pages`."""
COLUMNS = ("loss", "recovered", "recovered_from_base", "kl", "active_mean", "never", "error", "right")
"""What the table of fits says of each."""
SOURCES = {
    "adapters": "features of adapters",
    "neurons": "neurons of the MLPs",
    "random": "random directions",
}
"""What single features are read from, in words."""


def rows(found: dict[str, Any]) -> list[str]:
    """A line for every fit, and the models beside."""
    lines = [
        "| λ_l1 | loss | recovered | of the gain over the base | divergence | active features of a token"
        " | never active | error of the last stream | right answers | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for place, name in enumerate(found["fit"]):
        one = {key: found[key][place] for key in COLUMNS}
        lines.append(
            f"| {name} | {one['loss']:.4f} | {one['recovered']:.2%} | {one['recovered_from_base']:.2%} |"
            f" {one['kl']:.4f} | {one['active_mean']:.2f} | {one['never']:.0%} | {one['error']:.3f} |"
            f" {one['right']:.1%} | {list(_in_order(found))[place] / 60:.1f} |"
        )
    beside = dict(zip(("base", "target", "hybrid"), found["beside"], strict=True))
    told = ", ".join(f"{name} {value:.4f}" for name, value in beside.items())
    return [f"Loss on 200 held-out worked sums, nats per token: {told}.", "", *lines]


def _in_order(found: dict[str, Any]) -> list[float]:
    """Seconds of the fits, in the order of the table."""
    ends = {"base's backbone": "-base", "next-token loss alone": "-next-token", "random features": "-random"}
    names = [name.partition(", ") for name in found["fit"]]
    return [found["seconds"][f"l1-{weight}{ends.get(control, '')}"] for weight, _, control in names]


def layers(found: dict[str, Any]) -> list[str]:
    """Active features block by block, for the fits that differ in the weight alone."""
    swept = [place for place, name in enumerate(found["fit"]) if "," not in name]
    lines = ["| block | " + " | ".join(f"λ {found['fit'][place]}" for place in swept) + " |"]
    lines.append("|---" * (len(swept) + 1) + "|")
    for block in range(len(found["active"][0])):
        told = " | ".join(f"{found['active'][place][block]:.2f}" for place in swept)
        lines.append(f"| {block} | {told} |")
    return lines


def hesitations(one: dict[str, Any]) -> list[str]:
    """Rates with features ablated and held, beside random ones, in three tables."""
    lines = []
    for kind, title in (
        ("due", "the first sum came out wrong: a hesitation is due"),
        ("not due", "the first sum came out right: none is due"),
        ("whole", "the whole problem is written"),
    ):
        lines += [f"| {title} | hesitates | right answers |", "|---|---|---|"]
        for name, rate in one[kind].items():
            lines.append(f"| {name} | {rate['waits']:.1%} | {rate['right']:.1%} |")
        lines.append("")
    return [*lines, f"First of them: {', '.join(f'`{name}`' for name in one['features'][:6])}."]


def firing(one: dict[str, Any]) -> list[str]:
    """Which features are above zero in front of a hesitation, and how surely."""
    lines = [
        '| feature | of its tokens stand before "Wait" | of those places it is above zero at |',
        "|---|---|---|",
    ]
    for found in one["features"]:
        lines.append(f"| `{found['name']}` | {found['precision']:.0%} | {found['recall']:.0%} |")
    return lines


def telling(one: dict[str, Any]) -> list[str]:
    """How well the best single feature of each kind tells a wrong sum."""
    lines = ["| best single feature of | which | area under the curve, other half |", "|---|---|---|"]
    for name, words in SOURCES.items():
        found = one[name]
        lines.append(f"| {found['features']:,} {words} | `{found['best']}` | {found['area']:.3f} |")
    return lines


def pareto(found: dict[str, Any]) -> go.Figure:
    """Divergence from the target over active features."""
    figure = base(HEIGHT, width=820)
    swept = [place for place, name in enumerate(found["fit"]) if "," not in name]
    controls = [place for place in range(len(found["fit"])) if place not in swept]
    for places, mode, colour in ((swept, "lines+markers+text", FIRST), (controls, "markers+text", MUTED)):
        figure.add_scatter(
            x=[found["active_mean"][place] for place in places], y=[found["kl"][place] for place in places],
            text=[found["fit"][place].replace("0.001, ", "") for place in places], mode=mode,
            textposition="top center", line_color=colour, showlegend=False,
        )  # fmt: skip
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500]
    title = "active features of a token, mean over blocks"
    figure.update_xaxes(title=title, type="log", tickvals=ticks, range=[0, 3])
    figure.update_yaxes(title="divergence from the target, nats per token", type="log")
    return figure


def photographed(page: Path, feature: str) -> None:
    """The page of features at one of them, as a picture."""
    block, _, number = feature.split(".")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1300, "height": 900})
        view.goto(f"{page.resolve().as_uri()}#{block}.{number}")
        view.wait_for_selector("#detail h1")
        view.screenshot(path=IMAGES / PAGE)
        browser.close()


def main() -> None:
    """Write the tables and draw the figures."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--pages", type=Path, help="index.html that `graft transcoder features` wrote")
    given = words.parse_args()
    found = runs("transcoder")
    if given.pages:
        photographed(given.pages, found["fires before"]["features"][0]["name"])
    step, fits, one = found["step"], found["fits"], found["hesitation"]
    mean, places = statistics.fmean(fits["active"][0]), found["fires before"]["places"]
    parts = [
        f"**Measured** by `python -m benchmarks.grafts.graft_transcoder` ({made_by(fits)}).", "",
        *rows(fits), "", f"![Divergence over active features](images/{PICTURE})", "",
        "Active features of a token, block by block:", "", *layers(fits), "",
        f"**The hesitation**, with the sparsest adapters ({mean:.1f} active features of a token in a block)."
        " A worked sum hesitates where its first sum came out wrong. Features are chosen by what they add to"
        ' the score of "Wait" over "Then" on other problems, ablated where a hesitation is due, and held at'
        " a multiple of their mean there where none is; random ones are as frequent. 200 problems each:", "",
        *hesitations(one), "",
        f'Features that are above zero in front of "Wait" ({places} places in other worked sums), the surest'
        " first:", "", *firing(found["fires before"]), "",
        f"![A feature of the page](images/{PAGE})", "",
        "How well single features tell at the end of the first sum that it came out wrong, chosen on one half"
        " of 400 problems and measured on the other (0.5 is chance):", "", *telling(found["tells"]), "",
        f"**A training step** takes {step['walk']:.2f} s by the walk and {step['whole']:.2f} s by whole"
        f" forward passes from the tokens on ({step['times']:.2f} times), mean over the cutoffs that training"
        f" draws, of each the median of {step['rounds']} rounds in turns.",
    ]  # fmt: skip
    write_measured(OUT, parts)
    draw({PICTURE: pareto(fits)})


if __name__ == "__main__":
    main()
