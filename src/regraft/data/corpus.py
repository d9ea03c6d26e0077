"""Running text to search, as token ids: a file of the user's, or text that suits the model."""

from __future__ import annotations

from regraft.core.files import read_text
from regraft.data.contrasts import general as contrasts
from regraft.data.generation import completions, is_specimen
from regraft.data.own_texts import check_sayable, passages
from regraft.data.prompts import general
from regraft.model.model import Model
from regraft.specimens import almanac

LONGEST, ALMANAC_CHARACTERS = 128, 40_000
"""Tokens of a passage, and characters of the almanac that stand in for a corpus."""


def corpus(model: Model, path: str = "", seed: int = 0) -> list[list[int]]:
    """Passages of at most 128 tokens: a text file's, a specimen's almanac, or the general prompts and
    contrasts, completed.

    Raises:
        ValueError: the file is no text, or holds none, or there is no tokenizer to write other text with.
    """
    if path:
        return passages(model, read_text(path, "give a text file as corpus").split("\n\n"), LONGEST)
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name} has no tokenizer: name a corpus of token ids with --corpus, or a tokenizer"
        )
    if is_specimen(model):
        return passages(model, almanac.corpus(ALMANAC_CHARACTERS, seed + 1), LONGEST)
    check_sayable(model, [prompt.text for prompt in general()], "the English text that ships with regraft")
    texts = [prompt.text for prompt in general()]
    if model.causal and model.parts.head is not None:
        texts.append(
            "".join(model.token_text(i) for c in completions(model, general()) for i in c.completion_ids)
        )
    texts += [
        c.prompt + ending
        for c in contrasts()
        for ending in (c.base, c.synonym, c.antonym, c.style, c.unrelated)
    ]
    return passages(model, texts, LONGEST)


def text_rows(model: Model, path: str, seed: int, length: int, count: int) -> list[list[int]]:
    """Running text as rows of so many tokens, evenly spread over it.

    Raises:
        ValueError: the text is too short, or there is none.
    """
    ids = [token for passage in corpus(model, path, seed) for token in passage]
    if len(ids) < length * count:
        raise ValueError(
            f"the text has {len(ids)} tokens, and {count} texts of {length} are asked for: name a longer one,"
            " or fewer texts"
        )
    step = len(ids) // count
    return [ids[first : first + length] for first in range(0, step * count, step)]
