"""Write `docs/speed.md` from what was measured: `python -m benchmarks.peers.speed_page`.

Every figure comes from a file below `benchmarks/results/`; nothing is measured here. A case that was measured
again by itself (`python -m benchmarks.peers.run --only KEY`, `part-*.json`) takes the place of its row.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers.report import COLUMNS

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "speed.md"
PEERS = ("transformerlens", "nnsight", "loop", "loop-last")
RECORDING = "record"
"""The case that is no sweep: what recording costs."""
HEAD = """# Speed

Written by `python -m benchmarks.peers.speed_page` from the files of `benchmarks/results/` that the table names.

`make bench` measures side by side: one process for each peer, in turn, the same random weights, float32, two
threads; a ratio is the peer's median over regraft's. TransformerLens {tl}, nnsight {nn}, torch {torch},
transformers {transformers}. Values of all peers agree to {agree:.0e} of the largest.
"""
MEANING = """
*Counted bound*: multiply-adds of one full forward for each cell, output matrix included, over those that regraft
plans. A peer that batches its cells, as nnsight's guide does for the cells of one block, cannot be beaten by more
than that at equal efficiency; the rest against the other peers is the gain of large batches. *Matrix rate*:
regraft's planned multiply-adds a second over those of one large float32 product beside it.
"""


def read(file: Path) -> dict[str, Any]:
    """A file of results."""
    return {**json.loads(file.read_text(encoding="utf-8")), "file": file.name}


def comparisons() -> tuple[dict[str, Any], dict[str, tuple[dict[str, Any], dict[str, Any]]]]:
    """The newest whole comparison, and every case by key with the comparison that it comes from."""
    whole = read(max(RESULTS.glob("20*.json")))
    later = [one for one in map(read, sorted(RESULTS.glob("part-*.json"))) if one["time"] > whole["time"]]
    cases = {case["case"]["key"]: (case, made) for made in [whole, *later] for case in made["cases"]}
    return whole, cases


def row(case: dict[str, Any], made: dict[str, Any]) -> str:
    """A case as a row of the table."""
    entrants = case["entrants"]
    own = entrants["regraft"]["median_seconds"]
    ratios = [
        f"{entrants[peer]['median_seconds'] / own:.1f}x" if peer in entrants else "cannot" for peer in PEERS
    ]
    title = case["case"]["title"][3:].replace("{T}", str(case["case"]["positions"]))
    bound, share = case["bound"], case["share_of_matrix_rate"]
    counted = [f"{bound:.1f}x" if bound else "", f"{share:.0%}" if share else ""]
    cells = [f"{title}, {case['case']['model']}", f"{own:.3g} s", *ratios, *counted, f"`{made['file']}`"]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The page."""
    whole, cases = comparisons()
    versions = whole["versions"]
    apart = [case["values"] for case, _ in cases.values() if "largest" in case["values"]]
    told = {
        "tl": versions["tl"]["transformer-lens"],
        "nn": versions["nn"]["nnsight"],
        "torch": versions["regraft"]["torch"],
        "transformers": versions["regraft"]["transformers"],
        "agree": max(one["difference"] / max(one["largest"], 1.0) for one in apart),
    }
    names = [COLUMNS[peer] for peer in PEERS]
    lines = [
        HEAD.format(**told),
        f"| case | regraft | {' | '.join(names)} | counted bound | matrix rate | from |",
        f"|{'---|' * (len(names) + 5)}",
        *(row(case, made) for key, (case, made) in cases.items() if key != RECORDING),
        MEANING,
        *machines(cases),
        "## Recording, and starting",
        "",
        *recording(cases[RECORDING][0]),
        *starting(whole["startup_seconds"]),
        "",
        "## Where the time goes",
        "",
        *time_spent(),
        "",
        "## Sizes that people have",
        "",
        "Measured by `python -m benchmarks.sizes`, weights drawn at random; memory is what the process held over its model.",
        "",
        "| case | memory | time |",
        "|---|---|---|",
        *sizes(),
        "",
        "## A model larger than memory",
        "",
        *streamed(),
        "",
        "## The report",
        "",
        *reported(),
        "",
        "## The studio",
        "",
        *played(),
        "",
        "A GPU has not been at hand: `benchmarks/gpu.sh` holds the same grid in bfloat16, a model streamed through 6 GB,"
        " and the tests marked `gpu`.",
    ]
    return "\n".join(lines) + "\n"


def machines(cases: dict[str, Any]) -> list[str]:
    """Which machine made which file."""
    made = {one["file"]: one for _, one in cases.values()}
    return [
        f"`{name}`: {one['machine']['cpu']}, {one['machine']['cores']} cores, {one['time'][:10]}.\n"
        for name, one in made.items()
    ]


