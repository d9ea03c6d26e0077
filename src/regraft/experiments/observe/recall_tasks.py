"""What a model can recall from its context: random tokens read again, pairs asked for, a pair far back.

Shapes: B texts, N pairs, n tokens between, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.quantities import quantity
from regraft.model.block_call import longest_input
from regraft.model.model import Model

REPEATS = (4, 16, 64, 256)
"""Lengths of what is read again."""
PAIRS = (2, 4, 8, 16, 32)
"""Numbers of pairs."""
DISTANCES = (4, 16, 64, 256)
"""Tokens between pairs and a question."""
TEXTS = 16
"""Random texts of each task: an accuracy of a half is known to within an eighth."""
AMONG = 8
"""Pairs of which one is asked for across a distance."""
SOURCE = "Olsson et al. (2022), induction; Arora et al. (2023), associative recall"


@dataclass(frozen=True)
class Question:
    """A text of ids, what comes next, and the ids among which it is looked for."""

    ids: list[int]
    answer: int
    choices: list[int]


def recall_dataset(model: Model, seed: int) -> xr.Dataset:
    """Accuracy of recall over length, number of pairs and distance, each beside what guessing gives."""
    longest = longest_input(model.hf.config) or max(REPEATS) * 4
    drawn = torch.Generator().manual_seed(seed)
    rows = model.table_rows
    repeats = [n for n in REPEATS if 2 * n <= longest]
    pairs = [n for n in PAIRS if 2 * n + 1 <= longest and 2 * n <= rows // 2]
    distances = [n for n in DISTANCES if 2 * AMONG + n + 1 <= longest]
    told: dict[str, Any] = {}
    tasks: tuple[tuple[str, list[int], Callable[[int], Question]], ...] = (
        ("repeat", repeats, lambda n: _repeated(rows, n, drawn)),
        ("pair", pairs, lambda n: _asked(rows, n, 0, drawn)),
        ("far", distances, lambda n: _asked(rows, AMONG, n, drawn)),
    )
    for name, sizes, make in tasks:
        asked = [[make(n) for _ in range(TEXTS)] for n in sizes]
        told[name] = np.array([_accuracies(model, questions) for questions in asked]).reshape(len(sizes), 2)
        told[f"{name}_chance"] = np.array([np.mean([1 / len(q.choices) for q in qs]) for qs in asked])
    return _dataset(told, repeats, pairs, distances)


def _repeated(rows: int, length: int, drawn: torch.Generator) -> Question:
    """Random tokens, and all of them but the last once more: it comes next."""
    ids = _draw(rows, length, drawn)
    return Question(ids + ids[:-1], ids[-1], sorted(set(ids)))


def _asked(rows: int, pairs: int, between: int, drawn: torch.Generator) -> Question:
    """Pairs of a key and a value, other tokens, and one of the keys: its value comes next."""
    ids = _draw(rows, 2 * pairs + between, drawn)
    keys, values, filler = ids[:pairs], ids[pairs : 2 * pairs], ids[2 * pairs :]
    asked = int(torch.randint(pairs, (1,), generator=drawn))
    told = [token for pair in zip(keys, values, strict=True) for token in pair]
    return Question([*told, *filler, keys[asked]], values[asked], values)


def _draw(rows: int, count: int, drawn: torch.Generator) -> list[int]:
    """Tokens that are all different where there are enough; special ones stand first in most vocabularies."""
    low = min(5, rows - 1)
    if count <= rows - low:
        return (low + torch.randperm(rows - low, generator=drawn)[:count]).tolist()
    return torch.randint(low, rows, (count,), generator=drawn).tolist()


def _accuracies(model: Model, questions: list[Question]) -> tuple[float, float]:
    """Share of questions whose answer is likeliest of all tokens, and likeliest of its choices."""
    with model.held(), torch.no_grad():
        ids_BT = torch.tensor([q.ids for q in questions], device=model.device)
        logits_BV: Tensor = model.run(input_ids=ids_BT).logits[:, -1].float().cpu()
    best = [int(row.argmax()) == q.answer for row, q in zip(logits_BV, questions, strict=True)]
    among = [
        q.choices[int(row[q.choices].argmax())] == q.answer
        for row, q in zip(logits_BV, questions, strict=True)
    ]
    return float(np.mean(best)), float(np.mean(among))


READ = {
    "repeat": (
        "the last token of a random text that is read again",
        "Falls where a text outgrows what is kept.",
    ),
    "pair": (
        "the value of one of N random pairs, asked at once",
        "A fixed state holds so many pairs and no more.",
    ),
    "far": (f"the value of one of {AMONG} pairs, asked behind other tokens", "The forgetting curve."),
}
"""Every task: what is asked for, and how to read its curve."""


def _dataset(told: dict[str, Any], repeats: list[int], pairs: list[int], distances: list[int]) -> xr.Dataset:
    found: dict[str, Any] = {}
    for name, (what, reading) in READ.items():
        size = f"{name}_size"
        for column, (suffix, among) in enumerate((("", "all tokens"), ("_among", "what stands there"))):
            found[f"recall_{name}{suffix}"] = quantity(
                size,
                told[name][:, column],
                f"share right of {TEXTS}: {what}, likeliest of {among}",
                reading,
                SOURCE,
            )
        found[f"recall_{name}_chance"] = quantity(
            size,
            told[f"{name}_chance"],
            "share right by guessing what stands there",
            "The floor of the curve.",
        )
    sizes = {"repeat_size": repeats, "pair_size": pairs, "far_size": distances}
    return xr.Dataset(found, coords=sizes)
