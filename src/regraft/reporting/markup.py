"""Pieces of HTML that pages are made of: sections, tables, text with marks, values inside scripts."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """One section of a page: where a link jumps to, its title, its HTML, its figures by the places that they
    are drawn in, the experiment that it is of, and what it found in one sentence."""

    anchor: str
    title: str
    text: str
    figures: dict[str, Any] = field(default_factory=dict)
    experiment: str = ""
    headline: str = ""


@dataclass(frozen=True)
class Marked:
    """A text in pieces, every second one marked, the first one plain."""

    pieces: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(self.pieces)


def in_script(value: Any) -> str:
    """A value as JSON that stands inside a script element: no text in it can end the element or open a
    comment.

    JSON and JavaScript read the escapes as the characters that they stand for. What is not ASCII, the line
    separators of Unicode among it, is escaped by `json.dumps` itself.
    """
    text = json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def cell(text: str | Marked) -> str:
    """A text as HTML shows it."""
    if isinstance(text, str):
        return html.escape(text)
    shown = [html.escape(piece) for piece in text.pieces]
    return "".join(f"<mark>{one}</mark>" if i % 2 else one for i, one in enumerate(shown))


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | Marked]],
    numbers: Sequence[int] = (),
    minor: Sequence[int] = (),
) -> str:
    """An HTML table; columns in `numbers` are set as figures, those in `minor` are left out on a phone."""

    def opened(tag: str, column: int) -> str:
        kinds = [name for name, some in (("number", numbers), ("minor", minor)) if column in some]
        return f'<{tag} class="{" ".join(kinds)}">' if kinds else f"<{tag}>"

    def line(tag: str, row: Sequence[str | Marked]) -> str:
        return "<tr>" + "".join(f"{opened(tag, i)}{cell(one)}</{tag}>" for i, one in enumerate(row)) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{line("th", header)}</thead><tbody>{body}</tbody></table></div>'


def chapter(anchor: str, title: str, inside: str) -> str:
    """A section of a page: its heading, a link to itself, and what it holds, as HTML."""
    return (
        f'<section id="{anchor}"><h3>{html.escape(title)} {link_to(anchor, title)}</h3>'
        f'{inside}<p class="up"><a href="#top">Back to top</a></p></section>'
    )


def link_to(place: str, name: str) -> str:
    """A small link to a place of the page, to copy."""
    return f'<a class="here" href="#{place}" aria-label="Link to {html.escape(name)}">#</a>'


def plain_section(anchor: str, title: str, sentence: str, rows: Sequence[Sequence[str]] = ()) -> Section:
    """A section of one sentence, and a table of chapters and reasons where there are some."""
    listed = table(["chapter", "reason"], rows) if rows else ""
    return Section(anchor, title, chapter(anchor, title, f"<p>{html.escape(sentence)}</p>{listed}"))
