"""How much memory some work takes beyond what is there when it begins, at its highest."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The highest sum of bytes that PyTorch's allocator has handed out during some work, over that at its
    start.

    On a CPU every allocation and release is read from the profiler, so what else the process does is not
    counted.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with (
        no_native_chatter(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen,
    ):
        work()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted(
        (event["ts"], number, event["args"]["Bytes"])
        for number, event in enumerate(events)
        if _is_memory(event)
    )
    return max(accumulate((size for _, _, size in changes), initial=0))


@contextmanager
def no_native_chatter() -> Iterator[None]:
    """While inside, nothing below Python writes to the error stream: the profiler announces itself there."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _is_memory(event: dict[str, Any]) -> bool:
    return event.get("name") == "[memory]" and event.get("args", {}).get("Device Type") == 0
