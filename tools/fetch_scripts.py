"""Bring the scripts of others that pages hold from the npm registry: plotly.js for cartesian figures alone
(1.4 MB in place of 4.8), and the shim by which the documentation is searched from a folder.

Run `python tools/fetch_scripts.py` to take other releases: set a version, and the integrity to what the
registry says of it. A package is held to that hash; its script, its licence and a file about both go to its
folder.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Package(NamedTuple):
    """A release of a package, which of its files are taken, and where they go."""

    name: str
    version: str
    integrity: str
    files: dict[str, str]
    out: Path


PACKAGES = (
    Package(
        "plotly.js-cartesian-dist-min",
        "4.1.1",
        "sha512-o8GrFeusncwBIxbBynRJpY4pkgVB6caM+JLpwrLYbbsO7dZ8FJ+SVN2Fr+L7kiG/Z6w4P5O0Jus/Qr5EefHVeg==",
        {"package/plotly-cartesian.min.js": "plotly-cartesian.min.js", "package/LICENSE": "LICENSE"},
        ROOT / "src" / "regraft" / "reporting" / "plotly",
    ),
    Package(
        "iframe-worker",
        "1.0.4",
        "sha512-roeaaI+Lg1LJNfgpCjoRe/+WzEjy9+Z08LoEvu85MCPbBjwm+qXz8Ag5U05lHa6V1CysZyGzE0SOkAtSUA5q7Q==",
        {"package/shim/index.js": "shim.js", "package/LICENSE": "LICENSE"},
        ROOT / "docs" / "assets" / "iframe-worker",
    ),
)


def fetch(package: Package) -> None:
    """Fetch, compare, write."""
    base = package.name.rpartition("/")[2]
    address = f"https://registry.npmjs.org/{package.name}/-/{base}-{package.version}.tgz"
    with urllib.request.urlopen(address) as answer:
        packed = answer.read()
    found = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
    if found != package.integrity:
        raise SystemExit(
            f"{address} has the hash {found}, and {package.integrity} was asked for: not written"
        )
    package.out.mkdir(parents=True, exist_ok=True)
    told = {
        "package": package.name,
        "version": package.version,
        "integrity": package.integrity,
        "address": address,
        "sha256": {},
    }
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for inside, name in package.files.items():
            member = archive.extractfile(inside)
            assert member is not None, f"{inside} is no file of the package"
            content = member.read()
            (package.out / name).write_bytes(content)
            told["sha256"][name] = hashlib.sha256(content).hexdigest()
    (package.out / "source.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for one in PACKAGES:
        fetch(one)
