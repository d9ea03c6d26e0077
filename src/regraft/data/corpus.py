"""Running text to search, as token ids: a file of the user's, or text that suits the model."""

from __future__ import annotations

from pathlib import Path

from regraft.data.completions import completions, is_specimen
from regraft.data.contrasts import general as contrasts
from regraft.data.prompts import general
from regraft.model.opened import Model
from regraft.specimens import almanac

LONGEST, ALMANAC_CHARACTERS = 128, 40_000


def corpus(model: Model, path: str = "", seed: int = 0) -> list[list[int]]:
    """Passages of at most 128 tokens: a text file's, a specimen's almanac, or the general prompts and contrasts, completed.

    Raises:
        ValueError: the file is no text, or holds none, or there is no tokenizer to write other text with.
    """
    if path:
        return _passages(model, _text(Path(path)).split("\n\n"))
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer: name a corpus of token ids with --corpus, or a tokenizer")
    if is_specimen(model):
        return _passages(model, almanac.corpus(ALMANAC_CHARACTERS, seed + 1))
    said = [prompt.text for prompt in general()]
    if model.causal and model.parts.head is not None:
        said.append("".join(model.token_text(i) for c in completions(model, general()) for i in c.completion_ids))
    said += [c.prompt + ending for c in contrasts() for ending in (c.base, c.synonym, c.antonym, c.style, c.unrelated)]
    return _passages(model, said)


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: give a text file as corpus") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a text file as corpus") from error
    if not text.strip():
        raise ValueError(f"{path} is empty: give a text file as corpus")
    return text


def _passages(model: Model, texts: list[str]) -> list[list[int]]:
    """The texts' token ids, cut after as many tokens as the model can read, at most 128."""
    most = getattr(model.hf.config, "max_position_embeddings", None)
    longest = min(LONGEST, most - 2) if isinstance(most, int) and most > 2 else LONGEST
    ids = [model.encode(" ".join(text.split())) for text in texts if text.strip()]
    return [row[i : i + longest] for row in ids for i in range(0, len(row), longest)]
