"""What moving keys and values takes, measured; and requests that come at random, served by two processes.

Shapes: R repetitions, b prompts that are written together, P tokens of a prompt.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from transformers import DynamicCache

from regraft.model.model import Model
from regraft.systems.apart import BLOCKS, Moved, PeerPair, prefill, together
from regraft.systems.serving_queue import Request, Service
from regraft.systems.transport import PeerGoneError

STEPS = 6
"""Steps of writing that a time between tokens is the median of."""


@dataclass(frozen=True)
class Measured:
    """Medians over repetitions of one way over one link, at one length."""

    payload: int
    wire: int
    exposed_s: float
    sending_s: float
    first_token_s: float
    between_s: float
    slow_between_s: float
    same: float


def measured(
    pair: PeerPair, ids: Sequence[int], tokens: int, way: str, repeats: int, alone: Moved
) -> Measured:
    """Ask for the same several times; the first of them, in which memory is touched anew, is left out."""
    answers = [pair.answer(pair.ask(ids, tokens, way, number)) for number in range(repeats + 1)][1:]
    between = np.concatenate([one.between_s for one in answers]) if tokens > 1 else np.zeros(1)
    wanted = [alone.first, *alone.ids]
    same = [np.mean([a == b for a, b in zip([m.first, *m.ids], wanted, strict=True)]) for m in answers]
    return Measured(
        answers[-1].payload, answers[-1].wire,
        float(np.median([one.exposed_s for one in answers])),
        float(np.median([one.sending_s for one in answers])),
        float(np.median([one.first_token_s for one in answers])),
        float(np.median(between)), float(np.quantile(between, 0.99)), float(np.mean(same)),
    )  # fmt: skip


def alone(model: Model, ids: Sequence[int], tokens: int, repeats: int) -> list[Moved]:
    """The same in one process, several times; the first is left out."""
    return [together(model, ids, tokens) for _ in range(repeats + 1)][1:]


@torch.no_grad()
def step_s(model: Model, ids: Sequence[int], batch: int) -> float:
    """Seconds of one step that writes a token behind each of so many prompts, in the median."""
    cache = DynamicCache(config=model.hf.config)
    given = torch.tensor([list(ids)] * batch, device=model.device)
    with model.held():
        logits = model.hf(input_ids=given, past_key_values=cache, use_cache=True).logits
        taken = []
        for _ in range(STEPS):
            token = logits[:, -1:].argmax(-1)
            began = time.monotonic()
            logits = model.hf(input_ids=token, past_key_values=cache, use_cache=True).logits
            taken.append(time.monotonic() - began)
    return float(np.median(taken))


def service_of(
    lengths: Sequence[int],
    read_s: Sequence[float],
    batches: Sequence[int],
    step: np.ndarray,
    move_s: Sequence[float],
) -> Service:
    """Times between those that were measured, by straight lines; `step` has a row for each batch."""

    @cache  # a simulation asks for the same few again and again
    def stepped(count: int, length: int) -> float:
        by_batch = [float(np.interp(length, lengths, row)) for row in step]
        return float(np.interp(count, batches, by_batch))

    return Service(
        cache(lambda prompt: float(np.interp(prompt, lengths, read_s))),
        stepped,
        cache(lambda prompt: float(np.interp(prompt, lengths, move_s))),
    )


def served(
    pair: PeerPair, requests: Sequence[Request], prompts: dict[int, list[int]], way: str = BLOCKS
) -> list[Moved]:
    """Requests that come at their times: read here and written there, one after the other on both sides."""
    asked: queue.Queue[Moved | None] = queue.Queue()
    answers: list[Moved] = []
    failed: list[PeerGoneError] = []

    def collect() -> None:
        try:
            while (moved := asked.get()) is not None:
                answers.append(pair.answer(moved))
        except PeerGoneError as error:
            failed.append(error)

    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    start = time.monotonic()
    for number, request in enumerate(requests):
        time.sleep(max(0.0, start + request.at - time.monotonic()))
        asked.put(pair.ask(prompts[request.prompt], request.tokens, way, number, began=start + request.at))
    asked.put(None)
    collector.join()
    if failed:
        raise failed[0]
    return answers


def read_alone_s(model: Model, ids: Sequence[int], repeats: int) -> float:
    """Seconds of reading a prompt, in the median."""
    taken = []
    for _ in range(repeats + 1):
        began = time.monotonic()
        prefill(model, ids, lambda block, keys, values: None)
        taken.append(time.monotonic() - began)
    return float(np.median(taken[1:]))
