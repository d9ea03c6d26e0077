"""Facts told somewhere in a prefix and asked for behind it, answered from what a strategy keeps of it.

Shapes: B texts, P tokens of the prefix, q tokens behind it (T = P + q), D width.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regraft.data.corpus import text_rows
from regraft.data.own_texts import check_known
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.specimens.almanac import NAMES, THINGS
from regraft.specimens.long_pages import asked, told
from regraft.systems.cache_past import Past
from regraft.systems.cache_run import kept_of, pasts_of, suffix_streams
from regraft.systems.cache_strategies import Strategy

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where in the prefix the fact stands: 0 at its beginning, 1 at its end."""
SHARES = (0.25, 0.5, 1.0)
"""Prefixes that are tried, in times the one that was asked for."""
SHORTEST = 24
"""Tokens of a prefix: a fact, and some text around it."""


@dataclass(frozen=True)
class Needles:
    """Texts with a fact in a prefix of P tokens, depth by depth, each with its question and its answer, which
    is the end of the text."""

    recording: Recording
    prefix: int
    pasts: Sequence[Past]
    answers: Sequence[int]
    """Tokens of each answer."""

    def right(self, kept_by: Strategy) -> np.ndarray:
        """Share of facts that are told again token by token, at each depth."""
        return self.measured(kept_by)[0]

    def measured(self, kept_by: Strategy) -> tuple[np.ndarray, float]:
        """The same, and bytes that are held for each token of the prefix."""
        kept = kept_of(kept_by, self.pasts)
        stream_BqD = suffix_streams(self.recording, [kept], self.prefix)[0]
        best_Bq = self.recording.head(stream_BqD[:, :-1]).argmax(-1)
        same_Bq = (best_Bq == self.recording.ids_BT[:, self.prefix + 1 :]).cpu().numpy()
        hits = [bool(row[-count:].all()) for row, count in zip(same_Bq, self.answers, strict=True)]
        held = sum(one.nbytes for one in kept) / (self.recording.prompts * self.prefix)
        return np.array(hits, float).reshape(len(DEPTHS), -1).mean(1), held


def prefix_lengths(prefix: int) -> list[int]:
    """Prefixes in which a fact is looked for: up to the one that was asked for, none too short for it."""
    return [n for share in SHARES if (n := round(share * prefix)) >= SHORTEST]


def needles(model: Model, text: str, prefix: int, texts: int, seed: int) -> Needles:
    """Texts with a fact at each depth.

    Raises:
        ValueError: the text is too short, a fact is longer than the prefix or the whole than the model reads,
            or the tokenizer does not know the words of facts.
    """
    check_known(model, [f"{told(n, t, 47)} {asked(n)}" for n, t in zip(NAMES, THINGS, strict=False)], "facts")
    drawn = random.Random(seed)
    parts = [[_fact(model, drawn) for _ in range(texts)] for _ in DEPTHS]
    behind = max(len(asks) + len(answers) for row in parts for _, asks, answers in row)
    longest = max(len(tells) for row in parts for tells, _, _ in row)
    if not all(tells and asks and says for row in parts for tells, asks, says in row):
        raise ValueError("the tokenizer drops the words of facts")
    if longest > prefix:
        raise ValueError(f"a fact has {longest} tokens here, more than a prefix of {prefix}")
    positions = longest_input(model.hf.config)
    if positions and prefix + behind > positions:
        raise ValueError(f"a prefix of {prefix} tokens and a question pass the {positions} that are read")
    fillers = text_rows(model, text, seed, prefix + behind, texts)
    rows, answers = [], []
    for depth, facts in zip(DEPTHS, parts, strict=True):
        for filler, (tells, asks, says) in zip(fillers, facts, strict=True):
            first = round(depth * (prefix - len(tells)))
            last = prefix + behind - len(tells) - len(asks) - len(says)
            rows.append([*filler[:first], *tells, *filler[first:last], *asks, *says])
            answers.append(len(says))
    recording = model.record(rows, attention_mask="all")
    return Needles(recording, prefix, pasts_of(recording, prefix), answers)


def _fact(model: Model, drawn: random.Random) -> tuple[list[int], list[int], list[int]]:
    """The tokens of a fact, of its question, and of the answer."""
    name, thing, number = drawn.choice(NAMES), drawn.choice(THINGS), drawn.randint(10, 99)

    def ids(words: str) -> list[int]:
        return list(model.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])

    question = ids(f" {asked(name)}")
    whole = ids(f" {asked(name)} {thing} {number}")
    # a tokenizer may join the question's end with the answer: then the answer begins behind what is common
    common = next((i for i, (a, b) in enumerate(zip(question, whole, strict=False)) if a != b), len(question))
    return ids(f" {told(name, thing, number)}"), whole[:common], whole[common:]
