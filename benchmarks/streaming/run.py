"""A checkpoint of Qwen3-4B's shape under 3 GiB: `python -m benchmarks.streaming.run --folder DIR`.

Every case is a process of its own, whose highest resident memory (VmHWM) is reported, with the bytes that
were read of the weight files. Speed beside the weights in memory is taken at a size that fits, in turns, both
with the files in the page cache. Results: benchmarks/results/streaming.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.shared import RESULTS
from benchmarks.sizes import memory
from benchmarks.streaming.checkpoint import QWEN3_4B, write_checkpoint
from regraft import Route, Variant, load, sweep
from regraft.core.sizes import bytes_of
from regraft.experiments.observe.lens import read_depths
from regraft.model.model import Model
from regraft.sweeps.metrics import loss

LIMIT = "2.75GiB"
"""What the process of a case is given."""
FITS = {**QWEN3_4B, "num_hidden_layers": 10, "vocab_size": 8192}
"""Ten blocks of the same shape: small enough to be in memory as a whole."""
TINY = {
    **QWEN3_4B, "num_hidden_layers": 6, "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
"""The same kind, for tests."""


def ids_of(count: int, vocabulary: int) -> list[int]:
    """Some tokens, spread over a vocabulary."""
    return [5 + (37 * i) % (vocabulary - 5) for i in range(count)]


def work(model: Model, what: str, tokens: int) -> None:
    """A forward pass; the logit lens at every depth and token; every block left out by itself."""
    recording = model.record([ids_of(tokens, model.table_rows)])
    if what == "lens":
        read_depths(recording)
    elif what == "knockout":
        count = len(model.blocks)
        sweep(recording, [Variant(route=Route.skip(count, {block})) for block in range(count)], loss())
    else:
        assert what == "record", what


def case(folder: str, what: str, tokens: int, limit: str) -> dict[str, Any]:
    """One piece of work on a streamed model in this process: seconds, peak, bytes and reads of each block.

    A limit with a plus in front comes on top of what the process holds before it opens the model, which
    hangs on how PyTorch was built.
    """
    held = memory("VmRSS")
    allowed = held + bytes_of(limit[1:]) if limit.startswith("+") else limit
    start = time.perf_counter()
    model = load(folder, stream=True, memory=allowed, dtype="bfloat16")
    opened = time.perf_counter() - start
    streamed = model.streamed
    assert streamed is not None
    read, reads = streamed.bytes_read, streamed.reads
    start = time.perf_counter()
    work(model, what, tokens)
    seconds = time.perf_counter() - start
    return {
        "what": what, "tokens": tokens, "limit": limit, "opened_s": round(opened, 1),
        "seconds": round(seconds, 1), "held_before": held, "peak_bytes": memory("VmHWM"),
        "bytes_read": streamed.bytes_read - read,
        "walks": max(after - before for after, before in zip(streamed.reads, reads, strict=True)),
        "blocks_that_stay": streamed.placement.pinned, "blocks": len(model.blocks),
        "head_stays": streamed.placement.head,
    }  # fmt: skip


def in_process(folder: Path, *words: Any) -> dict[str, Any]:
    """A case in a process of its own."""
    code = (
        "import sys, json; from benchmarks.streaming.run import case; a = sys.argv[1:];"
        " print(json.dumps(case(a[0], a[1], int(a[2]), a[3])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def beside_memory(folder: Path, what: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of the same work with all weights in memory and with two blocks at a time, in turns."""
    whole = load(folder, dtype="bfloat16", pack=False)
    everything = load(folder, dtype="bfloat16", stream=True, memory=1 << 40).streamed
    assert everything is not None
    head_and_two = memory("VmRSS") + (1 << 29) + everything.sizes.least + everything.sizes.embedding
    streamed = load(folder, dtype="bfloat16", stream=True, memory=head_and_two)
    assert streamed.streamed is not None
    seconds: dict[str, list[float]] = {"in memory": [], "streamed": []}
    for turn in range(rounds + 1):
        for name, model in (("in memory", whole), ("streamed", streamed)):
            took = _seconds(lambda model=model: work(model, what, tokens))
            seconds[name] += [took] if turn else []
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "what": what, "tokens": tokens, "blocks": len(whole.blocks), "rounds": rounds,
        "blocks_that_stay": streamed.streamed.placement.pinned, "files": "in the page cache for both",
        "in_memory_s": round(medians["in memory"], 2), "streamed_s": round(medians["streamed"], 2),
        "speed": round(medians["in memory"] / medians["streamed"], 3),
    }  # fmt: skip


def with_airllm(python: str, folder: Path) -> dict[str, Any]:
    """A forward pass of 64 tokens by AirLLM and by this package in turns, files in the page cache for
    both."""
    script = Path(__file__).with_name("with_airllm.py")
    done = subprocess.run(
        [python, str(script), str(folder), "64"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}
    theirs = json.loads(done.stdout.strip().splitlines()[-1])
    return {**theirs, "beside": in_process(folder, "record", 64, LIMIT)}


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Write the checkpoints, run the cases, keep the results."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument(
        "--airllm", metavar="PYTHON", help="of an environment with airllm: one forward pass of it beside"
    )
    words.add_argument("--folder", type=Path, help="where the checkpoints are, or are written (9 GB)")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as nowhere:
        folder = given.folder or Path(nowhere)
        size = write_checkpoint(folder / "qwen3-4b", QWEN3_4B)
        write_checkpoint(folder / "fits", FITS)
        found: dict[str, Any] = {"machine": machine(), "threads": torch.get_num_threads(), "bytes": size}
        found["under_3_GiB"] = []
        for what, tokens in (("record", 64), ("lens", 256), ("knockout", 64)):
            found["under_3_GiB"].append(in_process(folder / "qwen3-4b", what, tokens, LIMIT))
            print(found["under_3_GiB"][-1], flush=True)
        if given.airllm:
            found["airllm"] = with_airllm(given.airllm, folder / "qwen3-4b")
        found["beside_memory"] = [
            beside_memory(folder / "fits", what, tokens, 3)
            for what, tokens in (("lens", 256), ("knockout", 64))
        ]
    for one in found["beside_memory"]:
        print(one)
    (RESULTS / "streaming.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
