"""Write what the benchmark of transcoder adapters measured into docs/transcoder.md, and its figure into
docs/images.

Reads benchmarks/results/graft-transcoder.json and nothing else. Run from the project's root with the
`browser` extra and Debian's chromium: `python -m benchmarks.grafts.transcoder_report`.
"""

from __future__ import annotations

import re
import statistics
from typing import Any

import plotly.graph_objects as go

from benchmarks.pages import HEIGHT, ROOT, draw, made_by, runs
from regraft.reporting.theme import FIRST, base

OUT = ROOT / "docs" / "transcoder.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
"""Between these the tables stand."""
PICTURE = "transcoder-pareto.png"


def rows(found: dict[str, Any]) -> list[str]:
    """A line for every fit, and the models beside."""
    fits = {name: run for name, run in found.items() if name.startswith("l1 ")}
    one = next(iter(fits.values()))
    lines = [
        "| adapters | loss | recovered | of the gain over the base | divergence | active features of a token"
        " | never active | error of the last stream | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in fits.items():
        lines.append(
            f"| {name.replace('l1', 'λ_l1')} | {run['loss_adapted']:.4f} | {run['recovered']:.2%} |"
            f" {run['recovered_from_base']:.2%} | {run['kl']:.4f} | {statistics.fmean(run['active']):.2f} |"
            f" {statistics.fmean(run['never']):.0%} | {run['nmse'][-1]:.3f} | {run['seconds'] / 60:.1f} |"
        )
    told = ", ".join(f"{name} {one[f'loss_{name}']:.4f}" for name in ("base", "target", "hybrid"))
    return [f"Loss on 200 held-out worked sums, nats per token: {told}.", "", *lines]


def layers(found: dict[str, Any]) -> list[str]:
    """Active features and error by block, for the sparsest and the densest fit."""
    fits = [name for name in found if re.fullmatch(r"l1 [\d.]+", name)]
    lines = ["| block | " + " | ".join(f"active, {n.replace('l1', 'λ')}" for n in fits) + " |"]
    lines.append("|---" * (len(fits) + 1) + "|")
    count = len(found[fits[0]]["active"])
    for block in range(count):
        lines.append(f"| {block} | " + " | ".join(f"{found[n]['active'][block]:.2f}" for n in fits) + " |")
    return lines


def hesitations(one: dict[str, Any]) -> list[str]:
    """Rates with features ablated and clamped, beside random ones."""
    lines = ["| features | hesitates | right answers |", "|---|---|---|"]
    for name, rate in one.items():
        if isinstance(rate, dict) and name != "made":
            lines.append(f"| {name} | {rate['waits']:.1%} | {rate['right']:.1%} |")
    return [*lines, "", f"First of them: {', '.join(f'`{name}`' for name in one['features'][:6])}."]


def pareto(found: dict[str, Any]) -> go.Figure:
    """Divergence from the target over active features."""
    fits = {n: r for n, r in found.items() if re.fullmatch(r"l1 [\d.]+", n)}
    figure = base(HEIGHT, width=820)
    figure.add_scatter(
        x=[statistics.fmean(r["active"]) for r in fits.values()], y=[r["kl"] for r in fits.values()],
        text=[n.replace("l1", "λ") for n in fits], mode="lines+markers+text",
        textposition=["top right"] * (len(fits) - 1) + ["top left"],
        line_color=FIRST, showlegend=False,
    )  # fmt: skip
    ticks = [1, 2, 5, 10, 20, 50]
    figure.update_xaxes(title="active features of a token, mean over blocks", type="log", tickvals=ticks)
    figure.update_yaxes(title="divergence from the target, nats per token")
    return figure


def main() -> None:
    """Write the tables and draw the figure."""
    found = runs("transcoder")
    step = found["step"]
    made = made_by(found["l1 0.01"])
    parts = [
        BEGIN, "", f"**Measured** by `python -m benchmarks.grafts.graft_transcoder` ({made}).", "",
        *rows(found), "", f"![Divergence over active features](images/{PICTURE})", "",
        "Active features of a token, block by block:", "", *layers(found), "",
        "**The hesitation.** Features that add most to the score of \"Wait\" over that of \"Then\" where a"
        " hesitation begins (value times gradient), ablated, or clamped at every token to their mean there,"
        " over 200 held-out problems:", "",
        *hesitations(found["hesitation"]), "",
        f"**A training step** takes {step['walk']:.2f} s by the walk and {step['whole']:.2f} s by whole"
        f" forward passes from the tokens on ({step['times']:.2f} times), medians of {step['rounds']}"
        " rounds.", "", END,
    ]  # fmt: skip
    text = OUT.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    OUT.write_text(text[:begin] + "\n".join(parts) + text[end:], encoding="utf-8")
    draw({PICTURE: pareto(found)})


if __name__ == "__main__":
    main()
