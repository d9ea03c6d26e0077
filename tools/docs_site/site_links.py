"""What the built site is held to: every link leads somewhere, and nothing is fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Elements that a browser fetches by itself, and the attribute that says what."""
KEPT_BY_NAME = ("canonical", "next", "prev")
"""Relations of a link element that fetch nothing."""


class Page(HTMLParser):
    """The places of a page that links lead to, its links, and what it fetches."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.places: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element offers or asks for."""
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and given.get(FETCHED[tag]) and given.get("rel", "") not in KEPT_BY_NAME:
            self.fetched.append(given[FETCHED[tag]])


def wrong_links(site: Path) -> list[str]:
    """Links inside a site that lead nowhere, and what its pages fetch from elsewhere, as sentences."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    return [
        f"{file.relative_to(site)}: {said}"
        for file, page in sorted(pages.items())
        for said in [*_nowhere(file, page, pages), *_elsewhere(file, page)]
    ]


def _nowhere(file: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        if there.is_dir():
            there /= "index.html"
        if not there.is_file():
            yield f"the link {link} leads nowhere"
        elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].places:
            yield f"the link {link} leads to a place that its page does not have"


def _elsewhere(file: Path, page: Page) -> Iterator[str]:
    for name in page.fetched:
        parts = urlsplit(name)
        if parts.scheme in ("http", "https") or parts.netloc:
            yield f"{name} is fetched from elsewhere"
        elif not parts.scheme and not (file.parent / unquote(parts.path)).is_file():
            yield f"{name} is fetched and is not there"
