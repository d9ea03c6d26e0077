"""How much a page may ask for: what is beyond is refused with a sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The bounds of one studio."""

    tokens: int = 256
    """Of a prompt: the live lens reads every depth at every one of them."""
    letters: int = 8_000
    """Of any text that is typed: before a tokenizer sees it."""
    touches: int = 32
    """Changes that stand at once."""
    stops: int = 256
    """Blocks on a route."""
    asked: int = 32
    """Questions that a model has to answer at once."""
    written: int = 24
    """Tokens of a continuation."""
    queued: int = 8
    """Experiments that wait, the one that runs not counted."""
    models: int = 3
    """That are open at once."""
    pages: int = 16
    """Browser pages at once."""
    message: int = 1 << 20
    """Bytes of one message from a browser."""


class RefusedError(ValueError):
    """What a page asked for and is not given; the sentence says why and what to do."""


def sentence(error: BaseException) -> str:
    """An error as a page says it."""
    return " ".join(str(error).split()) or type(error).__name__


def check_text(text: str, what: str, limits: Limits) -> str:
    """A typed text.

    Raises:
        RefusedError: it is too long.
    """
    if len(text) > limits.letters:
        raise RefusedError(
            f"{what} has {len(text):,} characters, and a page takes {limits.letters:,}: shorten it"
        )
    return text
