"""Compile the parts of the specimen and all of it: `python -m tools.compile_survey` writes the table of
docs/compile.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import regraft
from benchmarks.measured_part import table, write_measured
from regraft.reporting.figures.compile_figures import compile_finding
from regraft.systems.units import PARTS

PAGE = Path(__file__).parent.parent / "docs" / "compile.md"
HEAD = (
    "unit", "eager, ms", "compiled, ms", "times", "noise", "first call, s", "paid after calls", "breaks",
    "operators", "difference",
)  # fmt: skip


def main() -> None:
    """Write the table."""
    data = regraft.compile(regraft.load(), units=[*PARTS, "model"])
    lines = [
        f"`specimen:qwen3`, {data.attrs['texts']} text of {data.attrs['tokens']} tokens, float32, PyTorch"
        f" {data.attrs['torch']} on {data.attrs['machine']}, {data.attrs['threads']} threads; the compiler's"
        f" own start took {data.attrs['compiler_start_s']:.1f} s.",
        "",
    ]
    rows = []
    for name in data.unit.values:
        one, made = data.sel(unit=name), data.sel(unit=name, way="default")
        eager, even = float(one.warm.sel(way="eager")), float(made.break_even)
        cells = [
            str(name), f"{eager:.3g}", f"{float(made.warm):.3g}", f"{eager / float(made.warm):.2f}",
            f"{float(one.noise):.0%}", f"{float(made.first_call):.1f}",
            f"{even:,.0f}" if np.isfinite(even) else "never", str(int(one.breaks)),
            f"{int(one.operators.sel(way='eager'))} → {int(made.operators)}", f"{float(made.difference):.1e}",
        ]  # fmt: skip
        rows.append(cells)
    same = float(data.same_tokens.sel(way="default").values[-1])
    lines += [
        *table(HEAD, rows),
        "",
        f"The compiled model says the same likeliest token at {same:.0%} of positions."
        f" {compile_finding(data)}",
    ]
    write_measured(PAGE, lines)


if __name__ == "__main__":
    main()
