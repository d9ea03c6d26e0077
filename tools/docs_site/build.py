"""Build the documentation site: `python -m tools.docs_site.build` (or `make docs`).

Pages written by hand (`docs/*.md`) are laid beside pages made now: the references from the code, the
tutorials as they run, the gallery from a report. Then MkDocs builds all of it with warnings as errors, and
the result is checked.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from regraft.reporting import plotly_script
from regraft.reporting.theme import scale_styles
from tools.docs_site import api_pages, command_pages, gallery, site_page, tutorials
from tools.docs_site.figures import without_source
from tools.docs_site.site_links import wrong_links

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES, SITE = ROOT / "build" / "pages", ROOT / "site"
BESIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that stand in the project's root, and their names on the site."""
NO_SEARCH = "---\nsearch: {exclude: true}\n---\n\n"
"""In front of pages that would come first for every word: they name everything."""
SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would fetch for the search of a site that is opened from a folder."""
SCHEMES = {
    "light": '[data-md-color-scheme="default"] .still{{{}}}',
    "dark": '[data-md-color-scheme="slate"] .still{{{}}}',
}


def lay_pages(folder: Path) -> None:
    """Copy what is written by hand; links between the root and docs/ become links inside the site."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("tutorials"))
    for name, other in BESIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        (folder / other).write_text(NO_SEARCH + moved(text), encoding="utf-8")
    for page in folder.glob("*.md"):
        page.write_text(moved(page.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "assets" / "scales.css").write_text(scale_styles(SCHEMES), encoding="utf-8")
    (folder / "assets" / plotly_script.FILE).write_text(plotly_script.plotly_script(), encoding="utf-8")


def moved(text: str) -> str:
    """A page with its links to pages of the root as they are on the site."""
    for name, other in BESIDE.items():
        text = re.sub(rf"\]\((\.\./)?{name}", f"]({other}", text)
    return text


def from_here(site: Path) -> None:
    """Let the site be read from a folder: the script by which the search runs there comes from the site
    itself, and the page for addresses that are not there, which a server alone shows, is left out."""
    (site / "404.html").unlink()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if SHIM in text:
            up = "../" * (len(page.relative_to(site).parts) - 1)
            page.write_text(text.replace(SHIM, f"{up}assets/iframe-worker/shim.js"), encoding="utf-8")


def make_pages(folder: Path) -> list[str]:
    """Make the pages that no one writes; returns what is wrong with them."""
    began = time.monotonic()

    def done(what: str) -> None:
        print(f"{what} after {time.monotonic() - began:.0f} s", flush=True)

    wrong = [one for page in sorted((ROOT / "docs").glob("*.md")) for one in without_source(page)]
    command_pages.write_pages(folder / "commands")
    wrong += api_pages.write_pages(folder / "reference")
    site_page.write_page(folder / "reference")
    done("references made, every example run")
    taken = tutorials.write_pages(folder / "tutorials")
    done("tutorials run (" + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in taken.items()) + ")")
    gallery.write_page(folder)
    done("a report and the gallery made")
    return wrong


def main() -> int:
    """Build everything; the exit status is 1 where an example, a link or a page is wrong."""
    lay_pages(PAGES)
    wrong = make_pages(PAGES)
    if not wrong:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return 1
        from_here(SITE)
        wrong = wrong_links(SITE)
    for one in wrong:
        print(f"\n{one}", file=sys.stderr)
    if wrong:
        print(f"\n{len(wrong)} things are wrong", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in SITE.rglob("*") if file.is_file())
    print(
        json.dumps(
            {"site": SITE.name, "pages": len(list(SITE.rglob("*.html"))), "MiB": round(size / 2**20, 1)}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
