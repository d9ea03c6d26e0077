"""What a study takes, before anything is fetched: passes of the model by formula, seconds by the speed of
this machine, memory by shapes.

A pass is one forward pass over the text that a step reads. The formulas follow from how sweeps share work (a
variant starts at its first changed block, pairs share the chain behind the first); `tests/test_reproduce.py`
holds them to the work that runs count.
"""

from __future__ import annotations

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
EFFICIENCY, SVD_EFFICIENCY = 0.5, 0.1
"""Share of the matrix rate that blocks reach (half was measured on the specimen), and singular values."""
TIMED, ROWS, MATRICES = 8, 256, 4
"""Products that the speed is the best of, rows of each, and matrices that they take in turn."""
LENGTHS = 12
"""Different lengths of the prompts that ship, about."""
COMPLETIONS = "completions, made once"
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def knockout_passes(options: Mapping[str, Any], blocks: int) -> float:
    """Singly every second block on average; pairs share their chain; greedily the rest again each time."""
    if options.get("mode") == "pairs":
        return blocks**2 / 6 + blocks / 2
    if options.get("mode") == "greedy":
        return sum((blocks - step + 1) / 2 for step in range(blocks // 2))
    return (blocks + 1) / 2


PASSES: Mapping[str, Callable[[Mapping[str, Any], int], float]] = {
    "lens": lambda options, blocks: 1,
    "geometry": lambda options, blocks: 1,
    "trajectories": lambda options, blocks: 1,
    "knockout": knockout_passes,
    "swap": lambda options, blocks: blocks**2 / 3,
    "linearity": lambda options, blocks: 150,
    "quantize": lambda options, blocks: 6 * (blocks + 1),
    "shuffle": lambda options, blocks: 2 * blocks**2,
    "patch": lambda options, blocks: (blocks + 1) / 2,
    "push": lambda options, blocks: blocks**2,
    "ablate": lambda options, blocks: 100,
}
"""Passes of each experiment; those of linearity, shuffle, push and ablate are orders of magnitude."""
HEADS = ("lens", "trajectories")
"""Experiments that read every depth through the output matrix."""


@dataclass(frozen=True)
class Cost:
    """What one step takes: multiply-adds, seconds on this machine, bytes beside the weights."""

    step: str
    work: float
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Speed:
    """How fast this machine is with matrices of a model's shape: multiply-adds a second of many rows at once,
    and of one."""

    many: float
    single: float


def planned(steps: Sequence[Step], shape: Shape, speed: Speed, count: int = 0) -> list[Cost]:
    """What steps take, the completions that they read first; of a command, which has a plan of its own,
    nothing is said.

    Args:
        count: prompts that are read instead of the study's.
    """
    costs = [_cost(step, shape, speed.many, count) for step in steps if not step.command]
    prompts = max((count or step.options.get("count", 0) for step in steps if step.experiment), default=0)
    if not prompts:
        return costs
    # Prompts of one length are continued together, one token after the other.
    passes = min(prompts, LENGTHS) * COMPLETION_TOKENS
    work = float(passes * shape.parameters)
    return [Cost(COMPLETIONS, work, work / speed.single, 0.0), *costs]


def _cost(step: Step, shape: Shape, rate: float, count: int) -> Cost:
    if step.experiment == "spectra":
        work = 4.0 * shape.parameters * shape.width
        largest = 3 * 8 * shape.width * shape.neurons
        return Cost(step.name, work, work / (rate * SVD_EFFICIENCY), largest)
    tokens = tokens_read(step, count)
    passes = PASSES[step.experiment](step.options, shape.blocks) if step.experiment else 1.0
    work = passes * tokens * shape.parameters
    if step.experiment in HEADS:
        work += tokens * (shape.blocks + 1) * shape.vocabulary * shape.width
    recorded = 4.0 * tokens * shape.width * (shape.blocks + 1)
    return Cost(step.name, work, work / (rate * EFFICIENCY), recorded)


def tokens_read(step: Step, count: int = 0) -> int:
    """Tokens that a step's passes read."""
    if step.experiment == "trajectories":
        return CONTRASTS * GROUP_TOKENS
    if step.adapters or step.text:
        return CORPUS_TOKENS
    prompts = count or step.options.get("count", 1)
    return prompts * (PROMPT_TOKENS + step.options.get("tokens", COMPLETION_TOKENS))


def measured_speed(shape: Shape, dtype: str, device: str) -> Speed:
    """Speed of products with matrices of the model's own shape, the best of a few.

    They stand in turn in more memory than a cache holds, as the blocks of a model do.
    """
    kind = getattr(torch, dtype)
    right = torch.ones(MATRICES, shape.width, shape.neurons, dtype=kind, device=device)
    found = []
    for rows in (ROWS, 1):
        left = torch.ones(rows, shape.width, dtype=kind, device=device)
        best = float("inf")
        for turn in range(TIMED):
            began = time.perf_counter()
            float((left @ right[turn % MATRICES])[0, 0])
            best = min(best, time.perf_counter() - began)
        found.append(rows * shape.width * shape.neurons / best)
    return Speed(*found)


def weight_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of all weights in one type of numbers."""
    return shape.parameters * WIDTHS[dtype]
