"""Which machine and which arithmetic a file of the language-model codec needs, told and compared.

A model's scores differ in the last bits between processors, libraries and numbers of threads, and one other
bit is enough to lose a text. So the header tells all of it, and the scores of a fixed text, to the bit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from regraft.codecs.frame import DamagedFileError
from regraft.core.machine import processor

MOST_THREADS = 256
"""More are not asked of any machine."""
SETTINGS = ("MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Variables of the environment by which libraries choose how they sum."""


class OtherMachineError(ValueError):
    """A file that another machine, library or model wrote; the message says which."""


def arithmetic(threads: int, dtype: torch.dtype) -> dict[str, Any]:
    """What this process computes with, `threads` of them."""
    return {
        "processor": processor(),
        "abilities": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def check_arithmetic(told: Any, dtype: torch.dtype) -> int:
    """Make sure that this process computes as the one that packed did; how many threads to take.

    Raises:
        OtherMachineError: it does not.
        DamagedFileError: the header does not say how.
    """
    threads = told.get("threads") if isinstance(told, dict) else None
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise DamagedFileError("its header does not say with how many threads it was packed: it is damaged")
    here = arithmetic(threads, dtype)
    parted = [
        f"{name} {told.get(name)!r}, here {here[name]!r}" for name in here if told.get(name) != here[name]
    ]
    if parted:
        raise OtherMachineError(
            f"it was packed with {'; '.join(parted)}: scores of another machine or library differ in their"
            " last bits, so unpack it where it was packed"
        )
    return threads


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """While inside, PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def digest(scores: torch.Tensor) -> str:
    """A hash of scores, to the bit."""
    return hashlib.sha256(scores.contiguous().float().numpy().tobytes()).hexdigest()[:32]
