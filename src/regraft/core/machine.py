"""The machine that numbers were measured on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

_EXACT = ("vendor_id", "cpu family", "model", "model name")


def processor() -> str:
    """The processor's name with what tells it from others of that name: vendor, family, model."""
    return _told(_EXACT)


def measured_on(device: torch.device) -> dict[str, Any]:
    """Attributes of a result whose numbers are seconds: what it was measured on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "machine": gpu or _told(("model name",)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _told(fields: tuple[str, ...]) -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.is_file() else []
    found = [line.partition(":") for line in lines[:40]]
    values = [value.strip() for name, _, value in found if name.strip() in fields]
    return " ".join(dict.fromkeys(values)) or platform.processor() or platform.machine()
