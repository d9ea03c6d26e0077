"""What a study takes, before anything is fetched: passes of the model by formula, seconds by the speed of
this machine, memory by shapes.

A pass is one forward pass over the text that a step reads. The formulas follow from how sweeps share work (a
variant starts at its first changed block, pairs share the chain behind the first); `tests/test_study_plan.py`
holds them to the work that runs count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regraft.core.defaults import COMPLETION_TOKENS
from regraft.landmarks.study import Shape, Step

PROMPT_TOKENS, GROUP_TOKENS, CORPUS_TOKENS = 16, 24, 4096
"""Tokens of a prompt and of a contrast with its prompt, about; of a text that is read in part."""
CONTRASTS = 560
"""Texts of the contrasts: 112 groups of five."""
EFFICIENCY, SVD_EFFICIENCY = 0.5, 0.15
"""Share of the matrix rate that blocks reach (half was measured on the specimen), and of that in float64 that
singular values reach, work being rows x columns x smaller side (0.09 to 0.21 for sides of 768 to 4,096)."""
SINGLE, DOUBLE, COPIES = 4, 8, 3
"""Bytes of a number of a recording and of a decomposition, and copies of a matrix that the latter makes."""
TIMED, ROWS, MATRICES, LARGEST = 8, 256, 4, 1 << 24
"""Products that the speed is the best of, rows of each, matrices that they take in turn, numbers of one: with
more a product only takes longer."""
LONGEST = 1.0
"""Seconds that are spent on one speed, about: processors without instructions for bfloat16 take minutes for a
product of many rows that others make in a tenth of a second."""
LENGTHS = 12
"""Different lengths of the prompts that ship: 12 with the specimen's tokenizer."""
COMPLETIONS = "completions, made once"
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def knockout_passes(options: Mapping[str, Any], blocks: int) -> float:
    """Singly every second block on average; pairs share their chain; greedily the rest again each time, at
    most until no block is left."""
    if options.get("mode") == "pairs":
        return blocks**2 / 6 + blocks / 2
    if options.get("mode") == "greedy":
        return blocks**2 / 6 + blocks
    return (blocks + 1) / 2


def quantize_passes(options: Mapping[str, Any], blocks: int) -> float:
    """Every block at five widths and every kind of matrix alone, each from its block on; and whole models."""
    return (WIDTHS_TRIED + KINDS) * (blocks + 1) / 2 + WHOLE_MODELS


WIDTHS_TRIED, KINDS, WHOLE_MODELS = 5, 7, 50
"""Numbers of bits and kinds of matrices that quantize tries alone; passes of whole models, as counted."""
PASSES: Mapping[str, Callable[[Mapping[str, Any], int], float]] = {
    "lens": lambda options, blocks: 1,
    "geometry": lambda options, blocks: 1,
    "trajectories": lambda options, blocks: 1,
    "knockout": knockout_passes,
    "swap": lambda options, blocks: blocks**2 / 3,
    "quantize": quantize_passes,
}
"""Passes of each experiment that can be told before it runs, held to counted work; of the others no time is
said: searches end when they end, and derivatives are no passes."""
HEADS = ("lens", "trajectories")
"""Experiments that read every depth through the output matrix."""


@dataclass(frozen=True)
class Cost:
    """What one step takes: multiply-adds and seconds on this machine, no number where no formula tells; bytes
    beside the weights."""

    step: str
    work: float
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Speed:
    """How fast this machine is with matrices of a model's shape: multiply-adds a second of many rows at once,
    of one, and of many in float64."""

    many: float
    single: float
    double: float


def planned(steps: Sequence[Step], shape: Shape, speed: Speed, count: int = 0) -> list[Cost]:
    """What steps take, the completions that they read first; of a command, which has a plan of its own,
    nothing is said.

    Args:
        count: prompts that are read instead of the study's.
    """
    costs = [_cost(step, shape, speed, count) for step in steps if not step.command]
    prompts = max((count or step.options.get("count", 0) for step in steps if step.experiment), default=0)
    if not prompts:
        return costs
    # Prompts of one length are continued together, one token after the other.
    passes = min(prompts, LENGTHS) * COMPLETION_TOKENS
    work = float(passes * shape.parameters)
    return [Cost(COMPLETIONS, work, work / speed.single, 0.0), *costs]


def _cost(step: Step, shape: Shape, speed: Speed, count: int) -> Cost:
    if step.experiment == "spectra":
        work = float(shape.parameters * shape.width)
        copies = COPIES * DOUBLE * shape.width * shape.neurons
        return Cost(step.name, work, work / (speed.double * SVD_EFFICIENCY), copies)
    tokens = tokens_read(step, count)
    recorded = float(SINGLE * tokens * shape.width * (shape.blocks + 1))
    if step.experiment and step.experiment not in PASSES:
        return Cost(step.name, math.nan, math.nan, recorded)
    passes = PASSES[step.experiment](step.options, shape.blocks) if step.experiment else 1.0
    work = passes * tokens * shape.parameters
    if step.experiment in HEADS:
        work += tokens * (shape.blocks + 1) * shape.vocabulary * shape.width
    return Cost(step.name, work, work / (speed.many * EFFICIENCY), recorded)


def tokens_read(step: Step, count: int = 0) -> int:
    """Tokens that a step's passes read."""
    if step.experiment == "trajectories":
        return CONTRASTS * GROUP_TOKENS
    if step.adapters:
        return CORPUS_TOKENS
    prompts = count or step.options.get("count", 1)
    return (CORPUS_TOKENS if step.text else 0) + prompts * (
        PROMPT_TOKENS + step.options.get("tokens", COMPLETION_TOKENS)
    )


def measured_speed(shape: Shape, dtype: str, device: str) -> Speed:
    """Speed of products with matrices as wide as the model's, the best of a few.

    They stand in turn in more memory than a cache holds, as the blocks of a model do.
    """
    many, single = _rates(shape, getattr(torch, dtype), device)
    return Speed(many, single, double=_rates(shape, torch.float64, device)[0])


def _rates(shape: Shape, kind: torch.dtype, device: str) -> tuple[float, float]:
    """Multiply-adds a second of as many rows as there is time for, and of one."""
    columns = min(shape.neurons, max(1, LARGEST // shape.width))
    right_MDF = torch.ones(MATRICES, shape.width, columns, dtype=kind, device=device)
    single = _rate(1, right_MDF)
    rows = int(single * LONGEST) // (shape.width * columns)
    return _rate(min(ROWS, max(1, rows)), right_MDF), single


def _rate(rows: int, right_MDF: torch.Tensor) -> float:
    _, width, columns = right_MDF.shape
    left_ND = right_MDF.new_ones(rows, width)
    best, spent = float("inf"), 0.0
    for turn in range(TIMED):
        began = time.perf_counter()
        float((left_ND @ right_MDF[turn % MATRICES])[0, 0])
        taken = time.perf_counter() - began
        best, spent = min(best, taken), spent + taken
        if spent >= LONGEST:
            break
    return rows * width * columns / best


def weight_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of all weights in one type of numbers."""
    return shape.parameters * WIDTHS[dtype]
