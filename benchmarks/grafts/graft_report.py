"""Write what the grafts' benchmarks measured: docs/measured_grafts.md, and its figures in docs/images.

Reads benchmarks/results/graft-*.json and nothing else. Run from the project's root with the `browser` extra
and Debian's chromium: `python -m benchmarks.grafts.graft_report`.
"""

from __future__ import annotations

import statistics
from typing import Any

import plotly.graph_objects as go

from benchmarks.pages import DOMAINS, HEIGHT, ROOT, draw, made_by, runs
from regraft.reporting.theme import FIRST, MUTED, PALETTE, base

OUT = ROOT / "docs" / "measured_grafts.md"
KNOWN = {"share": [0.18, 0.41], "books": [0.23, 0.105]}
"""What was known before, of a plain net after 42 s of a data-centre GPU (the issue's figures)."""


def change(run: dict, domain: str, stage: str = "changes") -> float:
    """Bits per byte that a run adds on a domain."""
    one = run[stage][domain]
    return one["bits_per_byte_after"] - one["bits_per_byte_before"]


def embedding_rows(found: dict[str, Any], prefix: str) -> list[str]:
    """A table of runs whose names begin alike."""
    head = (
        "| run | parameters | of the table's | books | almanac | code | same token on books | warm-up alone,"
        " books | minutes |"
    )
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    named = [(name, run) for name, run in found.items() if name.startswith(prefix)]
    for name, run in sorted(named, key=lambda one: one[1]["share"]) if prefix == "size: " else named:
        changes = " | ".join(f"{change(run, domain):+.3f}" for domain in DOMAINS)
        minutes = (run["warm_seconds"] + run["seconds"]) / 60
        rows.append(
            f"| {name.removeprefix(prefix)} | {run['parameters']:,} | {run['share']:.3f} | {changes} |"
            f" {run['changes']['books']['top1']:.1%} | {change(run, 'books', 'warmed_only'):+.3f} |"
            f" {minutes:.1f} |"
        )
    return rows


def curve(found: dict[str, Any]) -> go.Figure:
    """Bits per byte that an embedding adds, over its share of the table's parameters."""
    sizes = sorted((r for n, r in found.items() if n.startswith("size: ")), key=lambda r: r["share"])
    figure = base(HEIGHT, width=820)
    for domain, colour in zip(DOMAINS, PALETTE, strict=False):
        figure.add_scatter(
            x=[r["share"] for r in sizes],
            y=[change(r, domain) for r in sizes],
            name=domain,
            line_color=colour,
            mode="lines+markers",
        )
    style = dict(color=FIRST, symbol="x", size=10)
    figure.add_scatter(
        x=KNOWN["share"], y=KNOWN["books"], name="known before (books)", mode="markers", marker=style
    )
    figure.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=64
    )
    figure.update_xaxes(
        title="parameters of the embedding, in times the table's",
        type="log",
        tickvals=[0.03, 0.1, 0.2, 0.4, 0.5, 1.0],
    )
    figure.update_yaxes(
        title="bits per byte added", type="log", tickvals=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    )
    return figure


def head_rows(found: dict[str, Any]) -> list[str]:
    """A table of heads: their losses before any training and after."""
    head = (
        "| head | depth | multiply-adds of a given token | parameters | from means | from states | trained, "
        "books | over the original | almanac over | code over | steps |"
    )
    rows = [head, "|---|---|---|---|---|---|---|---|---|---|---|"]
    for name, run in sorted(found.items(), key=lambda one: one[1]["steps"]):
        after, original = run["after"], run["original"]
        over = " | ".join(f"{after[domain] - original[domain]:+.3f}" for domain in DOMAINS)
        starts = " | ".join(f"{run['starts'][start]['books']:.2f}" for start in ("means", "states"))
        rows.append(
            f"| {name} | {run['depth']} | {run['multiply_adds']:,.0f} | {run['parameters']:,} | {starts} | "
            f"{after['books']:.3f} | {over} | {run['steps']:,} |"
        )
    return rows


def head_series(found: dict[str, Any]) -> dict[str, list[dict]]:
    """The clustered trees by adapter where they were trained equally long, and the best tree trained
    longest."""
    least, most = (pick(run["steps"] for run in found.values()) for pick in (min, max))
    series: dict[str, list[dict]] = {}
    for name, run in found.items():
        tree, children, adapter = name.split(", ")[:3]
        if tree == "scores" or (tree == "two means" and run["steps"] == least):
            kind = f"{tree}, {adapter}" if run["steps"] == least else f"{tree}, {adapter}, {most:,} steps"
            series.setdefault(kind, []).append({**run, "children": children.split()[0]})
    return {kind: sorted(series[kind], key=lambda run: run["multiply_adds"]) for kind in sorted(series)}


