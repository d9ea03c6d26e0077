"""The most that a process holds while it streams: its own resident memory, read from the system."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from regraft.core.sizes import bytes_of

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "num_hidden_layers": 14, "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 3584,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64,
}  # fmt: skip
"""Fourteen blocks of 28 MiB in bfloat16."""
ALLOWED = "0.75GiB"
"""Over what PyTorch and its libraries take: half a GiB that is kept free for scores, and a quarter for
weights that take more than a third."""


@pytest.fixture
def streaming(monkeypatch):
    """The benchmark's checkpoint and its cases, each in a process of its own."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return (importlib.import_module(f"benchmarks.streaming.{name}") for name in ("checkpoint", "run"))


def test_a_process_stays_below_what_it_was_allowed(streaming, tmp_path):
    checkpoint, run = streaming
    size = checkpoint.write_checkpoint(tmp_path, {**checkpoint.QWEN3_4B, **SMALL})
    assert size > 0.36 * 2**30
    found = run.in_process(tmp_path, "knockout", 32, f"+{ALLOWED}")
    assert found["peak_bytes"] - found["held_before"] < bytes_of(ALLOWED)
    assert found["blocks_that_stay"] < 10
    blocks = size - 4096 * 1024 * 2
    turning = blocks * (found["blocks"] - found["blocks_that_stay"]) / found["blocks"]
    assert found["walks"] == 2, "recorded once, swept once"
    assert found["bytes_read"] == pytest.approx(2 * turning, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "tokens", "walks"), [("record", 64, 1), ("lens", 256, 2), ("knockout", 64, 2)]
)
def test_the_shape_of_qwen3_4b_in_three_gib(what, tokens, walks, streaming, tmp_path_factory):
    checkpoint, run = streaming
    folder = tmp_path_factory.getbasetemp() / "qwen3-4b"
    size = checkpoint.write_checkpoint(folder, checkpoint.QWEN3_4B)
    assert size == 8_044_936_192
    found = run.in_process(folder, what, tokens, run.LIMIT)
    assert found["peak_bytes"] < bytes_of(run.LIMIT) < 3 * 2**30
    assert found["walks"] == walks
    each = (size - 151_936 * 2560 * 2 - 2560 * 2) / 36
    turning = found["blocks"] - found["blocks_that_stay"]
    assert found["bytes_read"] == pytest.approx(walks * turning * each, rel=0.01)
