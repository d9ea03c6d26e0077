"""The script for graphics cards, tried with tiny shapes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.report").table


@pytest.mark.slow
def test_the_script_runs_on_a_cpu_with_tiny_shapes(table, tmp_path):
    file = tmp_path / "gpu.json"
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--quick", "--json", str(file)],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + file.read_text()
    found = json.loads(file.read_text())
    assert set(found) >= {"card", "matrix_rate", "grid", "stream", "training", "tests"}
    assert found["stream"]["knockout"]["seconds"] > 0
    assert set(found["training"]) == {"embedding", "head"}
    assert "| stream knockout seconds |" in table(found)


def test_a_part_that_failed_says_so_in_the_table(table):
    found = {"card": "x", "torch": "2", "machine": {}, "grid": {"failed": "no room"}, "rate": {"a": 1.25e12}}
    assert table(found).splitlines()[-2:] == ["| grid | failed: no room |", "| rate a | 1.25e+12 |"]
