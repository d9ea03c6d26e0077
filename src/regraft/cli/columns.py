"""Rows as lines of a terminal."""

from __future__ import annotations


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines with aligned columns; never cut, so a line may be longer than the terminal is wide."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def short(cell: str) -> str:
    """A cell as a table shows it: numbers in five figures, line ends as marks."""
    try:
        return f"{float(cell):.5g}" if "." in cell else cell
    except ValueError:
        return cell.replace("\n", "⏎")
