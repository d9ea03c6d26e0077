"""Measure the kernels of attention on this machine: `python -m tools.kernel_survey` writes the table of
docs/kernels.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from benchmarks.measured_part import table, write_measured
from regraft.systems.kernel_bench import KEYS, kernel_dataset
from regraft.systems.kernels import AttentionShape

PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
SHAPE = AttentionShape(1, 8, 2, 64, 1)
"""One text, eight query heads over two key heads of width 64."""
HEAD = (
    "kernel",
    "phase",
    "keys",
    "ms",
    "TFLOP/s",
    "share of a product",
    "GB/s",
    "MiB beside",
    "error",
    "allowed",
)


def _rows(data: xr.Dataset) -> list[list[str]]:
    found = []
    for kernel in data.kernel.values:
        for phase in data.phase.values:
            for keys in data.key_count.values:
                one = data.sel(kernel=kernel, phase=phase, key_count=keys)
                if np.isnan(one.kernel_ms):
                    continue
                moved = f"{float(one.kernel_bandwidth):.1f}" if phase == "decode" else ""
                found.append([
                    f"`{kernel}`", str(phase), f"{keys:,}", f"{float(one.kernel_ms):.3g}",
                    f"{float(one.kernel_rate):.3f}", f"{float(one.kernel_share):.0%}", moved,
                    f"{float(one.kernel_peak) / 2**20:.2f}", f"{float(one.kernel_error):.1e}",
                    f"{float(one.kernel_allowed):.1e}",
                ])  # fmt: skip
    return found


def main() -> None:
    """Write the table."""
    data = kernel_dataset(SHAPE, KEYS, torch.float32, torch.device("cpu"))
    told = data.attrs
    wrong = int((data.kernel_error > data.kernel_allowed).sum())
    lines = [
        f"{SHAPE.heads} query heads over {SHAPE.key_heads} key heads of width {SHAPE.width}, one text,"
        f" float32, PyTorch {told['torch']} on {told['machine']}, {told['threads']} threads. A square product"
        f" reaches {told['product_flops'] / 1e12:.3f} TFLOP/s here, a copy"
        f" {told['copy_bytes'] / 1e9:.1f} GB/s."
        f" {wrong or 'No'} results are beyond what is allowed.",
        "",
        *table(HEAD, _rows(data), words=2),
        "",
        "Not usable here:",
        "",
    ]  # fmt: skip
    for kernel, why in json.loads(told["unusable"]).items():
        lines += [f"- `{kernel}` ({', '.join(why)}): {'; '.join(dict.fromkeys(why.values()))}"]
    write_measured(PAGE, lines)


if __name__ == "__main__":
    main()
