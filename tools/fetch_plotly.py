"""Bring the drawing library that every page holds from the npm registry: plotly.js for cartesian figures
alone, 1.4 MB in place of 4.8.

Run `python tools/fetch_plotly.py` to take another release: set VERSION, and INTEGRITY to what the registry
says of it. The package is held to that hash; the script, its licence and a line about both go to
src/regraft/reporting/plotly/.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import urllib.request
from pathlib import Path

PACKAGE, VERSION = "plotly.js-cartesian-dist-min", "4.1.1"
INTEGRITY = "sha512-o8GrFeusncwBIxbBynRJpY4pkgVB6caM+JLpwrLYbbsO7dZ8FJ+SVN2Fr+L7kiG/Z6w4P5O0Jus/Qr5EefHVeg=="
FILES = {"package/plotly-cartesian.min.js": "plotly-cartesian.min.js", "package/LICENSE": "LICENSE"}
OUT = Path(__file__).parent.parent / "src" / "regraft" / "reporting" / "plotly"


def main() -> None:
    """Fetch, compare, write."""
    address = f"https://registry.npmjs.org/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
    with urllib.request.urlopen(address) as answer:
        packed = answer.read()
    found = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
    if found != INTEGRITY:
        raise SystemExit(
            f"{address} has the hash {found}, and {INTEGRITY} was asked for: nothing was written"
        )
    OUT.mkdir(parents=True, exist_ok=True)
    told = {"package": PACKAGE, "version": VERSION, "integrity": INTEGRITY, "address": address, "sha256": {}}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for inside, name in FILES.items():
            member = archive.extractfile(inside)
            assert member is not None, f"{inside} is no file of the package"
            content = member.read()
            (OUT / name).write_bytes(content)
            told["sha256"][name] = hashlib.sha256(content).hexdigest()
    (OUT / "source.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
