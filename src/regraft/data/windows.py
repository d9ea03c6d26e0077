"""Training text as token ids: files, folders or any iterable of texts, encoded once into a file, and cut into
equal windows.

Which windows make a step's batch follows from seed and step alone, so a run that was broken off needs no
memory of the data but the number of its step. Shapes: B windows, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from regraft.core.files import whole_file
from regraft.core.progress import advance
from regraft.data.text_files import pieces_in, text_files, text_of
from regraft.model.model import Model

AT_ONCE, CHARACTERS_AT_ONCE = 256, 4_000_000
"""Texts and characters that a tokenizer is given at once, so that its threads have work and memory stays
small."""


class TrainingText(Protocol):
    """What a trainer reads: which sequences make a step's batch follows from seed and step alone."""

    @property
    def ids(self) -> np.ndarray:
        """All tokens in a row."""
        ...

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        ...

    @property
    def seed(self) -> int:
        """Of the order."""
        ...

    def digest(self) -> str:
        """SHA-256 of what is read."""
        ...

    def batch(self, step: int, size: int) -> Tensor:
        """A step's batch, as the task takes it."""
        ...


@dataclass(frozen=True)
class Windows:
    """Windows of T ids over one long row of tokens; each is seen once before any is seen twice."""

    ids: np.ndarray
    length: int
    seed: int

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def batch(self, step: int, size: int) -> Tensor:
        """The ids (B, T) of a step's batch."""
        return self.rows(range(step * size, (step + 1) * size))

    def rows(self, numbers: Iterable[int]) -> Tensor:
        """The windows (B, T) of some numbers, counted on through every pass over the text."""
        rows = [self._window(*divmod(number, len(self))) for number in numbers]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def counts(self, vocabulary: int) -> np.ndarray:
        """How often each id occurs, read a few million at a time."""
        found = np.zeros(vocabulary, np.int64)
        for start in range(0, len(self.ids), 1 << 22):
            found += np.bincount(self.ids[start : start + (1 << 22)], minlength=vocabulary)[:vocabulary]
        return found

    def digest(self) -> str:
        """SHA-256 of the ids."""
        found = hashlib.sha256()
        for start in range(0, len(self.ids), 1 << 22):
            found.update(np.ascontiguousarray(self.ids[start : start + (1 << 22)]).tobytes())
        return found.hexdigest()

    def _window(self, epoch: int, place: int) -> np.ndarray:
        order = _order(len(self), self.seed, epoch)
        start = int(order[place]) * self.length
        return self.ids[start : start + self.length]


_ORDERS: dict[tuple[int, int, int], np.ndarray] = {}


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the windows in one pass over the text; the last two are kept."""
    key = (count, seed, epoch)
    if key not in _ORDERS:
        while len(_ORDERS) > 1:
            _ORDERS.pop(next(iter(_ORDERS)))
        _ORDERS[key] = np.random.default_rng((seed, epoch)).permutation(count)
    return _ORDERS[key]


def windows(model: Model, sources: Iterable[str | Path], length: int, folder: Path, seed: int = 0) -> Windows:
    """Encode text into `folder` (once; a second call finds it) and cut it into windows of `length` tokens.

    A source is a text file, a JSONL file whose objects have `text`, or a folder that is searched for both.
    Documents (a file, or a line of JSONL) are joined by the end-of-text token, where there is one; inside of
    one there is none.

    Raises:
        ValueError: a source that is not there, or text of less than one window.
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer to read text with: name one with --tokenizer")
    files = text_files(sources)
    key = hashlib.sha256(
        json.dumps([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]).encode()
    )
    key.update(b"an end behind each document" + model.tokenizer.backend_tokenizer.to_str().encode())
    target = folder / f"text-{key.hexdigest()[:16]}.ids"
    if not target.is_file():
        write_ids(model.tokenizer, (piece for file in files for piece in pieces_in(file)), target, len(files))
    return cut(_ids(target), length, seed)


def windows_over(
    tokenizer: Any, texts: Iterable[str | Mapping[str, Any]], length: int, file: Path, seed: int = 0
) -> Windows:
    """Encode texts one after the other into `file`, once, and cut them into windows: for a `datasets` object
    or any other stream.

    An item is a text, or a mapping with one under `text`, as a dataset's rows are. A file that is there is
    taken as it is.

    Raises:
        ValueError: an item without text, or text of less than one window.
    """
    if not file.is_file():
        write_ids(tokenizer, ((text_of(text), True) for text in texts), file)
    return cut(_ids(file), length, seed)


def _ids(file: Path) -> np.ndarray:
    """The ids of a file; they stay on disk."""
    return np.memmap(file, dtype=np.uint32, mode="r") if file.stat().st_size else np.zeros(0, np.uint32)


def cut(ids: np.ndarray, length: int, seed: int = 0) -> Windows:
    """Windows over ids that are there already.

    Raises:
        ValueError: fewer than one window.
    """
    if length < 2 or len(ids) < length:
        raise ValueError(
            f"the text has {len(ids):,} tokens, less than one sequence of {length}: give more, or shorten it"
        )
    return Windows(ids, length, seed)


def write_ids(tokenizer: Any, pieces: Iterable[tuple[str, bool]], target: Path, files: int = 0) -> None:
    """Encode text into a file of 32-bit ids, a few hundred pieces at a time; the file appears whole or not at
    all.

    Args:
        pieces: texts, each with whether a document ends there, behind which the end-of-text token is set.
    """
    end = tokenizer.eos_token_id
    with whole_file(target) as part, part.open("wb") as stream:
        for number, some in enumerate(_groups(pieces)):
            texts, ends = zip(*some, strict=True)
            encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            for ids, ends_here in zip(encoded, ends, strict=True):
                row = [*ids, end] if ends_here and end is not None else ids
                stream.write(np.asarray(row, dtype=np.uint32).tobytes())
            advance("encoding", number, max(files, number + 1))


def _groups(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    some: list[tuple[str, bool]] = []
    for piece in pieces:
        some.append(piece)
        if len(some) == AT_ONCE or sum(len(text) for text, _ in some) > CHARACTERS_AT_ONCE:
            yield some
            some = []
    if some:
        yield some
