"""The most that a process holds while it streams: its own resident memory, read from the system."""

from __future__ import annotations

import pytest

from benchmarks.streaming.checkpoint import QWEN3_4B, write_checkpoint
from benchmarks.streaming.run import LIMIT, in_process
from regraft.core.sizes import bytes_of

SMALL = {
    **QWEN3_4B, "num_hidden_layers": 20, "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 3584,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64,
}  # fmt: skip
"""Twenty blocks of 28 MiB in bfloat16."""
ALLOWED = "1.25GiB"
"""What PyTorch and its libraries take in a process (half a GiB), what is kept free for scores (as much), and
a quarter of a GiB for weights that take more than half a GiB."""


def test_a_process_stays_below_what_it_was_allowed(tmp_path):
    size = write_checkpoint(tmp_path, SMALL)
    assert size > 0.5 * 2**30
    found = in_process(tmp_path, "knockout", 32, ALLOWED)
    assert found["peak_bytes"] < bytes_of(ALLOWED)
    assert found["blocks_that_stay"] < 10
    blocks = size - 4096 * 1024 * 2
    turning = blocks * (found["blocks"] - found["blocks_that_stay"]) / found["blocks"]
    assert found["walks"] == 2, "recorded once, swept once"
    assert found["bytes_read"] == pytest.approx(2 * turning, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "tokens", "walks"), [("record", 64, 1), ("lens", 256, 2), ("knockout", 64, 2)]
)
def test_the_shape_of_qwen3_4b_in_three_gib(what, tokens, walks, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "qwen3-4b"
    size = write_checkpoint(folder, QWEN3_4B)
    assert size == 8_044_936_192
    found = in_process(folder, what, tokens, LIMIT)
    assert found["peak_bytes"] < 3 * 2**30
    assert found["walks"] == walks
    each = (size - 151_936 * 2560 * 2 - 2560 * 2) / 36
    turning = found["blocks"] - found["blocks_that_stay"]
    assert found["bytes_read"] == pytest.approx(walks * turning * each, rel=0.01)
