"""Questions and answers with reasoning traces: complete ones, short enough, in wanted shares.

Source of filter and shares: the published adapters' training text, 70% maths, 20% code, 10% science.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.data.exchanges import CLOSES, OPENS, ROUNDING, Exchange, check_shares
from regraft.data.records import Records, records_of

PUBLISHED = {"math": 0.7, "code": 0.2, "science": 0.1}
"""Shares of the published mix by domain."""


@dataclass(frozen=True)
class Kept:
    """What a filter left: the exchanges, and how many were left out for what reason."""

    exchanges: tuple[Exchange, ...]
    incomplete: int
    too_long: int
    beyond_share: int

    def __str__(self) -> str:
        out = f"{self.incomplete:,} without a complete trace, {self.too_long:,} too long"
        beyond = f"{self.beyond_share:,} beyond their domain's share"
        return f"{len(self.exchanges):,} exchanges kept; {out}, {beyond}"


def is_complete(answer: str) -> bool:
    """Whether a reasoning trace that is opened is closed, too."""
    opens = answer.find(OPENS)
    return opens >= 0 and answer.find(CLOSES, opens) >= 0


def kept(
    tokenizer: Any,
    exchanges: Iterable[Exchange],
    longest: int,
    shares: Mapping[str, float] | None = None,
    count: int = 0,
    seed: int = 0,
) -> Kept:
    """The exchanges with a complete trace and at most `longest` tokens; with `shares`, as many of each domain
    as its share of `count` (by default of as many as the scarcest domain allows).

    Raises:
        ValueError: shares that do not sum to 1, or a domain of them that has no exchange.
    """
    check_shares(shares or {})
    incomplete, too_long, left = 0, 0, []
    for one in exchanges:
        if not is_complete(one.answer):
            incomplete += 1
        elif len(tokenizer(one.question + one.answer, add_special_tokens=False)["input_ids"]) > longest:
            too_long += 1
        else:
            left.append(one)
    if not shares:
        return Kept(tuple(left), incomplete, too_long, 0)
    by_domain = {name: [one for one in left if one.domain == name] for name in shares}
    missing = next((name for name, some in by_domain.items() if not some), None)
    if missing is not None:
        named = ", ".join(sorted({one.domain for one in left})) or "none"
        raise ValueError(f"no exchange of the domain {missing!r} is left: the text has {named}")
    most = min(int(len(by_domain[name]) / share + ROUNDING) for name, share in shares.items())
    total = min(count, most) if count else most
    drawn = random.Random(seed)
    chosen = [
        one
        for name, share in shares.items()
        for one in drawn.sample(by_domain[name], int(total * share + ROUNDING))
    ]
    drawn.shuffle(chosen)
    return Kept(tuple(chosen), incomplete, too_long, len(left) - len(chosen))


def chat_records(
    tokenizer: Any, exchanges: Sequence[Exchange], longest: int, seed: int = 0, prompts_count: bool = True
) -> Records:
    """Exchanges as the tokenizer's chat template writes them, else one behind the other with a space between.

    Raises:
        ValueError: there is none.
    """
    pairs = [_written(tokenizer, one) for one in exchanges]
    return records_of(tokenizer, pairs, longest, seed, prompts_count)


def _written(tokenizer: Any, one: Exchange) -> tuple[str, str]:
    asked = asked_by_template(tokenizer, one.question)
    if not getattr(tokenizer, "chat_template", None):
        return asked, f" {one.answer}"
    return asked, one.answer + (tokenizer.eos_token or "")


def asked_by_template(tokenizer: Any, question: str) -> str:
    """A question as the tokenizer's chat template asks it; as it stands where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return question
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
