"""The part of a page that a script writes, between two marks; the rest is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> list[str]:
    """Lines of a table; the first columns hold words, the others numbers, which stand on the right."""
    under = "|" + "---|" * words + "---:|" * (len(head) - words)
    return [_line(head), under, *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_measured(page: Path, lines: Sequence[str]) -> None:
    """Put lines between the marks of a page, in the place of what stands there."""
    text = page.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN), text.index(END)
    page.write_text("\n".join([text[:begin] + BEGIN, "", *lines, "", text[end:]]), encoding="utf-8")
