"""The machines that tests are run as: `python tests/machines.py` runs the whole suite as each of `WHOLE`.

A matrix library takes its kernels by the processor's abilities, the number of threads, and addresses. The
settings take abilities away, so that this machine computes as another one does; the last plants a library
whose sums depend on batch and address (`other_library`), which no setting of an Intel processor does.
`test_machines` runs the sensitive tests as each machine of `SINGLE`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SINGLE: dict[str, list[str]] = {
    "MKL_CBWR=COMPATIBLE": [],
    "MKL_CBWR=AVX2": [],
    "ATEN_CPU_CAPABILITY=avx2": [],
    "ONEDNN_MAX_CPU_ISA=AVX2": ["--threads", "2"],
    "another library": ["--other-library"],
}
WHOLE: dict[str, list[str]] = {
    "MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=avx2": [],
    "MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2": ["--threads", "2"],
    "another library": ["--other-library"],
}
SENSITIVE = ("test_families.py", "test_engine.py", "test_export.py", "test_patch.py")
CHOSEN = (
    "gptj or mamba2 or qwen3_moe or identity_edits or in_a_blocks_place or suffixes or (read_again and both"
    " and gpt2) or reads_only_what_it_needs or settings_that_were_exported or to_the_bit"
)
"""The tests that parted on another machine once, and those that hold a fast path to a slow one."""
FEWER = (
    "identity_edits or in_a_blocks_place or suffixes or reads_only_what_it_needs or (to_the_bit and not"
    " export)"
)
"""Those of them that run with several threads, which the runner's two processes and their threads make slow,
and with the planted library, which is slow itself."""


def as_machine(setting: str, arguments: list[str]) -> list[str]:
    """The command that runs pytest with some arguments; `environment` goes with it."""
    return [sys.executable, "-m", "pytest", "-q", *{**SINGLE, **WHOLE}[setting], *arguments]


def environment(setting: str) -> dict[str, str]:
    """This process's variables and those of a setting."""
    return {**os.environ, **dict(word.split("=") for word in setting.split() if "=" in word)}


def main() -> int:
    """Run the whole suite as each machine; the exit status is 1 where any run failed."""
    failed = []
    for setting in WHOLE:
        print(f"as another machine: {setting}", flush=True)
        workers = (
            "0" if "--threads" in WHOLE[setting] else "2"
        )  # threads of several processes wait for each other
        command = as_machine(setting, ["-n", workers, "--deselect", "tests/test_machines.py", str(HERE)])
        if subprocess.run(command, env=environment(setting)).returncode:
            failed.append(setting)
    print(*(f"failed as another machine: {setting}" for setting in failed), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
