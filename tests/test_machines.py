"""The sensitive tests once more, as other machines: fewer abilities, more threads, another library and
misaligned weights."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from machines import CHOSEN, FEWER, SENSITIVE, SINGLE, as_machine, environment

LIKE_ANOTHER = (
    "ATEN_CPU_CAPABILITY=avx2", "MKL_CBWR=AVX2", "MKL_CBWR=COMPATIBLE", "ONEDNN_MAX_CPU_ISA=AVX2",
)  # fmt: skip
"""Settings under which the sums are nearly those of one of the others, or nearer than those of the planted
library: among the slow tests."""


@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_ANOTHER)) for name in SINGLE]
)
def test_the_sensitive_tests_hold_on_another_machine(setting, tmp_path):
    chosen = FEWER if SINGLE[setting] else CHOSEN
    files = [str(Path(__file__).parent / name) for name in SENSITIVE]
    command = as_machine(
        setting, ["-p", "no:cacheprovider", "--basetemp", str(tmp_path / "t"), "-k", chosen, *files]
    )
    done = subprocess.run(command, capture_output=True, text=True, env=environment(setting))
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= (20 if chosen == CHOSEN else 10), "the tests that it names are there"
