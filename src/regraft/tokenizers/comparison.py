"""What tokenizers make of text, in bytes: tokens for a byte, a character and a word, tokens that cross words,
what they share."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.progress import advance
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.tokenizers.bits_per_byte import fitted, score
from regraft.tokenizers.byte_codec import ByteIds

CROSSING = re.compile(rb"\S\s+\S")
WORD = re.compile(rb"\S+")
HELD = 4
"""Words, or parts of them, from which on tokens are counted together."""
LISTED = 20
"""Tokens of each list."""
UNITS = {
    "bytes_per_token": "bytes of text for each token",
    "characters_per_token": "characters of text for each token",
    "tokens_per_word": "tokens for each word (run between white space)",
    "crossing": "share of the text's tokens that hold parts of two words",
    "exact": "share of the pieces of text that come back as they were",
}


def compare(
    tokenizers: Mapping[str, ByteIds],
    domains: Mapping[str, Sequence[str]],
    models: Mapping[str, Model] | None = None,
) -> xr.Dataset:
    """Measure tokenizers on pieces of text by domain; with models, by the tokenizers' names, also bits per
    byte.

    Raises:
        ValueError: there is no tokenizer, or no text.
    """
    if not tokenizers or not domains or not all(domains.values()):
        raise ValueError("there is nothing to compare: name at least one tokenizer and some text")
    began = time.perf_counter()
    if models is not None:
        rooms = [
            room
            for model in models.values()
            if (room := longest_input(model.hf.config)) and not model.two_stacks
        ]
        domains = {
            name: fitted(texts, list(tokenizers.values()), min(rooms, default=0))
            for name, texts in domains.items()
        }
    values = {name: np.zeros((len(tokenizers), len(domains))) for name in UNITS}
    bits = np.full((len(tokenizers), len(domains)), np.nan)
    contents = []
    for row, (called, reader) in enumerate(tokenizers.items()):
        crosses_V = np.array([bool(CROSSING.search(content)) for content in reader.table.bytes_V])
        held_V = np.array([min(HELD, len(WORD.findall(content))) for content in reader.table.bytes_V])
        used_V = np.zeros(len(crosses_V), np.int64)
        for column, (domain, texts) in enumerate(domains.items()):
            for name, value in _measured(reader, texts, crosses_V, used_V).items():
                values[name][row, column] = value
            if models is not None:
                bits[row, column] = score(models[called], reader, texts).bits_per_byte
            advance(f"reading {domain} with {called}", column + 1, len(domains))
        contents.append({**_vocabulary(reader, crosses_V, used_V), **_by_words(held_V, used_V)})
    both = ("tokenizer", "domain")
    read = [sum(len(t.encode()) for t in texts) for texts in domains.values()]
    return xr.Dataset(
        {
            **{name: (both, values[name], {"units": units}) for name, units in UNITS.items()},
            **({} if models is None else {"bits_per_byte": (both, bits, {"units": "bits per byte of text"})}),
            **_vocabularies(list(tokenizers.values()), contents),
            "bytes": ("domain", read, {"units": "bytes read"}),
        },
        coords={
            "tokenizer": list(tokenizers),
            "other": list(tokenizers),
            "domain": list(domains),
            "rank": range(1, LISTED + 1),
            "words": [*map(str, range(HELD)), f"{HELD} or more"],
        },
        attrs={
            **{name: version(name) for name in ("regraft", "tokenizers", "transformers")},
            "tokenizers_sha256": ", ".join(f"{name} {digest(reader)}" for name, reader in tokenizers.items()),
            "experiment": "tokenizers",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": time.perf_counter() - began,
        },
    )


def _vocabulary(reader: ByteIds, crosses_V: np.ndarray, used_V: np.ndarray) -> dict[str, Any]:
    """What one vocabulary holds: tokens with parts of two words by how often they came, and its longest."""
    most = np.argsort(-np.where(crosses_V, used_V, -1), kind="stable")[:LISTED]
    most = [int(i) for i in most if crosses_V[i] and used_V[i]]
    longest = sorted(range(len(crosses_V)), key=lambda i: -len(reader.table.bytes_V[i]))[:LISTED]
    return {
        "vocabulary": len(reader.table),
        "vocabulary_crossing": float(crosses_V.mean()),
        "crossing_token": _padded([shown(reader.table.bytes_V[i]) for i in most], ""),
        "crossing_count": _padded([int(used_V[i]) for i in most], 0),
        "longest_token": _padded([shown(reader.table.bytes_V[i]) for i in longest], ""),
    }


def _by_words(held_V: np.ndarray, used_V: np.ndarray) -> dict[str, Any]:
    """Shares of the vocabulary, and of the text's tokens, by how many words or parts of words a token
    holds."""
    kinds, used = np.bincount(held_V, minlength=HELD + 1), np.bincount(held_V, used_V, HELD + 1)
    return {
        "vocabulary_by_words": (kinds / max(1, kinds.sum())).tolist(),
        "text_by_words": (used / used.sum()).tolist(),
    }


VOCABULARY_UNITS = {
    "vocabulary_by_words": "share of the vocabulary that holds so many words or parts of words",
    "text_by_words": "share of the text's tokens that hold so many words or parts of words",
    "vocabulary": "tokens",
    "vocabulary_crossing": "share of the vocabulary that holds parts of two words",
    "overlap": "share of the row's contents that the column has as well",
    "crossing_token": "most frequent token that holds parts of two words",
    "crossing_count": "times in the text",
    "longest_token": "longest token of the vocabulary",
}


def _vocabularies(
    readers: Sequence[ByteIds], contents: Sequence[dict[str, Any]]
) -> dict[str, tuple[Any, ...]]:
    """What the vocabularies hold, and how much of each the others have too."""
    sets = [set(reader.id_of) for reader in readers]
    found = {name: [one[name] for one in contents] for name in contents[0]}
    found["overlap"] = [[len(a & b) / max(1, len(a)) for b in sets] for a in sets]
    further = {
        "overlap": ("other",),
        "vocabulary_by_words": ("words",),
        "text_by_words": ("words",),
        **dict.fromkeys(("crossing_token", "crossing_count", "longest_token"), ("rank",)),
    }
    return {
        name: (("tokenizer", *further.get(name, ())), found[name], {"units": units})
        for name, units in VOCABULARY_UNITS.items()
    }


def _measured(
    reader: ByteIds, texts: Sequence[str], crosses_V: np.ndarray, used_V: np.ndarray
) -> dict[str, float]:
    """Figures of one tokenizer on one domain; the ids are added to what was used."""
    encoded = reader.encode_texts(texts)
    exact = [reader.keeps(text.encode(), ids) for ids, text in zip(encoded, texts, strict=True)]
    ids = np.concatenate([np.asarray(row, np.int64) for row in encoded])
    if not len(ids):
        raise ValueError("a tokenizer makes no token of the text: give more text")
    np.add.at(used_V, ids, 1)
    return {
        "bytes_per_token": sum(len(text.encode()) for text in texts) / len(ids),
        "characters_per_token": sum(map(len, texts)) / len(ids),
        "tokens_per_word": len(ids) / max(1, sum(len(text.split()) for text in texts)),
        "crossing": float(crosses_V[ids].mean()),
        "exact": float(np.mean(exact)),
    }


def shown(content: bytes) -> str:
    """A token's bytes as text; what is no whole character as hexadecimal."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return " ".join(f"{byte:02x}" for byte in content)


def digest(reader: ByteIds) -> str:
    """SHA-256 of a tokenizer's file, its first 16 digits."""
    return hashlib.sha256(reader.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def _padded(values: list[Any], filler: str | int) -> list[Any]:
    return (values + [filler] * LISTED)[:LISTED]
