"""Figures in pages that are written by hand, each with where it comes from behind it as a comment.

`3.4<!--=lens.crystallization.mean()-->` is filled in by `tools/measure.py` from what it measures;
`0.205<!--measured_grafts.md-->` stands in that page, which a script writes. A paragraph that speaks of a
specimen holds no other fractions and no other percentages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?%?"
SOURCED = re.compile(rf"({NUMBER})<!--(.+?)-->")
FRACTION = re.compile(
    r"(?<![\w.])(?<!\w-)(?<!torch )(?<!transformers )[-+]?\d[\d,]*\.\d+(?!\.?\d)%?|(?<![\w.])\d+%"
)
"""A fraction or a percentage; no part of a model's name, and no version."""
WRITTEN = "Written by "
"""How a page says that a script writes all of it, on one of its first lines."""
STUDIES = Path(__file__).resolve().parent.parent.parent / "src" / "regraft" / "landmarks" / "studies"
FIRST = 6
"""Lines of a page that are looked at for it."""
MADE = "measured"
"""The mark in front of what a benchmark writes into a page, up to the same with a slash."""


def filled(text: str, names: Mapping[str, Any]) -> str:
    """A page with every figure that has an expression as the expression says, as many digits as before.

    >>> filled("about 2.5<!--=10 / 3-->, +1%<!--=share-->", {"share": 0.02})
    'about 3.3<!--=10 / 3-->, +2%<!--=share-->'
    """

    def one(match: re.Match[str]) -> str:
        written, source = match.groups()
        if not source.startswith("="):
            return match.group()
        return f"{like(float(eval(html.unescape(source[1:]), dict(names))), written)}<!--{source}-->"

    return SOURCED.sub(one, text)


def like(value: float, written: str) -> str:
    """A value with the digits, the sign and the unit that a figure is written with."""
    sign, percent = "+" if written[0] == "+" else "", written.endswith("%")
    digits = len(written.rstrip("%").partition(".")[2])
    return f"{100 * value if percent else value:{sign},.{digits}f}" + ("%" if percent else "")


def without_source(page: Path) -> list[str]:
    """Figures of a page that say of nothing where they come from, or that are not there, as sentences."""
    text = page.read_text(encoding="utf-8")
    if any(line.startswith(WRITTEN) for line in text.splitlines()[:FIRST]):
        return []
    text = re.sub(rf"<!-- {MADE} -->.*?<!-- /{MADE} -->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    wrong = []
    for written, source in SOURCED.findall(text):
        there = (page.parent / source, STUDIES / source)
        if not source.startswith("=") and not any(stands_in(file, written) for file in there):
            wrong.append(f"{page.name}: {written} is said to stand in {source}, and does not")
    for paragraph in re.split(r"\n\s*\n", SOURCED.sub("", text)):
        if "pecimen" in paragraph:
            wrong += [
                f"{page.name}: {found} says not where it comes from: {' '.join(paragraph.split())[:70]} ..."
                for found in FRACTION.findall(paragraph)
            ]
    return wrong


def stands_in(page: Path, written: str) -> bool:
    """Whether a page has a figure, rounded or not."""
    if not page.is_file():
        return False
    digits = len(written.rstrip("%").partition(".")[2])
    wanted = float(written.strip("+%").replace(",", ""))
    found = re.findall(NUMBER, page.read_text(encoding="utf-8"))
    values = [float(one.strip("+%").replace(",", "")) for one in found]
    return any(abs(round(value, digits) - wanted) < 10.0 ** -(digits + 2) for value in values)
