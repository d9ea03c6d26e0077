"""Where the time of the 64-position grid goes: `python -m benchmarks.peers.time_spent`.

Shares of the processor's time by kind of function, and the rate that the matrix products reach beside one
large float32 product: what keeps the grid from the machine's own rate.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.peers.cases import CASES, make_task, save_models
from benchmarks.peers.peer_regraft import Regraft, matrix_rate
from benchmarks.shared import RESULTS

KINDS = {
    "matrix products": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm", "aten::bmm", "aten::matmul"),
    "activation functions and additions": ("aten::mul", "aten::add", "aten::add_", "aten::tanh", "aten::pow"),
    "attention and norms": (
        "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::native_layer_norm", "aten::_softmax",
    ),
    "copies": ("aten::cat", "aten::copy_", "aten::index", "aten::index_put_", "aten::where"),
}  # fmt: skip
"""PyTorch's functions by kind; all others are the rest."""


def main() -> None:
    """Profile one grid behind a warm one, print and keep the shares."""
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    task = make_task(next(case for case in CASES if case.key == "grid64"), quick=False)
    with tempfile.TemporaryDirectory() as folder:
        peer = Regraft()
        peer.load({"gpt2": save_models(Path(folder), quick=False)["gpt2"]})
        peer.grid(task)
        with torch.profiler.profile() as profile:
            peer.grid(task)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    shares = {kind: sum(times.get(name, 0) for name in names) / total for kind, names in KINDS.items()}
    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "shares": shares}
    found |= {"rest": 1 - sum(shares.values()), "matrix_rate": matrix_rate()}
    (RESULTS / "grid-time.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {kind: round(share, 3) for kind, share in shares.items()} | {"rest": round(found["rest"], 3)}
        )
    )


if __name__ == "__main__":
    main()
