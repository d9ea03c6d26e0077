"""Seconds until regraft is there: whole processes, started in turn."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers.processes import ROOT, quiet_variables

IMPORT_TARGET = 0.3
HELP_TARGET = 0.5


def measure_startup(rounds: int) -> dict[str, float]:
    """Median seconds of `import torch`, `import regraft` and, where the command is installed, of what it says
    without a model: help, its version, a wrong name, a wrong option."""
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import regraft": [sys.executable, "-c", "import regraft"],
        "from regraft import load, sweep": [sys.executable, "-c", "from regraft import load, sweep"],
    }
    if command := _command():
        for words in ("--help", "--version", "lens --help", "nothing", "lens --nothing"):
            commands[f"regraft {words}"] = [command, *words.split()]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    variables = {**quiet_variables(), "PYTHONPATH": str(ROOT / "src")}
    for turn in range(rounds + 1):
        for name, command_line in commands.items():
            start = time.perf_counter()
            done = subprocess.run(command_line, env=variables, capture_output=True)
            wanted = 2 if "nothing" in name else 0
            if done.returncode == wanted and turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items() if times}


def _command() -> str | None:
    beside = Path(sys.executable).parent / "regraft"
    return str(beside) if beside.exists() else shutil.which("regraft")
