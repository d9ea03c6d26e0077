"""Everything that is worth knowing on a GPU: `bash benchmarks/gpu.sh --json FILE`.

The card's own matrix rate; the patch grid in bfloat16 beside a plain loop of hooks; a checkpoint of
Qwen3-4B's shape streamed through 6 GB; a training step of each graft; the kernels of attention; the tests
marked `gpu`. Each part has a limit of its own, and one that fails leaves the others. `--quick` tries all of
it on a CPU with tiny shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.streaming.checkpoint import QWEN3_4B, write_checkpoint
from benchmarks.streaming.run import TINY, work
from regraft import load
from regraft.systems.kernel_bench import kernel_dataset
from regraft.systems.kernels import AttentionShape

LIMITS = {"grid": 240, "tests": 150, "stream": 100}
"""Seconds of each part; together with the start they stay under nine minutes."""
CARD = "6GB"


def matrix_rate(device: torch.device, quick: bool) -> dict[str, float]:
    """Multiply-adds for each second of one square product, in bfloat16 and float32: the card's own."""
    size = 256 if quick else 8192
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = min(_seconds(lambda a=a, b=b: a @ b, device) for _ in range(5))
        found[str(dtype)[6:]] = size**3 / best
    return found


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def patch_grid(quick: bool) -> dict[str, Any]:
    """The grid of `benchmarks.gpu.grid`, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "grid.json"
        _process(["-m", "benchmarks.gpu.grid", *(["--quick"] if quick else []), "--json", str(file)], "grid")
        found: dict[str, Any] = json.loads(file.read_text())
    for shape in found["shapes"]:
        shape.pop("values", None)  # one for each cell, compared there already
    return found


def streamed(device: torch.device, quick: bool) -> dict[str, Any]:
    """A forward pass, the lens and a knockout of a checkpoint that is larger than what the card may hold."""
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(nowhere)
        size = write_checkpoint(folder, TINY if quick else QWEN3_4B)
        memory = 1 << 40 if quick else CARD
        start = time.perf_counter()
        model = load(folder, stream=True, memory=memory, dtype="bfloat16", device=str(device))
        told = model.streamed
        assert told is not None
        found: dict[str, Any] = {"bytes": size, "opened_s": time.perf_counter() - start}
        found["blocks_that_stay"] = told.placement.pinned
        for what, tokens in (("record", 64), ("lens", 64), ("knockout", 64)):
            read = told.bytes_read
            seconds = _seconds(lambda what=what, tokens=tokens: work(model, what, tokens), device)
            found[what] = {"seconds": seconds, "bytes_read": told.bytes_read - read}
        if device.type == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        return found


def training_steps(device: torch.device) -> dict[str, float]:
    """Seconds of two steps of each graft on the specimen."""
    from regraft import Build, build_head, fit_embedding, fit_head
    from regraft.training.trainer import TrainingPlan

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 400, encoding="utf-8")
        model = load("specimen:gpt2", device=str(device))
        plan = TrainingPlan(steps=2, batch=2, warmup=1)
        out = Path(folder)
        found["embedding"] = _seconds(
            lambda: fit_embedding(model, out / "embedding", [str(text)], plan=plan, length=16, warm=2), device
        )
        build_head(model, out / "head", texts=[str(text)], how=Build(states=200, adapter=1), length=16)
        found["head"] = _seconds(
            lambda: fit_head(model, out / "head", texts=[str(text)], plan=plan, length=16), device
        )
    return found


def attention_kernels(device: torch.device, quick: bool) -> dict[str, Any]:
    """Every kernel of attention in bfloat16 on heads like those of Qwen3-4B: milliseconds, share of the
    card's rate, error, and why some do not run."""
    shape = AttentionShape(1, 32, 8, 128, 1)
    keys = [64] if quick else [512, 2048, 8192]
    data = kernel_dataset(shape, keys, torch.bfloat16, device)
    numbers = {name: data[name].values.tolist() for name in data.data_vars if str(name).startswith("kernel_")}
    return {
        "kernels": data.kernel.values.tolist(), "phases": data.phase.values.tolist(), "keys": keys,
        "dispatched_to": data.dispatched_to.values.tolist(),
        **{str(name): values for name, values in numbers.items()}, **data.attrs,
    }  # fmt: skip


def gpu_tests(quick: bool) -> str:
    """The last line of the tests marked `gpu`; they are collected, and not run, where there is no card."""
    chosen = ["--collect-only", "-q"] if quick else ["-q"]
    return _process(["-m", "pytest", "-m", "gpu", *chosen, "tests/test_gpu.py"], "tests").splitlines()[-1]


def _process(words: list[str], part: str) -> str:
    paths = os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=LIMITS[part], check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout.strip()


def main() -> int:
    """Run the parts, each by itself, and write what they found."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--json", type=Path, required=True)
    words.add_argument("--quick", action="store_true", help="tiny shapes, on a CPU too")
    given = words.parse_args()
    if not torch.cuda.is_available() and not given.quick:
        words.error("this PyTorch sees no GPU: --quick tries the script with tiny shapes on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    found: dict[str, Any] = {"machine": machine(), "card": card, "torch": torch.__version__}
    parts: dict[str, Callable[[], Any]] = {
        "matrix_rate": lambda: matrix_rate(device, given.quick),
        "grid": lambda: patch_grid(given.quick),
        "stream": lambda: streamed(device, given.quick),
        "kernels": lambda: attention_kernels(device, given.quick),
        "training": lambda: training_steps(device),
        "tests": lambda: gpu_tests(given.quick),
    }
    failed = 0
    for name, part in parts.items():
        start = time.perf_counter()
        try:
            found[name] = part()
        except Exception as error:  # one part must not take the others with it; the code says that it failed
            failed += 1
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
