"""Long pages of the almanac: who has what is told once and asked for later, and passages stand twice.

Between a fact and its question stand other sentences, so that a model that was trained on such pages reads
far back: `specimen:recall` was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from regraft.specimens import almanac

TWICE, TOLD, ASKED = 0.5, 0.35, 0.7
"""Shares: of pages that begin with a passage that stands twice; of a page's sentences that tell something
new, where names are left; and, of the others, that ask for something told."""
SENTENCES = 40
"""Most sentences of a passage that stands twice."""


def told(name: str, thing: str, number: int) -> str:
    """A fact: who has what.

    Examples:
        >>> told("Mary", "key", 47)
        'Mary has key 47.'
    """
    return f"{name} has {thing} {number}."


def asked(name: str) -> str:
    """The question for it.

    Examples:
        >>> asked("Mary")
        'What has Mary?'
    """
    return f"What has {name}?"


def page(drawn: random.Random, characters: int) -> str:
    """A page of at least so many characters."""
    written: list[str] = []
    length = 0
    for sentence in _sentences(drawn):
        written.append(sentence)
        length += len(sentence) + 1
        if length > characters:
            break
    return " ".join(written)


def _sentences(drawn: random.Random) -> Iterator[str]:
    if drawn.random() < TWICE:
        passage = [_other(drawn) for _ in range(drawn.randint(2, SENTENCES))]
        yield from passage
        yield from passage
    names = drawn.sample(almanac.NAMES, len(almanac.NAMES))
    facts: list[tuple[str, str]] = []
    while True:
        if names and drawn.random() < TOLD:
            name, thing, number = names.pop(), drawn.choice(almanac.THINGS), drawn.randint(10, 99)
            facts.append((name, f"{thing} {number}."))
            yield told(name, thing, number)
        elif facts and drawn.random() < ASKED:
            name, answer = drawn.choice(facts)
            yield f"{asked(name)} {answer}"
        else:
            yield _other(drawn)


def _other(drawn: random.Random) -> str:
    kinds, weights = zip(*almanac.KINDS, strict=True)
    return drawn.choices(kinds, weights)[0](drawn)
