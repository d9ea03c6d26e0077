"""Run test files again as another machine would: `python tests/machines.py [FILE ...]`, the sensitive ones by default.

The matrix library takes its kernels by the processor's abilities, by the number of threads and by addresses. The first settings
take abilities away, so that this machine computes as another one does; the last plants a library whose sums depend on batch and
address (`other_library`), which no setting of an Intel processor does. All runs must pass.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SENSITIVE = ("test_comparison.py", "test_families.py", "test_engine.py", "test_parts.py", "test_machines.py")
SETTINGS: dict[str, list[str]] = {
    "MKL_CBWR=COMPATIBLE": [],
    "MKL_CBWR=AVX2": [],
    "ATEN_CPU_CAPABILITY=avx2": [],
    "ONEDNN_MAX_CPU_ISA=AVX2": [],
    "two threads": ["--threads", "2"],
    "another library": ["--other-library"],
}


def run(setting: str, options: list[str], files: list[str]) -> bool:
    """One run of the files; says the setting first."""
    name, is_variable, value = setting.partition("=")
    print(f"as another machine: {setting}", flush=True)
    env = {**os.environ, name: value} if is_variable else dict(os.environ)
    return subprocess.run([sys.executable, "-m", "pytest", "-n", "2", "-q", *options, *files], env=env).returncode == 0


def main() -> int:
    """The exit status: 1 where any run failed."""
    here = Path(__file__).parent
    files = sys.argv[1:] or [str(here / name) for name in SENSITIVE]
    failed = [setting for setting, options in SETTINGS.items() if not run(setting, options, files)]
    for setting in failed:
        print(f"failed as another machine: {setting}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
