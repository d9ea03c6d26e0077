"""Measure what the default report takes, as a user runs it: `python -m benchmarks.report_time`.

Seconds with the start of the process, size of the page, and the seconds of every chapter, to
`benchmarks/results/report.json`; `python -m benchmarks.peers.speed_page` writes them into docs/speed.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.shared import RESULTS
from regraft.core.runs import open_run
from regraft.reporting.plotly_script import plotly_script


def main() -> None:
    """Run the command once and keep what it took."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "report"
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "regraft", "--quiet", "report", "--out", str(out)], check=True)
        seconds = time.perf_counter() - began
        chapters = {
            run.name: open_run(run).attrs["seconds"]
            for run in sorted(out.iterdir())
            if (run / "run.json").is_file()
        }
        size = (out / "report.html").stat().st_size
    found = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "seconds": seconds,
        "page_bytes": size,
        "script_bytes": len(plotly_script().encode()),
        "chapters": chapters,
    }
    (RESULTS / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{seconds:.0f} s, {size / 1e6:.1f} MB, {len(chapters)} chapters")


if __name__ == "__main__":
    main()
