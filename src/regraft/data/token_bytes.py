"""The bytes that every token of a vocabulary stands for: byte-level tables undone, SentencePiece marks,
WordPiece prefixes.

How a tokenizer writes bytes is read from its own decoder, not from its name. Special tokens stand for no
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Kind = Literal["text", "special", "reserved"]
SPACE = "▁"


@dataclass(frozen=True)
class TokenBytes:
    """For every id: its bytes (empty for special and reserved ids), and what kind of id it is.

    A reserved id is a row of the model's table that no token of the tokenizer has.
    """

    bytes_V: tuple[bytes, ...]
    kind_V: tuple[Kind, ...]
    scheme: str

    def __len__(self) -> int:
        return len(self.bytes_V)


def token_bytes(tokenizer: Any, rows: int | None = None) -> TokenBytes:
    """The bytes of every token; `rows` is the number of rows of the model's table, which may be larger than
    the vocabulary.

    Raises:
        ValueError: the tokenizer's decoder is of a kind whose bytes cannot be told, or it has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    try:
        stated = json.loads(backend.to_str())
    except AttributeError as error:
        raise ValueError(
            f"{type(tokenizer).__name__} has no tokenizer.json, so its tokens' bytes cannot be told: convert"
            " it to a fast one"
        ) from error
    scheme, undo = _undo(stated)
    special = {entry["id"] for entry in stated["added_tokens"] if entry["special"]}
    plain = {entry["id"]: entry["content"] for entry in stated["added_tokens"] if not entry["special"]}
    vocabulary = {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}
    size = max(rows or 0, max(vocabulary, default=-1) + 1)
    found: list[bytes] = []
    kinds: list[Kind] = []
    for number in range(size):
        token = vocabulary.get(number)
        kind: Kind = "reserved" if token is None else "special" if number in special else "text"
        kinds.append(kind)
        if kind != "text":
            found.append(b"")
        else:
            assert token is not None
            as_written = number in plain and not scheme.startswith("SentencePiece")
            found.append(plain[number].encode() if as_written else undo(token))
    return TokenBytes(tuple(found), tuple(kinds), scheme)


def _undo(stated: dict[str, Any]) -> tuple[str, Callable[[str], bytes]]:
    """How this tokenizer's tokens become bytes, by its decoder."""
    steps = _steps(stated.get("decoder"))
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        return "byte-level", _byte_level
    if "WordPiece" in kinds:
        prefix = next(step["prefix"] for step in steps if step["type"] == "WordPiece")
        return "WordPiece", lambda token: _word_piece(token, prefix)
    if "BPEDecoder" in kinds:
        suffix = next(step["suffix"] for step in steps if step["type"] == "BPEDecoder")
        return "BPE with word ends", lambda token: _word_end(token, suffix)
    marks = [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    marks += [
        step["pattern"].get("String", "")
        for step in steps
        if step["type"] == "Replace" and step["content"] == " "
    ]
    if marks or "ByteFallback" in kinds:
        mark, falls_back = marks[0] if marks else SPACE, "ByteFallback" in kinds
        name = "SentencePiece with byte fallback" if falls_back else "SentencePiece"
        return name, lambda token: _sentence_piece(token, mark, falls_back)
    what = ", ".join(kinds) or "no decoder"
    raise ValueError(f"the bytes of this tokenizer's tokens cannot be told from its decoder ({what})")


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return (
        [step for inner in decoder["decoders"] for step in _steps(inner)]
        if decoder["type"] == "Sequence"
        else [decoder]
    )


@cache
def byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, the
    rest from 256 on."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {
        **{chr(byte): byte for byte in kept},
        **{chr(256 + place): byte for place, byte in enumerate(moved)},
    }


def _byte_level(token: str) -> bytes:
    table = byte_of_character()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def _word_piece(token: str, prefix: str) -> bytes:
    """A piece that goes on keeps its letters; one that begins a word is preceded by a space."""
    return (
        token.removeprefix(prefix).encode()
        if token.startswith(prefix) and token != prefix
        else b" " + token.encode()
    )


def _word_end(token: str, suffix: str) -> bytes:
    return token.removesuffix(suffix).encode() + b" " if suffix and token.endswith(suffix) else token.encode()


def _sentence_piece(token: str, mark: str, falls_back: bool) -> bytes:
    if falls_back and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(mark, " ").encode()