def head_figure(found: dict[str, Any]) -> go.Figure:
    """Loss over the original head's against the work of a given token's probability."""
    figure = base(HEIGHT, width=820)
    for number, (kind, members) in enumerate(head_series(found).items()):
        figure.add_scatter(
            x=[r["multiply_adds"] for r in members],
            y=[r["after"]["books"] - r["original"]["books"] for r in members],
            text=[r["children"] for r in members],
            name=kind,
            mode="lines+markers+text" if kind.startswith("scores") else "lines+markers",
            textposition="middle left" if "4D" in kind else "bottom center",
            textfont_size=9,
            line=dict(color=PALETTE[number % len(PALETTE)], width=1),
            marker=dict(
                size=9,
                symbol="star" if "steps" in kind else "circle" if kind.startswith("scores") else "diamond",
            ),
        )
    whole = next(iter(found.values()))["multiply_adds_original"]
    figure.add_vline(
        x=whole,
        line_color=MUTED,
        line_dash="dot",
        annotation_text="full softmax",
        annotation_position="top left",
    )
    figure.update_layout(
        showlegend=True, legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0), margin_t=110
    )
    figure.update_xaxes(
        title="multiply-adds of one given token's probability (numbers: children of a node)", type="log"
    )
    figure.update_yaxes(title="nats per token over the original, books", rangemode="tozero")
    return figure


