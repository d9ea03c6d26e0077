"""How the learning rate goes over a run, in times the highest: a straight rise, then down to nothing."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, warmup: int) -> float:
    """Half a cosine down, for long runs against a teacher."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def straight(step: int, steps: int, warmup: int) -> float:
    """A straight line down from the first step on, for a regression whose every step is cheap."""
    return min(1.0, (step + 1) / warmup) * (1 - step / steps)
