"""Rows as lines of a terminal."""

from __future__ import annotations


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines with aligned columns; never cut, so a line may be longer than the terminal is wide."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


WIDE = 48
"""Letters of a setting that a table shows; what is longer is cut, and stands whole in run.json."""


def cut(cell: str) -> str:
    """A setting as a table shows it."""
    shown = short(cell)
    return shown if len(shown) <= WIDE else f"{shown[: WIDE - 1]}…"


def short(cell: str) -> str:
    """A cell as a table shows it: numbers in five figures, line ends as marks."""
    try:
        return f"{float(cell):.5g}" if "." in cell else cell
    except ValueError:
        return cell.replace("\n", "⏎")
