"""Measure strategies for keys and values on the specimen: `python -m tools.cache_survey` writes the table of
docs/cache.md and its picture."""

from __future__ import annotations

from pathlib import Path

import regraft
from benchmarks.measured_part import table, write_measured
from benchmarks.pages import draw
from regraft.reporting.figures.cache_figures import cache_figures, front_of

PAGE = Path(__file__).parent.parent / "docs" / "cache.md"
COLUMNS = {
    "bytes": ("bytes a token", "{:,.0f}"),
    "ratio": ("times less", "{:.1f}"),
    "kl": ("nats from the whole", "{:.4f}"),
    "top1_agreement": ("same next token", "{:.1%}"),
    "loss_added": ("loss added", "{:+.4f}"),
}
"""What the table says of each strategy, and how."""


def main() -> None:
    """Write table and picture."""
    data = regraft.cache(regraft.load())
    front = set(front_of(data))
    lines = [
        f"`specimen:qwen3`, {data.attrs['texts']} texts of the almanac, a prefix of {data.attrs['prefix']}"
        f" tokens and {data.attrs['suffix']} behind it, float32, seed 0; in bold what no other beats in bytes"
        " and nats.",
        "",
    ]
    rows = []
    for number, name in enumerate(data.strategy.values):
        told = f"**`{name}`**" if number in front else f"`{name}`"
        cells = [form.format(float(data[column][number])) for column, (_, form) in COLUMNS.items()]
        rows.append([told, *cells])
    lines += table(["strategy", *(head for head, _ in COLUMNS.values())], rows)
    write_measured(PAGE, [*lines, "", "![What a cache loses, over what it keeps](images/cache.png)"])
    draw({"cache.png": cache_figures(data)[0][1]})


if __name__ == "__main__":
    main()