def recording(case: dict[str, Any]) -> list[str]:
    """What recording the stream of every block costs beside a plain forward."""
    rounds = [one["detail"] for one in case["entrants"]["regraft"]["rounds"]]
    whole, headless = (
        statistics.median(one["record"] / one[key] for one in rounds)
        for key in ("forward", "forward without head")
    )
    return [
        f"Recording the stream of every block takes {whole:.2f} times a plain forward ({headless:.2f} times one"
        " without the output matrix).",
    ]


def starting(seconds: dict[str, float]) -> list[str]:
    """What importing and asking for help take."""
    more = seconds["from regraft import load, sweep"] - seconds["import torch"]
    return [
        f"`import regraft` takes {seconds['import regraft']:.2f} s, `from regraft import load, sweep` {more:.1f} s more"
        f" than `import torch`, `regraft --help` {seconds['regraft --help']:.2f} s.",
    ]


def time_spent() -> list[str]:
    """Shares of the grid's time, from `python -m benchmarks.peers.time_spent`."""
    found = read(RESULTS / "grid-time.json")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items())
    return [
        f"Of the 64-position grid on one machine ({found['machine']['cpu']}): {shares}, the rest {found['rest']:.0%}."
    ]


def streamed() -> list[str]:
    """A model of Qwen3-4B's shape under 2.75 GiB, from `python -m benchmarks.streaming.run`."""
    found = read(RESULTS / "streaming.json")
    lines = [
        f"Measured by `python -m benchmarks.streaming.run` ({found['machine']['cpu']}): Qwen3-4B's shape, weights drawn at"
        f" random, {found['bytes'] / 1e9:.2f} GB in bfloat16.",
        "",
        "| what | tokens | limit | seconds | most memory | walks through the files | blocks that stay |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["under_3_GiB"]:
        stay = f"{one['blocks_that_stay']} of {one['blocks']}"
        cells = [
            one["what"],
            one["tokens"],
            one["limit"],
            one["seconds"],
            f"{one['peak_bytes'] / 2**30:.2f} GiB",
        ]
        lines.append(f"| {' | '.join(map(str, [*cells, one['walks'], stay]))} |")
    other = found["airllm"]
    lines += [
        "",
        f"AirLLM {other['airllm']}, which streams layers, too, takes {other['seconds']:.1f} s for the same forward pass at"
        f" {other['peak_bytes'] / 2**30:.2f} GiB beside {other['beside']['seconds']} s at"
        f" {other['beside']['peak_bytes'] / 2**30:.2f} GiB, and writes {other['bytes_written'] / 1e9:.1f} GB first.",
    ]
    for one in found["beside_memory"]:
        lines.append(
            f"Beside the same weights in memory ({one['blocks']} blocks, {one['tokens']} tokens, files in the page cache):"
            f" {one['what']} at {one['speed']:.2f} of the speed."
        )
    return lines


def reported() -> list[str]:
    """What the default report takes, from `python -m benchmarks.report_time`."""
    found = read(RESULTS / "report.json")
    longest = sorted(found["chapters"].items(), key=lambda pair: -pair[1])[:5]
    told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in longest)
    made = found["machine"]
    return [
        f"The default report takes {found['seconds']:.0f} s with the start of its process ({made['cpu']}, {made['cores']}"
        f" cores, {found['time'][:10]}): {len(found['chapters'])} chapters, the longest {told}. The page has"
        f" {found['page_bytes'] / 1e6:.1f} MB, of which plotly is {found['script_bytes'] / 1e6:.1f}.",
    ]


def played() -> list[str]:
    """How soon a click is answered, from `python -m benchmarks.studio_time`."""
    found = read(RESULTS / "studio.json")
    made = found["machine"]
    lines = [
        f"Measured by `python -m benchmarks.studio_time` ({made['cpu']}, {made['cores']} cores, {found['time'][:10]}) on the"
        f" specimen, medians of {found['times']} clicks: until losses, logits, the lens clean and changed, next tokens and"
        " the lines of Python are there; beside one plain forward pass of the same prompt, in turn with them.",
        "",
        "| click | median | longest | plain forward |",
        "|---|---|---|---|",
    ]
    for name, one in found["clicks"].items():
        times = [f"{1000 * one[key]:.0f} ms" for key in ("seconds", "longest", "forward_seconds")]
        lines.append(f"| {name} | {' | '.join(times)} |")
    return lines


def sizes() -> list[str]:
    """Rows of the table of sizes."""
    rows = []
    for name, one in read(RESULTS / "sizes.json")["runs"].items():
        memory = one.get("over_model_gib", one.get("over_rows_gib"))
        seconds = one.get("seconds", one.get("tree_seconds", 0.0) + one.get("start_seconds", 0.0))
        rows.append(f"| {name} | {memory:.2f} GiB | {seconds:.0f} s |")
    return rows


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.name)
