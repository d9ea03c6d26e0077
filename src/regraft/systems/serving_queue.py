"""Machines that serve requests, simulated event by event: reading and writing on the same machines, or apart.

Seconds everywhere. A request is read (prefill), then written token by token; machines that write take a step
for all of their requests together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FACTORS = (4.0, 3.0)
"""Limits of a good answer where none are given: so many times a lone request's first token, and its time
between tokens."""


USEFUL, MARGIN = 0.5, 0.01
"""Of a rate, the share that must be answered well: beyond it both arrangements drown, and which drowns later
says nothing; and the share by which an arrangement must be ahead of the other to win."""


@dataclass(frozen=True)
class Request:
    """When it comes, tokens of its prompt, and how many are written."""

    at: float
    prompt: int
    tokens: int


@dataclass(frozen=True)
class Service:
    """Seconds that work takes: reading a prompt, one step for so many requests of a mean length, and moving
    a prompt's keys and values (from the end of reading until all is there)."""

    read: Callable[[int], float]
    step: Callable[[int, int], float]
    move: Callable[[int], float]


@dataclass(frozen=True)
class Answered:
    """One request: seconds until its first token, and between tokens in the mean (0 with one token)."""

    request: Request
    first_s: float
    between_s: float


def poisson(rate: float, count: int, prompts: Sequence[int], shares: Sequence[float], tokens: int,
            seed: int) -> list[Request]:  # fmt: skip
    """Requests that come independently, so many a second in the mean, with lengths drawn by their shares."""
    drawn = np.random.default_rng(seed)
    at = np.cumsum(drawn.exponential(1 / rate, count))
    lengths = drawn.choice(np.array(prompts), count, p=np.array(shares) / np.sum(shares))
    return [Request(float(a), int(p), tokens) for a, p in zip(at, lengths, strict=True)]


def together(requests: Sequence[Request], machines: int, service: Service, batch: int) -> list[Answered]:
    """Every machine reads and writes; requests go round. A prompt that waits is read before the next step,
    which all that is being written waits for."""
    found: list[Answered] = []
    for machine in range(machines):
        found += _machine([(r.at, r) for r in requests[machine::machines]], service, batch, reads=True)
    return sorted(found, key=lambda one: one.request.at)


def apart(requests: Sequence[Request], readers: int, writers: int, service: Service,
          batch: int) -> list[Answered]:  # fmt: skip
    """Some machines read, the others write; what was read moves, one prompt at a time from each reader."""
    moved: list[tuple[float, Request]] = []
    for reader in range(readers):
        free = sent = 0.0
        for request in requests[reader::readers]:
            free = max(free, request.at) + service.read(request.prompt)
            sent = max(sent, free) + service.move(request.prompt)
            moved.append((sent, request))
    moved.sort(key=lambda one: one[0])
    found: list[Answered] = []
    for writer in range(writers):
        found += _machine(moved[writer::writers], service, batch, reads=False)
    return sorted(found, key=lambda one: one.request.at)


@dataclass
class _Writing:
    request: Request
    first: float
    left: int


def _machine(coming: Sequence[tuple[float, Request]], service: Service, batch: int,
             reads: bool) -> list[Answered]:  # fmt: skip
    """One machine's requests in the order in which they come to it."""
    waiting, writing, now, found = deque(coming), list[_Writing](), 0.0, list[Answered]()
    while waiting or writing:
        if waiting and len(writing) < batch and (not writing or waiting[0][0] <= now):
            came, request = waiting.popleft()
            now = max(now, came) + (service.read(request.prompt) if reads else 0.0)
            writing.append(_Writing(request, now, request.tokens - 1))
        else:
            read = sum(one.request.prompt + one.request.tokens - one.left for one in writing)
            now += service.step(len(writing), read // len(writing))
            for one in writing:
                one.left -= 1
        found += [_answered(one, now) for one in writing if one.left <= 0]
        writing = [one for one in writing if one.left > 0]
    return found


def _answered(one: _Writing, now: float) -> Answered:
    steps = one.request.tokens - 1
    return Answered(one.request, one.first - one.request.at, (now - one.first) / steps if steps else 0.0)


def goodput(answers: Sequence[Answered], first_s: float, between_s: float) -> float:
    """Requests a second that were answered within both limits."""
    good = sum(one.first_s <= first_s and one.between_s <= between_s for one in answers)
    return good / max(one.request.at for one in answers)


def crossing(rates: Sequence[float], one: Sequence[float], other: Sequence[float]) -> float:
    """The rate from which on the other arrangement answers more requests well than the one, as long as either
    answers half of them well; not a number where there is none."""
    useful = np.maximum(one, other) >= USEFUL * np.array(rates)
    ahead = np.array(other)[useful] > (1 + MARGIN) * np.array(one)[useful]
    if not len(ahead) or not ahead[-1]:
        return float("nan")
    behind = np.flatnonzero(~ahead)
    return float(np.array(rates)[useful][0 if not len(behind) else behind[-1] + 1])
