"""Kernels of attention measured side by side: time, work, memory and how far each is from float64.

Shapes: B texts, H query heads, G key heads, q queries, s keys, K width of a head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.machine import measured_on
from regraft.core.memory import peak_bytes
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.systems.kernels import (
    KERNELS,
    PHASES,
    AttentionShape,
    Kernel,
    call_of,
    chosen,
    inputs,
    read_bytes,
    tried,
    work,
)
from regraft.systems.timing import NOTHING, Timed, take_turns

KEYS = (128, 512, 1024)
"""Keys of a call where none are named: each kernel in seconds, and where their order changes."""
ROUNDS = 7
"""Rounds of each shape: eager takes a tenth of a second at a thousand keys."""
MATRIX, COPIED = 1024, 1 << 26
"""Side of the square product, and bytes of the copy, by which the machine's own rates are measured."""
FIRST = 4
"""Positions at the beginning whose error is told apart: they read few keys, and sinks stand there."""
ALLOWED = 8
"""Roundings of the numbers' own type, times the root of the keys, within which a kernel is right."""
SOURCE = "timed in turns (FlashAttention's formulas for work: Dao et al., 2022)"


def allowed(dtype: torch.dtype, keys: int) -> float:
    """How far from float64 a kernel may be."""
    return ALLOWED * torch.finfo(dtype).eps * keys**0.5


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Floating-point operations a second of a square product, and bytes a second that a copy reads and
    writes."""
    drawn = torch.Generator().manual_seed(0)
    a, b = (torch.randn(MATRIX, MATRIX, generator=drawn).to(device, dtype) for _ in range(2))
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = take_turns({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, device, ROUNDS)
    return 2 * MATRIX**3 / times["product"].median_s, 2 * COPIED / times["copy"].median_s


def kernel_dataset(
    shape: AttentionShape,
    keys: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    kernels: Sequence[Kernel] = KERNELS,
    clock: Callable[..., dict[str, Timed]] = take_turns,
) -> xr.Dataset:
    """Every kernel at every phase and number of keys.

    Args:
        shape: sizes of a call; its keys are replaced by each of `keys`.
        dtype: of the inputs; the reference is eager in float64 on the same inputs.
        clock: what times calls; tests give their own.
    """
    product, copy = rates(device, dtype)
    table = _KernelTable([k.name for k in kernels], list(keys))
    for number, length in enumerate(keys):
        for phase in PHASES:
            _one(replace(shape, keys=length), phase, dtype, device, kernels, clock, table)
        advance("numbers of keys", number + 1, len(keys))
    one = replace(shape, keys=1)
    calls = _usable(one, "prefill", dtype, device, kernels)[0]
    launch = clock(calls, device, ROUNDS) if calls else {}
    return table.dataset(product, copy, launch).assign_attrs(
        texts=shape.texts, heads=shape.heads, key_heads=shape.key_heads, head_width=shape.width,
        dtype=str(dtype).removeprefix("torch."), **measured_on(device),
    )  # fmt: skip


def _usable(
    shape: AttentionShape, phase: str, dtype: torch.dtype, device: torch.device, kernels: Sequence[Kernel]
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Tensor], dict[str, str]]:
    """Calls and results of the kernels that take a shape, and why the others do not."""
    given = inputs(shape, phase, dtype, device)
    calls, made, why = {}, {}, {}
    for kernel in kernels:
        out, reason = tried(kernel, given, phase)
        if out is None:
            why[kernel.name] = reason
        else:
            calls[kernel.name], made[kernel.name] = call_of(kernel, given, phase), out
    return calls, made, why


class _KernelTable:
    """What was measured: numbers by kernel, phase and number of keys."""

    def __init__(self, kernels: list[str], keys: list[int]):
        self.kernels, self.keys = kernels, keys
        self.cells: dict[str, np.ndarray] = {}
        self.why: dict[str, dict[str, str]] = {}
        self.taken = np.full((len(PHASES), len(keys)), "", dtype=object)
        self.floor: list[float] = []

    def put(self, name: str, kernel: str, phase: str, keys: int, value: float) -> None:
        """One number."""
        sizes = (len(self.kernels), len(PHASES), len(self.keys))
        cell = self.kernels.index(kernel), PHASES.index(phase), self.keys.index(keys)
        self.cells.setdefault(name, np.full(sizes, np.nan))[cell] = value

    def dataset(self, product: float, copy: float, launch: dict[str, Timed]) -> xr.Dataset:
        """All of it with units."""
        cell, seconds = ("kernel", "phase", "key_count"), self.cells["seconds"]
        rate, moved = self.cells["work"] / seconds, self.cells["bytes"] / seconds
        data: dict[str, Any] = {
            "kernel_ms": quantity(cell, seconds * 1e3, "milliseconds of a call, median",
                                  "Kernels take turns; none: it does not take this shape.", SOURCE),
            "kernel_slow": quantity(cell, self.cells["slow"] * 1e3,
                                    "milliseconds that one call in a hundred exceeds",
                                    "What a busy moment costs."),
            "kernel_rate": quantity(cell, rate / 1e12, "TFLOP/s", "Work by formula, over the median."),
            "kernel_share": quantity(cell, rate / product, "share of the rate of a square product here",
                                     "How near a kernel comes to what the machine can do."),
            "kernel_bandwidth": quantity(cell, moved / 1e9, "GB/s of keys and values read (decode)",
                                         "What bounds a token more is reading all keys."),
            "kernel_bandwidth_share": quantity(cell, moved / copy, "share of the rate of a copy here",
                                               "Above 1: they lie in the processor's own memory."),
            "kernel_peak": quantity(cell, self.cells["peak"], "bytes at most beyond the inputs",
                                    "Eager holds every pair's score."),
            "kernel_error": quantity(cell, self.cells["error"], "largest difference from eager in float64",
                                     "Held against `kernel_allowed`."),
            "kernel_mean_error": quantity(cell, self.cells["mean"], "mean difference from eager in float64",
                                          "Of all numbers."),
            "kernel_first_error": quantity(cell, self.cells["first"],
                                           "largest difference at the first four positions",
                                           "They read few keys."),
            "kernel_allowed": quantity("key_count", self.cells["allowed"][0, 0],
                                       "difference within which a kernel is right",
                                       "Eight roundings times the root of the keys."),
            "kernel_launch": quantity("kernel", [launch[k].median_s * 1e3 if k in launch else np.nan
                                                 for k in self.kernels],
                                      "milliseconds of a call with one token", "What starting it costs."),
            "kernel_saved": quantity(("phase", "key_count"), self._saved(),
                                     "share of time that the fastest saves beside the dispatcher's choice",
                                     "0: the dispatcher chose the fastest."),
        }  # fmt: skip
        coords = {
            "kernel": self.kernels, "phase": list(PHASES), "key_count": self.keys,
            "dispatched_to": (("phase", "key_count"), self.taken.astype(str)),
        }  # fmt: skip
        attrs = {"unusable": json.dumps(self.why), "product_flops": product, "copy_bytes": copy,
                 "kernel_floor_ms": float(np.median(self.floor)) * 1e3}  # fmt: skip
        return xr.Dataset(data, coords=coords, attrs=attrs)

    def _saved(self) -> np.ndarray:
        seconds = self.cells["seconds"]
        if "dispatched" not in self.kernels:
            return np.full(seconds.shape[1:], np.nan)
        own = seconds[self.kernels.index("dispatched")]
        return 1 - np.nanmin(seconds, axis=0) / own


def _one(
    shape: AttentionShape, phase: str, dtype: torch.dtype, device: torch.device, kernels: Sequence[Kernel],
    clock: Callable[..., dict[str, Timed]], table: _KernelTable,
) -> None:  # fmt: skip
    """Measure one phase at one number of keys."""
    calls, made, why = _usable(shape, phase, dtype, device, kernels)
    for name, reason in why.items():
        table.why.setdefault(name, {})[phase] = reason
    given = inputs(shape, phase, dtype, device)
    table.taken[PHASES.index(phase), table.keys.index(shape.keys)] = chosen(given, phase)
    exact = tuple(one.detach().double().requires_grad_(phase == "backward") for one in given)
    wanted = call_of(KERNELS[0], exact, phase)()
    for kernel in kernels:
        table.put("allowed", kernel.name, phase, shape.keys, allowed(dtype, shape.keys))
    times = clock({NOTHING: lambda: None, **calls}, device, ROUNDS)
    table.floor.append(times[NOTHING].median_s)
    skips = {kernel.name: kernel.skips for kernel in kernels}
    for name, call in calls.items():
        apart = (made[name].detach().double() - wanted).abs()
        numbers = {
            "seconds": times[name].median_s,
            "slow": times[name].percentile_s(0.99),
            "work": work(shape, phase, skips[name]),
            "bytes": read_bytes(shape, dtype) if phase == "decode" else np.nan,
            "peak": peak_bytes(call, device),
            "error": float(apart.max()),
            "mean": float(apart.mean()),
            "first": float(apart[:, :, :FIRST].max()),
        }
        for what, value in numbers.items():
            table.put(what, name, phase, shape.keys, value)
