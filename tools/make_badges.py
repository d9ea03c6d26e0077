"""Draw the badges of the README from what is so: `python -m tools.make_badges` writes
docs/images/badge-*.svg.

They are files of the project, so that a reader's browser asks nobody; a test holds them to the facts.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from tools.docs_site.public_names import public_names

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
LETTER, ROOM, HIGH = 6.6, 12, 20
"""Pixels of a letter on average, beside the words, and of the whole height."""
LEFT, RIGHT = "#3b4252", "#1f5fae"


def facts() -> dict[str, tuple[str, str]]:
    """What each badge says, read from the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        "python": ("python", project["requires-python"].replace(">=", "≥ ")),
        "license": ("licence", project["license"]),
        "examples": ("public names with an example that runs", f"{len(public_names())}"),
    }


def badge(left: str, right: str) -> str:
    """A badge as SVG."""
    one, other = (round(LETTER * len(words) + 2 * ROOM) for words in (left, right))
    style = 'fill="#fff" font-family="Verdana,sans-serif" font-size="11" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{one + other}" height="{HIGH}" role="img"'
        f' aria-label="{left}: {right}">'
        f'<rect width="{one + other}" height="{HIGH}" rx="3" fill="{LEFT}"/>'
        f'<rect x="{one}" width="{other}" height="{HIGH}" rx="3" fill="{RIGHT}"/>'
        f'<text x="{one / 2}" y="14" {style}>{left}</text>'
        f'<text x="{one + other / 2}" y="14" {style}>{right}</text></svg>\n'
    )


def main() -> None:
    """Write them."""
    for name, words in facts().items():
        (IMAGES / f"badge-{name}.svg").write_text(badge(*words), encoding="utf-8")


if __name__ == "__main__":
    main()
