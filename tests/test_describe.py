"""What a model, a recording and a result say of themselves: a few lines that are true."""

from __future__ import annotations

import pytest

from regraft.model.load import load
from regraft.sweeps.metrics import logit_difference, stream_distance
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Zero
from small import SHAPES, ids, opened


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_tells_itself_in_ten_lines(name):
    model = opened(name)
    told = repr(model)
    assert len(told.splitlines()) <= 10
    assert max(map(len, told.splitlines())) < 200
    assert f"{sum(p.numel() for p in model.hf.parameters()):,} parameters" in told
    assert type(model.hf).__name__ in told
    assert "float32 on cpu" in told
    assert ("causal" in told) == model.causal
    every = told.split("sites of every block: ")[1].splitlines()[0].split(", ")
    assert all(model.taps.exists(block.index, site) for site in every for block in model.blocks)


def test_sites_of_some_blocks_are_counted():
    told = repr(opened("qwen3_5"))
    kinds = opened("qwen3_5").hf.config.layer_types
    assert f"k ({kinds.count('full_attention')} of {len(kinds)})" in told


def test_a_recording_shows_its_tokens():
    model = load("specimen:qwen3", pack=False)
    recording = model.record(["The river runs to the sea and home again with all the fish", "She"])
    told = repr(recording)
    first = recording.lengths_B.tolist()[0]
    assert told.splitlines()[0] == (
        f"Recording of 2 prompts of 1 to {first} tokens by specimen:qwen3, {first - 1} tokens scored"
    )
    assert told.splitlines()[1].startswith("  0: The| river| run")
    assert told.splitlines()[1].endswith(f"| ... {first - 12} more")
    assert told.splitlines()[2] == "  1: She"
    many = repr(model.record([[5, 6]] * 30, attention_mask="all"))
    assert len(many.splitlines()) == 8
    assert many.endswith("and 24 more")
    assert "of 2 tokens by" in many


def test_a_result_shows_its_range_and_its_control():
    model = opened("llama")
    recording = model.record([ids(6, 3), ids(4, 4)], attention_mask="all")
    result = sweep(
        recording, [Zero("1.mlp_out"), Zero("2.mlp_out")], [logit_difference(7, 9), stream_distance()]
    )
    told = repr(result).splitlines()
    assert told[0].startswith("SweepResult of 2 variants on 2 prompts")
    mean = result.mean("logit_difference")
    wanted = f"  logit_difference: {float(mean.min()):.4g} to {float(mean.max()):.4g} logits; clean"
    assert told[1].startswith(wanted)
    assert len(told) <= 10
    assert (
        repr(sweep(recording, [], logit_difference(7, 9)))
        .splitlines()[1]
        .startswith("  logit_difference: no var")
    )
