"""Texts of the user's own: lines or JSON in a file, or running text cut by tokens; and what a tokenizer can
say of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

from regraft.core.files import read_text
from regraft.data.text_files import read_prompts
from regraft.model.block_call import longest_input
from regraft.model.model import Model

Item = TypeVar("Item")

PASSAGE = 32
"""Tokens of a passage of running text that is given as a prompt."""
ASKED = 10
"""Texts that a model is tried on: enough to tell one that never saw such text."""
CHANCE = 0.97
"""Share of the logarithm of the vocabulary: a model whose loss is beyond it has not learnt anything of a
text."""
MOST_UNKNOWN = 0.05
"""Share of unknown tokens beyond which a text is not said by a tokenizer: one word in twenty."""


def passages(model: Model, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Token ids of texts, one after the other, cut after `longest` tokens or as many as the model reads."""
    room = longest_input(model.hf.config)
    most = min(longest, room - 2) if room > 2 else longest
    rows = [model.encode(" ".join(part.split())) for part in texts if part.strip()]
    return [row[i : i + most] for row in rows for i in range(0, len(row), most)]


def given_prompts(model: Model, prompts: Sequence[str] | None, file: str, text: str, count: int) -> list[str]:
    """The user's prompts: those of the command line, else of a file, else `count` passages of a running text.

    Raises:
        ValueError: a file that holds none.
    """
    if file:
        return read_prompts(file)
    if not text:
        return list(prompts or [])
    found = [
        row
        for row in passages(model, read_text(text, "give running text").split("\n\n"), PASSAGE)
        if len(row) > 2
    ]
    if not found:
        raise ValueError(f"{text} holds less than three tokens in a paragraph: give more text")
    step = max(1, len(found) // max(1, count))
    chosen = found[::step][:count]
    if model.tokenizer is None:
        return [" ".join(map(str, row)) for row in chosen]
    special = set(getattr(model.tokenizer, "all_special_ids", None) or [])
    return [model.tokenizer.decode([i for i in row if i not in special]) for row in chosen]


def first_of(items: Sequence[Item], count: int, what: str) -> list[Item]:
    """As many of the user's prompts, pairs or groups as are asked for: the first ones, and all of them for 0.

    Raises:
        ValueError: a negative number.
    """
    if count < 0:
        raise ValueError(
            f"{count} is too few: measure at least one of the {what}, or write 0 for all of them"
        )
    return list(items[:count] if count else items)


def unknown_share(model: Model, texts: Sequence[str]) -> float:
    """Share of the texts' tokens that are the tokenizer's unknown one; 0 where it has none, or there is no
    tokenizer."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if unknown is None:
        return 0.0
    ids = [i for text in texts for i in model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    return sum(i == unknown for i in ids) / max(1, len(ids))


def pieces_per_word(model: Model, texts: Sequence[str]) -> float:
    """Tokens for each word of the texts."""
    tokens = sum(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return tokens / max(1, sum(len(text.split()) for text in texts))


def own_loss(model: Model, texts: Sequence[str]) -> float:
    """Mean loss of the texts' own tokens, in nats; infinite where the model cannot read them."""
    losses = []
    for text in texts:
        ids = torch.tensor(
            [model.encode(text)[: longest_input(model.hf.config) or None]], device=model.device
        )
        with torch.no_grad():
            logits_TV = model.run(input_ids=ids).logits[0, :-1].float()
        losses += torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:], reduction="none").tolist()
    return sum(losses) / len(losses) if losses else float("inf")


def writes_on(model: Model) -> bool:
    """Whether a model predicts the next token of a text that it reads."""
    return model.causal and not model.two_stacks and model.parts.head is not None and not model.parts.labels


def check_known(model: Model, texts: Sequence[str], what: str) -> None:
    """Make sure that a tokenizer knows the tokens of texts that ship with regraft.

    Raises:
        ValueError: more than one token in twenty is unknown to it.
    """
    share = unknown_share(model, texts)
    if share > MOST_UNKNOWN:
        raise ValueError(
            f"the tokenizer of {model.name} does not know {share:.0%} of the tokens of {what}: give your own"
            " texts"
        )


def check_sayable(model: Model, texts: Sequence[str], what: str) -> None:
    """Make sure that a tokenizer and a model know texts that ship with regraft; a user's own are only noted.

    Raises:
        ValueError: more than one token in twenty is unknown to the tokenizer, or the model predicts them no
            better than chance.
    """
    if model.tokenizer is None:
        return
    check_known(model, texts, what)
    if not writes_on(model):
        return
    key = f"loss of {what}"
    if key not in model.proved:
        model.proved[key] = own_loss(model, list(texts)[:ASKED])
    if model.proved[key] > CHANCE * math.log(model.vocabulary):
        raise ValueError(
            f"{model.name} predicts {what} no better than chance ({model.proved[key]:.1f} nats per token, "
            f"{math.log(model.vocabulary):.1f} where every token is as likely): give your own texts"
        )
