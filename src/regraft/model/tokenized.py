"""Texts as a model's tokenizers cut and read them: prompts, what follows them, single tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regraft.model.block_call import text_config
from regraft.model.parts import Parts

SEAMS = ("a", ".", "\n", "1")
"""Texts behind which another is cut; one of them is enough that does not grow together with it."""
SPACE_MARK = "\u2581"


class ReadsTexts:
    """What of a model has to do with text. `Model` has all that is named here."""

    hf: Any
    tokenizer: Any
    target_tokenizer: Any
    name: str
    parts: Parts

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one."""
        raise NotImplementedError

    @property
    def two_stacks(self) -> bool:
        """Whether this is an encoder-decoder."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens as the tokenizer adds them.

        An encoder-decoder's input is closed with its end token where the tokenizer did not do so; of a model
        that writes on, an end token that the tokenizer put behind the text is left out.

        Raises:
            ValueError: the text is empty, or the model was opened without a tokenizer.
        """
        if (
            self.tokenizer is None
            and text
            and not all(word.isdigit() for word in text.replace(",", " ").split())
        ):
            raise ValueError(
                f"{self.name} has no tokenizer: write token ids (5,6,7), or name a tokenizer with --tokenizer"
                " (tokenizer=...)"
            )
        if self.tokenizer is None:
            ids = [int(word) for word in text.replace(",", " ").split()]
        else:
            ids = list(self.tokenizer(text)["input_ids"]) if text else []
        end = getattr(text_config(self.hf.config), "eos_token_id", None)
        if ids and self.two_stacks and isinstance(end, int) and ids[-1] != end:
            ids.append(end)
        writes = self.causal and not self.two_stacks and self.parts.head is not None
        if ids and writes and self._closed_by_tokenizer(text, ids):
            ids.pop()
        if not ids:
            raise ValueError("the prompt is empty: write at least one token of text")
        return ids

    @property
    def writer(self) -> Any:
        """The tokenizer of what the model writes, which may be another than that of what it reads."""
        return self.tokenizer if self.target_tokenizer is None else self.target_tokenizer

    def _closed_by_tokenizer(self, text: str, ids: list[int]) -> bool:
        """Whether the tokenizer put its end token behind a text: what follows is then asked behind the end of
        everything."""
        if self.tokenizer is None or ids[-1] != getattr(self.tokenizer, "eos_token_id", None):
            return False
        plain = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids[-1 - len(plain) : -1] == plain and len(plain) < len(ids)

    def continuation(self, text: str) -> list[int]:
        """Token ids of a text as it is cut behind other text, without special tokens.

        Some tokenizers put a space mark in front of whatever they are given, be it the beginning of a text or
        not: the ids are those that stand behind some other text, unless the tokenizer cuts the text alone in
        the same way.
        """
        if not text:
            return []
        if self.writer is None:
            return self.encode(text)
        alone = self._cut(text)
        behind = [
            joined[len(first) :] for first, joined in self._joined(text) if joined[: len(first)] == first
        ]
        return alone if alone in behind or not behind else behind[0]

    def _joined(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of a few short texts, alone and with this one behind them."""
        for first in SEAMS:
            yield self._cut(first), self._cut(first + text)

    def _cut(self, text: str) -> list[int]:
        return list(self.writer(text, add_special_tokens=False)["input_ids"])

    def single_token(self, text: str) -> int:
        """The id of a text that must be one token behind others, as a target of a metric, with or without a
        space in front.

        As it is written comes first; where that is several tokens and the other spelling is one, it is that
        one.

        Raises:
            ValueError: it is not one token; its pieces are shown.
        """
        if self.writer is None and not text.isdigit():
            raise ValueError(f"{self.name} has no tokenizer: give the target as a token id")
        if self.writer is None:
            return int(text)
        if self.parts.labels:
            raise ValueError(
                f"{self.name} scores {self.parts.labels} labels, not tokens: give the target as a label's"
                " number"
            )
        ids, alone = self.continuation(text), self._cut(text)
        ids = alone if len(ids) != 1 and len(alone) == 1 else ids
        if len(ids) != 1 and text.strip():
            other = self.continuation(text[1:] if text.startswith(" ") else f" {text}")
            ids = other if len(other) == 1 else ids
        if len(ids) != 1:
            pieces = " ".join(repr(self.token_text(i)) for i in ids)
            raise ValueError(
                f"the target {text!r} is {len(ids)} tokens here ({pieces}): choose one that is one token"
            )
        return ids[0]

    def token_text(self, token: int) -> str:
        """How a token reads behind others, or its number where there is no tokenizer.

        A piece that bears a mark for the space in front of it is read with that space, which decoding it
        alone drops.
        """
        if self.writer is None:
            return str(token)
        text, piece = self.writer.decode([token]), self.writer.convert_ids_to_tokens(token)
        marked = isinstance(piece, str) and piece.startswith(SPACE_MARK) and not text.startswith(" ")
        return f" {text}" if marked else text
