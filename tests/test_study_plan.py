"""What a study's plan says: passes held to the work that runs count, shapes held to configurations, speed
measured on any machine, and nothing said where no formula tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from regraft.experiments.running import measured
from regraft.landmarks.study import Shape, Step, studies
from regraft.landmarks.study_plan import (
    COMPLETIONS,
    LARGEST,
    PASSES,
    Speed,
    measured_speed,
    planned,
    weight_bytes,
)
from regraft.model.load import load
from test_reproduce import run


@pytest.mark.parametrize(
    ("options", "variants"), [({}, 12), ({"mode": "pairs"}, 78)], ids=["single", "pairs"]
)
def test_passes_are_those_that_runs_count(options, variants):
    data = measured(load(), "knockout", 0, count=2, tokens=6, **options)
    counted = data.attrs["work_executed"] / data.attrs["work_naive"] * variants
    assert PASSES["knockout"](options, 12) == pytest.approx(counted, rel=0.15)


def test_passes_of_exchanges_are_those_that_runs_count():
    data = measured(load(), "swap", 0, count=2, tokens=6)
    assert PASSES["swap"]({}, 12) == pytest.approx(
        data.attrs["work_executed"] / data.attrs["work_naive"] * 66, rel=0.1
    )


def test_passes_of_greedy_knockouts_and_of_rounding_are_near_those_that_runs_count():
    """A greedy search without a limit leaves no block; rounding tries whole models, too."""
    model = load("specimen:gpt2")
    one_pass = measured(model, "knockout", 0, count=2, tokens=6).attrs["work_naive"] / 4
    greedy = measured(model, "knockout", 0, count=2, tokens=6, mode="greedy", limit=1e9).attrs
    rounded = measured(model, "quantize", 0, count=2, tokens=6).attrs
    passes = PASSES["knockout"]({"mode": "greedy"}, 4)
    assert passes == pytest.approx(greedy["work_executed"] / one_pass, rel=0.15)
    assert PASSES["quantize"]({}, 4) == pytest.approx(rounded["work_executed"] / one_pass, rel=0.25)


CONFIGS = {
    "qwen3-4b-instruct-2507": ("Qwen3", 36, 2560, 9728, 151936, 32, 8, 128, True),
    "qwen3-1.7b": ("Qwen3", 28, 2048, 6144, 151936, 16, 8, 128, True),
    "llama-3.2-1b": ("Llama", 16, 2048, 8192, 128256, 32, 8, 64, True),
    "sarvam-m": ("Mistral", 40, 5120, 32768, 131072, 32, 8, 128, False),
    "r1-distill-qwen-7b-adapters-0.001": ("Qwen2", 28, 3584, 18944, 152064, 28, 4, 128, False),
}
"""What the models' configurations say: blocks, width, neurons, tokens, heads, groups, heads' width, tied."""
ADAPTERS = 28 * (2 * 8192 * 3584 + 8192 + 3584)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_parameters_are_those_of_the_configurations(name):
    """Counted on a model of that configuration without numbers."""
    kind, blocks, width, neurons, tokens, heads, groups, of_head, tied = CONFIGS[name]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=tokens, hidden_size=width, intermediate_size=neurons, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=groups, head_dim=of_head, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    counted = sum(p.numel() for p in model.parameters()) + (ADAPTERS if "adapters" in name else 0)
    assert studies()[name].shape == Shape(blocks, width, neurons, tokens, counted)


def test_the_page_says_what_the_studies_hold():
    page = (Path(__file__).parent.parent / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for told, name in (("Qwen3-4B-Instruct-2507", "qwen3-4b-instruct-2507"), ("Qwen3-1.7B", "qwen3-1.7b")):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {told} |")]
        assert line.endswith(f"| {studies()[name].landmarks} |")


def test_what_no_formula_tells_is_not_estimated():
    steps = [Step("linearity", "linearity", {"count": 2}), Step("spectra", "spectra")]
    _, linear, spectra = planned(steps, Shape(10, 100, 400, 1000, 2_000_000), Speed(2e9, 1e8, 1e9))
    assert np.isnan([linear.work, linear.seconds]).all()
    assert linear.bytes > 0
    assert spectra.seconds == pytest.approx(2_000_000 * 100 / (1e9 * 0.15))
    code, said = run("meta-llama/Llama-3.2-1B", "--plan")
    assert code == 0
    assert "ablate not estimated not estimated" in said


def test_a_plan_by_hand():
    shape = Shape(10, 100, 400, 1000, 2_000_000)
    steps = [
        Step("lens", "lens", {"count": 3, "tokens": 4}),
        Step("knockout", "knockout", {"count": 3, "tokens": 4}),
        Step("fit", command=("graft",)),
    ]
    made, lens, knockout = planned(steps, shape, Speed(2e9, 1e8, 1e9))
    tokens = 3 * (16 + 4)
    assert made.step == COMPLETIONS
    assert lens.work == tokens * (2_000_000 + 11 * 100 * 1000)
    assert knockout.work == 5.5 * tokens * 2_000_000
    assert knockout.seconds == knockout.work / 1e9, "half the speed of a product"
    assert knockout.bytes == 4 * tokens * 100 * 11
    assert planned(steps, shape, Speed(2e9, 1e8, 1e9), count=6)[2].work == 2 * knockout.work
    assert weight_bytes(shape, "bfloat16") == 4_000_000
    speed = measured_speed(shape, "float32", "cpu")
    assert min(speed.many, speed.single, speed.double) > 0


def test_a_slow_machine_is_measured_by_few_rows(monkeypatch):
    """Six looks at a clock that goes on by ten seconds at each: one product of one row for every speed."""
    looks = iter(range(0, 10_000, 10))
    monkeypatch.setattr("regraft.landmarks.study_plan.time.perf_counter", lambda: float(next(looks)))
    speed = measured_speed(Shape(2, 64, 128, 100, 10_000), "float32", "cpu")
    assert (speed.many, speed.single, speed.double) == (64 * 128 / 10,) * 3
    assert next(looks) == 10 * 2 * 4


def test_a_huge_matrix_is_measured_by_a_part_of_it(monkeypatch):
    """Whole ones would be 18 TB."""
    looks = iter(range(0, 10_000, 10))
    monkeypatch.setattr("regraft.landmarks.study_plan.time.perf_counter", lambda: float(next(looks)))
    speed = measured_speed(Shape(2, 1024, 1 << 30, 100, 10_000), "float32", "cpu")
    assert speed.many == LARGEST / 10
