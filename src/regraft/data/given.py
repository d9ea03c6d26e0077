"""Texts of the user's own: lines or JSON in a file, or running text cut by tokens; and what a tokenizer can say of a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from regraft.model.forward import longest_input
from regraft.model.opened import Model

PASSAGE = 32
"""Tokens of a passage of running text that is given as a prompt."""
MOST_UNKNOWN = 0.05
"""Share of unknown tokens beyond which a text is not said by a tokenizer: one word in twenty."""


def read_text(path: Path, what: str) -> str:
    """A text file's content.

    Raises:
        ValueError: it cannot be read, is no UTF-8 text, or is empty.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: give a text file as {what}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a text file as {what}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty: give a text file as {what}")
    return text


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: one on each line, or a JSON list of texts or of objects with a `prompt`.

    Raises:
        ValueError: it cannot be read, or holds no prompt.
    """
    text = read_text(path, "prompts")
    if not text.lstrip().startswith("["):
        return [line for line in text.splitlines() if line.strip()]
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON list ({error}): write prompts as lines, or as a JSON list of texts") from error
    given = [entry.get("prompt") if isinstance(entry, dict) else entry for entry in entries]
    found = [prompt for prompt in given if isinstance(prompt, str) and prompt.strip()]
    if not found or len(found) < len(given):
        raise ValueError(f"{path} holds an entry that is no prompt: write a list of texts, or of objects with a prompt")
    return found


def passages(model: Model, text: str, longest: int) -> list[list[int]]:
    """Token ids of running text, paragraph by paragraph, cut after `longest` tokens or as many as the model reads."""
    room = longest_input(model.hf.config)
    most = min(longest, room - 2) if room > 2 else longest
    rows = [model.encode(" ".join(part.split())) for part in text.split("\n\n") if part.strip()]
    return [row[i : i + most] for row in rows for i in range(0, len(row), most)]


def given_prompts(model: Model, prompts: Sequence[str] | None, file: Path | None, text: Path | None, count: int) -> list[str]:
    """The user's prompts: those of the command line, else of a file, else `count` passages of a running text.

    Raises:
        ValueError: several of them at once, a file that holds none, or a passage and no tokenizer to write it with.
    """
    ways = [name for name, given in (("--prompts", prompts), ("--prompts-file", file), ("--text", text)) if given]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} both say what is read: give one of them")
    if file is not None:
        return read_prompts(file)
    if text is None:
        return list(prompts or [])
    found = [row for row in passages(model, read_text(text, "text"), PASSAGE) if len(row) > 2]
    if not found:
        raise ValueError(f"{text} holds less than three tokens in a paragraph: give more text")
    step = max(1, len(found) // max(1, count))
    chosen = found[::step][:count]
    if model.tokenizer is None:
        return [" ".join(map(str, row)) for row in chosen]
    special = set(getattr(model.tokenizer, "all_special_ids", None) or [])
    return [model.tokenizer.decode([i for i in row if i not in special]) for row in chosen]


def unknown_share(model: Model, texts: Sequence[str]) -> float:
    """Share of the texts' tokens that are the tokenizer's unknown one; 0 where it has none, or there is no tokenizer."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if unknown is None:
        return 0.0
    ids = [i for text in texts for i in model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    return sum(i == unknown for i in ids) / max(1, len(ids))


def pieces_per_word(model: Model, texts: Sequence[str]) -> float:
    """Tokens for each word of the texts."""
    tokens = sum(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return tokens / max(1, sum(len(text.split()) for text in texts))


def check_sayable(model: Model, texts: Sequence[str], what: str) -> None:
    """Make sure that a tokenizer has words for texts that ship with regraft; a user's own are only noted.

    Raises:
        ValueError: more than one token in twenty is unknown to it.
    """
    share = unknown_share(model, texts)
    if share > MOST_UNKNOWN:
        raise ValueError(f"the tokenizer of {model.name} does not know {share:.0%} of the tokens of {what}: give your own texts")
