"""One forward pass by AirLLM, which streams layers, too: run by its own environment's Python.

`python with_airllm.py FOLDER TOKENS`: opens a checkpoint (which writes a second copy of it beside), runs a
warm pass and three more, and prints seconds and peak as one line of JSON.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch


def peak() -> int:
    """The most resident memory of this process so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def main() -> None:
    """Open, run, print."""
    from airllm import AutoModel

    folder, tokens = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(2)
    ids_BT = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as copy, torch.no_grad():
        start = time.perf_counter()
        model = AutoModel.from_pretrained(
            folder, device="cpu", dtype=torch.bfloat16, layer_shards_saving_path=copy
        )
        opened, seconds = time.perf_counter() - start, []
        for _ in range(4):
            start = time.perf_counter()
            model.forward(ids_BT, use_cache=False)
            seconds.append(time.perf_counter() - start)
        written = sum(file.stat().st_size for file in Path(copy).rglob("*") if file.is_file())
    told = {"opened_s": opened, "seconds": statistics.median(seconds[1:]), "peak_bytes": peak()}
    print(json.dumps({**told, "bytes_written": written, "tokens": tokens, "airllm": version("airllm")}))


if __name__ == "__main__":
    main()
