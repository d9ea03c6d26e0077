"""Associative recall: pairs of a key and a value, tokens between, and all keys asked in another order.

Shapes: B texts, N pairs, T = 4 N + n tokens, n of them between pairs and questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

KEYS, VALUES, FILLERS = 64, 64, 16
"""Ids 1 to 64 ask, 65 to 128 answer, 129 to 144 say nothing; 0 is never written."""
NUMBERS = (4, 8, 16, 32, 64)
"""Pairs of a text, one number a batch."""
LONGEST_BETWEEN = 64
EASY_STEPS, EASY = 1500, 2
"""First steps, which have the smallest numbers of pairs alone and nothing between: attention finds out from
few pairs what is asked; from all numbers at once it had not begun to after as many steps."""
UNASKED = -100
"""What transformers and PyTorch leave out of a loss."""


def pair_texts(pairs: int, between: int, count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids (B, T), and the values (B, T) where they answer a key that is asked, `UNASKED` elsewhere."""
    rows = [_text(pairs, between, drawn) for _ in range(count)]
    ids_BT = torch.stack(rows)
    answers_BT = torch.full_like(ids_BT, UNASKED)
    answers_BT[:, -2 * pairs + 1 :: 2] = ids_BT[:, -2 * pairs + 1 :: 2]
    return ids_BT, answers_BT


def _text(pairs: int, between: int, drawn: torch.Generator) -> Tensor:
    keys = 1 + torch.randperm(KEYS, generator=drawn)[:pairs]
    values = 1 + KEYS + torch.randint(VALUES, (pairs,), generator=drawn)
    told = torch.stack([keys, values], 1)
    asked = told[torch.randperm(pairs, generator=drawn)]
    filler = 1 + KEYS + VALUES + torch.randint(FILLERS, (between,), generator=drawn)
    return torch.cat([told.flatten(), filler, asked.flatten()])


@dataclass(frozen=True)
class PairTexts:
    """Texts without an end: a batch follows from seed and step, and has as many tokens whatever their
    length."""

    seed: int
    length: int = 256

    @property
    def ids(self) -> np.ndarray:
        """Nothing is read from a file."""
        return np.zeros(0, np.int64)

    def digest(self) -> str:
        """Of what is drawn."""
        return hashlib.sha256(repr((self, NUMBERS, LONGEST_BETWEEN, EASY_STEPS, EASY)).encode()).hexdigest()

    def batch(self, step: int, size: int) -> Tensor:
        """Ids and answers (2, B, T) of a step."""
        drawn = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        easy = step < EASY_STEPS
        choices = NUMBERS[:EASY] if easy else NUMBERS
        pairs = choices[int(torch.randint(len(choices), (1,), generator=drawn))]
        between = int(torch.randint(2 * LONGEST_BETWEEN, (1,), generator=drawn)) - LONGEST_BETWEEN
        between = 0 if easy else max(0, between)  # half of the texts ask at once
        count = max(1, size * self.length // (4 * pairs + between))
        return torch.stack(pair_texts(pairs, between, count, drawn))


class RecallTask:
    """A whole model trained to answer, and nothing else."""

    def __init__(self, hf: nn.Module):
        self.graft, self.root = hf, hf

    def blocks(self) -> list[nn.Module]:
        """No trunk is frozen."""
        return []

    def losses(self, batch: Tensor) -> Mapping[str, Tensor]:
        """Nats of the values that are asked for, and the share that is right."""
        ids_BT, answers_BT = batch
        logits = self.graft(input_ids=ids_BT, use_cache=False).logits[:, :-1]
        asked = answers_BT[:, 1:] != UNASKED
        found, wanted = logits[asked].float(), answers_BT[:, 1:][asked]
        right = (found.argmax(-1) == wanted).float().mean()
        return {"answers": nn.functional.cross_entropy(found, wanted), "_right": right}


@torch.no_grad()
def accuracy(hf: nn.Module, pairs: int, between: int, texts: int, seed: int) -> float:
    """Share of values that are likeliest of all tokens, in texts that no training has read."""
    drawn = torch.Generator().manual_seed(987_654_321 + seed)
    ids_BT, answers_BT = pair_texts(pairs, between, texts, drawn)
    asked = answers_BT[:, 1:] != UNASKED
    hits = [
        hf(input_ids=ids[None], use_cache=False).logits[0, :-1].argmax(-1)[some] == answers[1:][some]
        for ids, answers, some in zip(ids_BT, answers_BT, asked, strict=True)
    ]
    return float(torch.cat(hits).float().mean())
