"""Write the tables of docs/recall.md and their pictures from benchmarks/results/recall.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured_part import table, write_measured
from benchmarks.pages import draw
from benchmarks.recall.kinds import PARAMETERS, WINDOW
from benchmarks.recall.pairs import LONGEST_BETWEEN, VALUES
from benchmarks.recall.scratch import RESULTS
from regraft.reporting.theme import lines as curves

PAGE = Path(__file__).parent.parent.parent / "docs" / "recall.md"
ENOUGH = 0.9
"""Share right from which so many pairs count as held."""
Run = Mapping[str, Any]


def spread(values: Sequence[float]) -> str:
    """The middle of some shares, and the lowest and highest where they differ."""
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"{middle:.0%}" if high - low < 0.005 else f"{middle:.0%} ({low:.0%} to {high:.0%})"


def capacity(run: Run, numbers: Sequence[int]) -> int:
    """The largest number of pairs of which nine in ten are recalled; 0: none of those that were asked."""
    return max((n for n, share in zip(numbers, run["over_pairs"], strict=True) if share >= ENOUGH), default=0)


def _held(runs: Sequence[Run], numbers: Sequence[int]) -> list[str]:
    """What the best seed holds: pairs, bytes of state with them, bits of each byte."""
    best = max(runs, key=lambda run: capacity(run, numbers))
    pairs = capacity(best, numbers)
    if not pairs:
        return ["0", "", ""]
    size = best["state_bytes"][list(numbers).index(pairs)]
    return [str(pairs), f"{size:,}", f"{pairs * math.log2(VALUES) / size:.3f}"]


def main() -> None:
    """Write the page."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    numbers, distances = found["numbers"], found["distances"]
    kinds = {kind: [r for r in found["runs"] if r["kind"] == kind] for kind in
             dict.fromkeys(r["kind"] for r in found["runs"])}  # fmt: skip
    tokens = {run["tokens"] for run in found["runs"]}
    seeds = {len(runs) for runs in kinds.values()}
    assert len(tokens) == len(seeds) == 1, "every kind has read as much, from as many seeds"
    over_pairs = [
        [f"{kind}", *(spread([r["over_pairs"][i] for r in runs]) for i in range(len(numbers)))]
        for kind, runs in kinds.items()
    ]
    over_distance = [
        [kind, *(spread([r["over_distance"][i] for r in runs]) for i in range(len(distances)))]
        for kind, runs in kinds.items()
    ]
    held = [
        [kind, f"{runs[0]['parameters']:,}", *_held(runs, numbers),
         f"{np.median([r['cpu_seconds'] for r in runs]):.0f}"]
        for kind, runs in kinds.items()
    ]  # fmt: skip
    lines = [
        f"{seeds.pop()} seeds, {tokens.pop():,} tokens each, {PARAMETERS:,} parameters; the window is"
        f" {WINDOW} tokens; {found['texts']} texts of each point; PyTorch {found['torch']} on"
        f" {found['machine']}, one thread. Right answers over the number of pairs, asked at once: the middle"
        " of the seeds, and the lowest to the highest.",
        "",
        *table(["kind", *(f"{n} pairs" for n in numbers)], over_pairs),
        "",
        "![Right answers over the number of pairs, the best seed of each kind that learnt to recall]"
        "(images/recall-pairs.png)",
        "",
        f"{found['among']} pairs, asked behind other tokens (training had {LONGEST_BETWEEN} at most):",
        "",
        *table(["kind", *(f"{n} between" for n in distances)], over_distance),
        "",
        f"What the best seed holds: the largest number of pairs of which {ENOUGH:.0%} are recalled, its state"
        f" with as many, and the bits of the {VALUES} values that a byte of it holds:",
        "",
        *table(
            ["kind", "parameters", "pairs held", "bytes of state", "bits a byte", "CPU seconds a seed"], held
        ),
    ]  # fmt: skip
    write_measured(PAGE, lines)
    best = {
        kind: np.max([r["over_pairs"] for r in runs], axis=0)
        for kind, runs in kinds.items() if any(capacity(r, numbers) for r in runs)
    }  # fmt: skip
    figure = curves(np.array(numbers), best, "pairs", "share right, best seed")
    figure.update_xaxes(type="log", tickvals=numbers, ticktext=[str(n) for n in numbers])
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
    draw({"recall-pairs.png": figure})


if __name__ == "__main__":
    main()
