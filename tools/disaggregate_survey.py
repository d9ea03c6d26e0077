"""Read and write apart on this machine: `python -m tools.disaggregate_survey` writes the tables of
docs/disaggregate.md and its picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

import regraft
from benchmarks.measured_part import table, write_measured
from benchmarks.pages import draw
from regraft.reporting.figures.disaggregate_figures import disaggregate_figures, disaggregate_finding

PAGE = Path(__file__).parent.parent / "docs" / "disaggregate.md"
HEAD = (
    "over", "way", "prompt", "bytes", "by formula", "on the socket", "added to the first token, ms", "hidden",
    "first token, ms", "one process, ms", "same tokens",
)  # fmt: skip


def _row(data: xr.Dataset, over: str, way: str, prompt: int) -> list[str]:
    one = data.sel(over=over, way=way, prompt=prompt)
    numbers = [f"{int(one[name]):,}" for name in ("bytes", "formula_bytes", "wire")]
    milliseconds = [f"{float(one[name]):.1f}" for name in ("first_token", "together_first_token")]
    return [
        over, f"`{way}`", f"{prompt:,}", *numbers, f"{float(one.exposed):.2f}",
        f"{float(one.hidden):.0%}", *milliseconds, f"{float(one.same_tokens):.0%}",
    ]  # fmt: skip


def _stars(data: xr.Dataset) -> list[str]:
    speeds = [f"{speed:g} GB/s" for speed in data.speed.values]
    rows = []
    for mix in data.mix.values:
        told = [f"{v:.1f}" if np.isfinite(v) else "never" for v in data.pays_from.sel(mix=mix).values]
        rows.append([str(mix), *told])
    return table(["requests", *speeds], rows)


def main() -> None:
    """Write tables and picture."""
    data = regraft.disaggregate(regraft.load(), over=["shared", "tcp", "ray"])
    told = data.attrs
    rows = [
        _row(data, str(over), str(way), int(prompt))
        for over in data.over.values for way in data.way.values for prompt in data.prompt.values
    ]  # fmt: skip
    lines = [
        f"`specimen:qwen3`, {told['tokens']} tokens written, float32, PyTorch {told['torch']} on"
        f" {told['machine']}, one thread for each process. {disaggregate_finding(data)}",
        "",
        *table(HEAD, rows, words=2),
        "",
        f"Requests a second from which apart wins, {told['machines']} simulated machines, limits"
        f" {told['limit_first_ms']:.0f} ms for the first token and {told['limit_between_ms']:.0f} ms between"
        " tokens:",
        "",
        *_stars(data),
        "",
        "The two real processes with requests at random, medians, and their simulation: first token"
        f" {told['real_first_ms']:.0f} and {told['simulated_first_ms']:.0f} ms, between tokens"
        f" {told['real_between_ms']:.1f} and {told['simulated_between_ms']:.1f} ms.",
        "",
        "![Requests answered within both limits](images/disaggregate.png)",
    ]  # fmt: skip
    write_measured(PAGE, lines)
    draw({"disaggregate.png": disaggregate_figures(data)[-1][1]})


if __name__ == "__main__":
    main()
