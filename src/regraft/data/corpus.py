"""Running text to search: a file of the user's, or text that suits the model."""

from __future__ import annotations

from pathlib import Path

from regraft.data.completions import completions, is_specimen
from regraft.data.contrasts import general as contrasts
from regraft.data.prompts import general
from regraft.model.opened import Model
from regraft.specimens import almanac

LONGEST_WORDS, ALMANAC_CHARACTERS = 64, 40_000


def corpus(model: Model, path: str = "", seed: int = 0) -> list[str]:
    """Passages of at most 64 words: a text file's, a specimen's almanac, or the general prompts and contrasts, completed.

    Raises:
        ValueError: the file is no text, or holds none.
    """
    if path:
        return _passages(_text(Path(path)))
    if is_specimen(model):
        return [p for document in almanac.corpus(ALMANAC_CHARACTERS, seed + 1) for p in _passages(document)]
    said = [prompt.text for prompt in general()]
    if model.causal and model.parts.head is not None:
        texts = [model.token_text(i) for c in completions(model, general()) for i in c.completion_ids]
        said += _passages("".join(texts))
    return said + [c.prompt + ending for c in contrasts() for ending in (c.base, c.synonym, c.antonym, c.style, c.unrelated)]


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: give a text file as corpus") from error
    if not text.strip():
        raise ValueError(f"{path} is empty: give a text file as corpus")
    return text


def _passages(text: str) -> list[str]:
    """The text's paragraphs, cut after every 64 words."""
    words = [paragraph.split() for paragraph in text.split("\n\n")]
    return [" ".join(w[i : i + LONGEST_WORDS]) for w in words for i in range(0, len(w), LONGEST_WORDS)]
