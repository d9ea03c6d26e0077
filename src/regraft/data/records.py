"""Questions and answers to train on: token ids padded to one length, with what each token is beside.

Shapes: N records, B of a batch, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PADDING, PROMPT, COUNTED = 0, 1, 2
"""What a token of a batch is: none, one that is read, one whose prediction counts."""


@dataclass(frozen=True)
class Records:
    """Records of at most T ids each, every one seen once before any is seen twice; `kinds_NT` says what each
    token is."""

    ids_NT: np.ndarray
    kinds_NT: np.ndarray
    seed: int

    def __len__(self) -> int:
        return len(self.ids_NT)

    @property
    def length(self) -> int:
        """Tokens of a padded record."""
        return self.ids_NT.shape[1]

    @property
    def ids(self) -> np.ndarray:
        """All real tokens in a row."""
        return self.ids_NT[self.kinds_NT > PADDING]

    def digest(self) -> str:
        """SHA-256 of the ids and of what they are."""
        found = hashlib.sha256(np.ascontiguousarray(self.ids_NT).tobytes())
        found.update(np.ascontiguousarray(self.kinds_NT).tobytes())
        return found.hexdigest()

    def batch(self, step: int, size: int) -> Tensor:
        """A step's batch, (B, 2, T): ids, and what each token is."""
        return self.rows(range(step * size, (step + 1) * size))

    def rows(self, numbers: Iterable[int]) -> Tensor:
        """The records (B, 2, T) of some numbers, counted on through every pass over them."""
        places = [self._order(number // len(self))[number % len(self)] for number in numbers]
        both = np.stack([self.ids_NT[places], self.kinds_NT[places]], axis=1)
        return torch.from_numpy(both.astype(np.int64))

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self))


def records_of(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], longest: int, seed: int = 0, prompts_count: bool = True
) -> Records:
    """Records of questions and answers, cut behind `longest` tokens and padded to the longest.

    Args:
        pairs: text of the question, text that follows it.
        prompts_count: whether predictions of the question's tokens count, too.

    Raises:
        ValueError: there is none, or one has no tokens.
    """
    made: list[tuple[list[int], int]] = []
    for question, answer in pairs:
        asked = list(tokenizer(question, add_special_tokens=False)["input_ids"]) if question else []
        told = list(tokenizer(answer, add_special_tokens=False)["input_ids"]) if answer else []
        if len(asked) + len(told) < 2:
            raise ValueError(f"a record has fewer than two tokens: {(question + answer)[:60]!r}")
        made.append(([*asked, *told][:longest], len(asked)))
    if not made:
        raise ValueError("there is no record to train on: the text holds none, or the filter leaves none")
    length = max(len(ids) for ids, _ in made)
    ids_NT = np.zeros((len(made), length), np.uint32)
    kinds_NT = np.zeros((len(made), length), np.uint8)
    for row, (ids, asked) in enumerate(made):
        ids_NT[row, : len(ids)] = ids
        kinds_NT[row, : len(ids)] = COUNTED
        if not prompts_count:
            kinds_NT[row, : min(asked, len(ids))] = PROMPT
    return Records(ids_NT, kinds_NT, seed)
