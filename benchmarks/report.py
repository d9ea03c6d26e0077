"""What `benchmarks/gpu.sh` found, as tables: `python -m benchmarks.report FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(found: dict[str, Any]) -> str:
    """The parts as Markdown; a part that failed says why."""
    lines = [f"{found['card']}, torch {found['torch']}", "", "| part | figure |", "|---|---|"]
    for name, part in found.items():
        if name in ("machine", "card", "torch"):
            continue
        if isinstance(part, dict) and "failed" in part:
            lines.append(f"| {name} | failed: {part['failed']} |")
            continue
        lines += [f"| {name}{label} | {figure} |" for label, figure in _rows(part)]
    return "\n".join(lines) + "\n"


def _rows(part: Any, label: str = "") -> list[tuple[str, str]]:
    if isinstance(part, dict):
        return [row for key, value in part.items() for row in _rows(value, f"{label} {key}")]
    if isinstance(part, list):
        return [row for number, value in enumerate(part) for row in _rows(value, f"{label} {number}")]
    return [(label, f"{part:.4g}" if isinstance(part, float) else str(part))]


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
