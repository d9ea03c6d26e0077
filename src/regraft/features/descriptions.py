"""Descriptions of features by a language model that the user names, each scored by whether it tells contexts
apart; off unless an endpoint is given.

The endpoint speaks the protocol of OpenAI's chat completions; a key is taken from the environment alone. The
score is that of detection (Paulo et al., 2024): from the description alone the model says of contexts
whether the feature is active in them: 5 of the largest and 5 without it, then 5 at random and 5 without it.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

KEY = "OPENAI_API_KEY"
"""The variable that holds the key, where the endpoint wants one."""
EACH = 5
"""Contexts of each kind that a description is scored on."""
SHOWN = 8
"""Contexts that a description is made from."""
SECONDS = 60.0
"""How long one answer is waited for."""
LONGEST = 300
"""Characters of a description that are kept."""
WRITE = (
    "Below are texts in which one feature of a language model is active, most strongly at the tokens between"
    " << and >>. Say in one short sentence what the feature is active at. Answer with the sentence alone."
)
DETECT = (
    "A feature of a language model is described as: {said}\n\nOf each numbered text, say whether the feature"
    " is active in it. Answer with a JSON list of the numbers of those in which it is, and nothing else."
)
"""What the language model is asked."""


class EndpointError(RuntimeError):
    """An endpoint that does not answer, or not as the protocol has it."""


@dataclass(frozen=True)
class Endpoint:
    """Where a language model answers: the address in front of `/chat/completions`, and the model's name
    there."""

    address: str
    model: str

    def __post_init__(self) -> None:
        """Make sure that it can be asked.

        Raises:
            ValueError: the address is none.
        """
        if not self.address.startswith(("http://", "https://")):
            raise ValueError(f"{self.address} is no address of an endpoint: write http://... or https://...")

    def ask(self, instruction: str, text: str) -> str:
        """One answer.

        Raises:
            EndpointError: nobody answers, or without text.
        """
        body = {
            "model": self.model, "temperature": 0,
            "messages": [{"role": "system", "content": instruction}, {"role": "user", "content": text}],
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.address.rstrip('/')}/chat/completions"
        request = Request(address, json.dumps(body).encode(), headers)
        try:
            with urlopen(request, timeout=SECONDS) as answer:
                found = json.loads(answer.read())
            return str(found["choices"][0]["message"]["content"])
        except (URLError, OSError, ValueError) as error:
            raise EndpointError(f"{self.address} does not answer: {error}") from error
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"{self.address} answers without a text: {error}") from error


@dataclass(frozen=True)
class Description:
    """What a feature is said to be active at, and the share of contexts that this tells rightly: of the
    largest and others, of random ones and others."""

    text: str
    top: float
    random: float

    @property
    def score(self) -> float:
        """Mean of both."""
        return (self.top + self.random) / 2


def described(
    endpoint: Endpoint, one: Mapping[str, Any], others: Sequence[Mapping[str, Any]], seed: int = 0
) -> Description:
    """A feature's description and its scores.

    Args:
        endpoint: who is asked.
        one: the feature, as `Facts.of_block` tells it.
        others: further features of the block, whose contexts are those without it.
        seed: of which contexts are taken.

    Raises:
        EndpointError: the endpoint does not answer.
        ValueError: there are no other contexts to tell it from.
    """
    drawn = random.Random(f"{seed} {one['index']}")
    top = one["examples_quantiles"][0]["examples"]
    sampled = [e for group in one["examples_quantiles"][1:] for e in group["examples"]]
    own = {plain(example) for example in (*top, *sampled)}
    elsewhere = [other["examples_quantiles"][0]["examples"] for other in others if other is not one]
    negatives = [example for some in elsewhere for example in some if plain(example) not in own]
    if len(negatives) < EACH:
        raise ValueError("too few contexts without the feature: read more text")
    said = endpoint.ask(WRITE, "\n\n".join(marked(e) for e in top[:SHOWN])).strip()[:LONGEST]
    scores = []
    for some in (top, sampled):
        right = drawn.sample(some, min(EACH, len(some)))
        wrong = drawn.sample(negatives, len(right))
        scores.append(_detected(endpoint, said, right, wrong, drawn) if right else float("nan"))
    return Description(said, scores[0], scores[1])


def _detected(
    endpoint: Endpoint, said: str, right: Sequence[Any], wrong: Sequence[Any], drawn: random.Random
) -> float:
    """Share of the contexts of which the model says rightly whether the feature is active."""
    mixed = [(True, plain(e)) for e in right] + [(False, plain(e)) for e in wrong]
    drawn.shuffle(mixed)
    texts = "\n\n".join(f"{number}. {text}" for number, (_, text) in enumerate(mixed, 1))
    answer = endpoint.ask(DETECT.format(said=said), texts)
    named = {int(number) for number in re.findall(r"\d+", answer)}
    return sum((number in named) == active for number, (active, _) in enumerate(mixed, 1)) / len(mixed)


def plain(example: Mapping[str, Any]) -> str:
    """A context as text."""
    return "".join(example["tokens"])


def marked(example: Mapping[str, Any]) -> str:
    """A context with the strongest tokens between marks."""
    most = max(example["tokens_acts_list"])
    return "".join(
        f"<<{token}>>" if act > most / 2 else token
        for token, act in zip(example["tokens"], example["tokens_acts_list"], strict=True)
    )