def family_rows(found: dict[str, Any]) -> list[str]:
    """Both grafts on models of several families, alone and together."""
    rows = [
        (
            "| model | head tied | grafts | parameters, before | after | books | almanac | code | same token"
            " on books |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, run in found.items():
        for name, changed in run["changes"].items():
            added = " | ".join(
                f"{one['bits_per_byte_after'] - one['bits_per_byte_before']:+.3f}" for one in changed.values()
            )
            rows.append(
                f"| {model} | {'yes' if run['tied'] else 'no'} | {name} | {run['parameters']['model']:,} | "
                f"{run['parameters_after'][name]:,.0f} | {added} | {changed['books']['top1']:.1%} |"
            )
    return rows


def cost_rows(found: dict[str, Any]) -> list[str]:
    """What was measured at the size of large vocabularies."""
    training, step = found["forward and backward"], found["with a step of the optimiser"]
    draw, counted = found["drawing one token"], found["multiply-adds of one token's log-probability"]
    plain = "full softmax"
    rows = ["| measured | full softmax | tree | ratio |", "|---|---|---|---|"]
    for kind in ("tree, sparse gradients", "tree, dense gradients"):
        seconds = {n: statistics.median(training["seconds"][n]) for n in (plain, kind)}
        label = kind.removeprefix("tree, ")
        rows.append(
            f"| forward and backward, {label} | {seconds[plain]:.2f} s | {seconds[kind]:.3f} s | "
            f"{training['faster'][kind]:.0f}x |"
        )
        peaks = training["peak_bytes"]
        rows.append(
            f"| memory beyond the weights, {label} | {peaks[plain] / 1e6:,.0f} MB |"
            f" {peaks[kind] / 1e6:,.0f} MB | {training['less_memory'][kind]:.1f}x |"
        )
    first, second = (statistics.median(values) for values in step["seconds"].values())
    rows.append(
        f"| with a step of the optimiser (AdamW; SparseAdam) | {first:.2f} s | {second:.3f} s |"
        f" {first / second:.0f}x |"
    )
    drawn = [1e3 * statistics.median(draw["seconds"][n]) for n in (plain, "tree")]
    rows.append(f"| drawing one token | {drawn[0]:.1f} ms | {drawn[1]:.2f} ms | {drawn[0] / drawn[1]:.0f}x |")
    rows.append(
        f"| multiply-adds of a given token | {counted[plain]:,} | {counted['tree']:,.0f} |"
        f" {counted['fewer']:,.0f}x |"
    )
    return rows


def search_rows(found: dict[str, Any]) -> list[str]:
    """Best-first search against brute force."""
    rows = [
        "| tree | nodes | visited for the best token, mean share | median nodes | equal to brute force |",
        "|---|---|---|---|---|",
    ]
    for name, run in found.items():
        if name.startswith("best-first"):
            rows.append(
                f"| {name.split(', ')[1]} | {run['nodes']:,} | {run['visited_share']:.2%} |"
                f" {run['visited_median']:.0f} | {run['equal_to_brute_force']:,} of {run['states']:,} |"
            )
    return rows


def size_lines(run: dict[str, Any]) -> str:
    """The case of a model with D 4,096."""
    gib = run["step_peak_bytes_beyond_weights_and_optimiser"] / 2**30
    return (
        f"The table has {run['table_parameters'] / 1e9:.2f} B parameters ({run['table_gib_bfloat16']:.2f} GiB"
        " in bfloat16); the graft (32 bytes of width 128, one block, an MLP of 4,096 neurons) has"
        f" {run['graft_parameters'] / 1e6:.1f} M, of which the bytes' own table"
        f" {run['byte_table_parameters']:,}. One training step on {run['step_tokens']:,} random rows took"
        f" {run['step_seconds']:.1f} s and {gib:.2f} GiB beyond weights and optimiser; the whole process held"
        f" {run['process_peak_gib']:.2f} GiB at most."
    )


def language_rows(run: dict[str, Any]) -> list[str]:
    """Scripts of the Universal Declaration."""
    rows = [
        "| script | tokens | mean bytes | cut at 8 | at 16 | at 32 | error, of the mean square |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in run["scripts"].items():
        cut = " | ".join(f"{share:.1%}" for share in one["cut"].values())
        rows.append(f"| {name} | {one['tokens']:,} | {one['mean_bytes']:.1f} | {cut} | {one['error']:.3f} |")
    return rows


def page() -> str:
    """The whole page."""
    embedding, head, costs = runs("embedding"), runs("head"), runs("costs")
    (language,) = runs("languages").values()
    families = runs("families")
    said = next(iter(families.values()))["steps"]
    original = next(iter(head.values()))["original"]
    return "\n".join(
        [
            "# Grafts, measured",
            "",
            (
                "Written by `benchmarks/grafts/graft_report.py` from `benchmarks/results/graft-*.json`; every"
                " run's settings stand there."
            ),
            "",
            "## Byte embeddings of many sizes",
            "",
            (
                f"`benchmarks/grafts/graft_embedding.py` ({made_by(next(iter(embedding.values())))}; another"
                " benchmark ran beside it). Bits per byte that the embedding adds on text it was not"
                " trained on."
            ),
            "",
            *embedding_rows(embedding, "size: "),
            "",
            "![Bits per byte over size](images/graft-embedding-curve.png)",
            "",
            "Ablations, at a fifth of the table's parameters and with shorter training:",
            "",
            *embedding_rows(embedding, "ablation: "),
            "",
            "## Three families, one graft and both",
            "",
            (
                f"`benchmarks/grafts/graft_families.py` ({made_by(next(iter(families.values())))}; another"
                f" benchmark ran beside it): {said['warm-up']:,} warm-up and {said['embedding']:,} training"
                f" steps of an embedding at half of the table's parameters, {said['head']:,} steps of a tree"
                " of up to 64 children. Bits per byte added. A head that was tied keeps the old matrix as"
                " its own, so a byte embedding alone adds its own parameters to such a model. T5 is read"
                " here as a language model (half of a sequence in, the other half out), which it was not"
                " trained as: its own loss is high."
            ),
            "",
            *family_rows(families),
            "",
            "## Languages",
            "",
            (
                f"`benchmarks/grafts/graft_languages.py` ({made_by(language)}):"
                f" {language['files']} translations, {language['tokens']:,} tokens,"
                f" {language['tokens_in_text']:,} of them in the text as it is cut; an embedding of"
                f" {language['parameters']:,} parameters ({language['share']:.2f} of the table's, 16 bytes)"
                f" after {language['steps']:,} steps leaves {language['error']:.3f} of the mean square."
            ),
            "",
            *language_rows(language),
            "",
            "## At size",
            "",
            size_lines(costs["byte embedding at V 248,320, D 4,096"]),
            "",
            "## Tree heads",
            "",
            (
                f"`benchmarks/grafts/graft_head.py` ({made_by(next(iter(head.values())))}; another benchmark"
                " ran beside it). Nats per token on held-out text; the original head's:"
                f" {', '.join(f'{d} {original[d]:.3f}' for d in DOMAINS)}."
            ),
            "",
            *head_rows(head),
            "",
            "![Loss over work](images/graft-head-curve.png)",
            "",
            "## Costs at a large vocabulary",
            "",
            (
                "`benchmarks/grafts/graft_costs.py`, V 248,320, D 1,024, 512 tokens, float32, in turns "
                f"({made_by(costs['forward and backward'])})."
            ),
            "",
            *cost_rows(costs),
            "",
            "Best-first search for the most probable token, on states of the specimen:",
            "",
            *search_rows(costs),
            "",
        ]
    )


def main() -> None:
    """Write the page and its pictures."""
    OUT.write_text(page(), encoding="utf-8")
    draw(
        {
            "graft-embedding-curve.png": curve(runs("embedding")),
            "graft-head-curve.png": head_figure(runs("head")),
        }
    )


if __name__ == "__main__":
    main()
