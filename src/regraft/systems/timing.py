"""How long calls take, measured side by side: kinds of the same work take turns, so that whatever else the
machine does falls on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Call = Callable[[], Any]
WARM_ROUNDS, AGREE = 20, 0.05
"""Rounds before the measurement at most, and the share within which three of them must agree to end them."""
ROUNDS = 15
"""Rounds that are measured: a median that one interrupted round does not move."""
SAMPLE_S = 0.002
"""Seconds of one sample: shorter calls are repeated until they last as long, thousands of clock steps."""
NOTHING = "nothing"
"""The call that does nothing: the floor under every other one."""


@dataclass(frozen=True)
class Timed:
    """Seconds of one kind's calls, one value for each round, by the clock and of the processor."""

    wall_s: np.ndarray
    process_s: np.ndarray

    @property
    def median_s(self) -> float:
        """Of the clock."""
        return float(np.median(self.wall_s))

    def percentile_s(self, share: float) -> float:
        """Of the clock; 0.99 is what one call in a hundred exceeds."""
        return float(np.quantile(self.wall_s, share))


@dataclass(frozen=True)
class Clocks:
    """What tells the time; tests give their own."""

    wall: Callable[[], float] = time.perf_counter
    process: Callable[[], float] = time.process_time


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    calls: Mapping[str, Call],
    device: torch.device,
    rounds: int = ROUNDS,
    clocks: Clocks = Clocks(),
) -> dict[str, Timed]:
    """Time calls in rounds: in each round every call is timed once, and each round begins with another one.

    Each is called before the measurement until three rounds in a row agree within 5%, twenty times at most.

    Args:
        calls: what is timed, by name; `{"nothing": lambda: None}` among them shows the floor.
        device: where they run: a GPU is waited for on both sides of a sample.
        rounds: samples of each.
        clocks: what tells the time.
    """
    counts = {name: _warmed(call, device, clocks) for name, call in calls.items()}
    names = list(calls)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % max(1, len(names))
        for name in [*names[first:], *names[:first]]:
            seen[name].append(_sample(calls[name], counts[name], device, clocks))
    found = {name: np.array(samples, float).reshape(-1, 2) for name, samples in seen.items()}
    return {name: Timed(samples[:, 0], samples[:, 1]) for name, samples in found.items()}


def _warmed(call: Call, device: torch.device, clocks: Clocks) -> int:
    """Call until three rounds agree; how many calls make a sample."""
    last: list[float] = []
    for _ in range(WARM_ROUNDS):
        last = [*last[-2:], _sample(call, 1, device, clocks)[0]]
        if len(last) == 3 and max(last) - min(last) <= AGREE * max(last):
            break
    return max(1, math.ceil(SAMPLE_S / max(min(last), 1e-9))) if min(last) < SAMPLE_S else 1


def _sample(call: Call, count: int, device: torch.device, clocks: Clocks) -> tuple[float, float]:
    """Seconds of one call, as the mean of `count`, by the clock and of the processor."""
    wait(device)
    wall, process = clocks.wall(), clocks.process()
    for _ in range(count):
        call()
    wait(device)
    return (clocks.wall() - wall) / count, (clocks.process() - process) / count
