"""What transcoder adapters are trained and measured on: plain text, chat records, rows of a data set, worked
sums."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from regraft.core.progress import tell
from regraft.data.chat_records import chat_records, kept
from regraft.data.exchanges import Exchange, exchange_of, exchanges_in, is_chat_file, is_exchange
from regraft.data.problems import THINKS
from regraft.data.records import Records, records_of
from regraft.data.text_files import dataset_rows, text_files
from regraft.data.windows import Windows, windows, windows_over
from regraft.model.model import Model
from regraft.specimens import almanac
from regraft.training.distributed import processes

TRAINED = 4000
"""Worked sums that are trained on where no text is named."""
LONGEST = 256
"""Tokens of a record, behind which it is cut."""
ROWS = 10_000
"""Rows of a data set that are read, which may be endless."""


@dataclass(frozen=True)
class TextSource:
    """Where text comes from and how it is read.

    `texts` are files and folders, plain text or chat records (JSONL with `conversations` or `messages`);
    `dataset` is a folder or hub id that the library `datasets` opens, of which at most `rows` are read;
    without either there are worked sums. Of chat records complete traces of at most `length` tokens are kept,
    in the `shares` of the domains that they name.
    """

    texts: Sequence[str] = ()
    dataset: str = ""
    rows: int = ROWS
    length: int = LONGEST
    prompts_count: bool = True
    shares: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


def worked_sums(
    model: Model, count: int, seed: int, prompts_count: bool = True, longest: int = LONGEST
) -> Records:
    """Worked sums with hesitations, which the embedded pair of models differs in; question and answer part in
    front of the thinking."""
    drawn = random.Random(seed)
    parted = [almanac.reasoning(drawn).partition(THINKS) for _ in range(count)]
    pairs = [(question, begins + answer) for question, begins, answer in parted]
    return records_of(model.tokenizer, pairs, longest, seed, prompts_count)


def text_of_source(model: Model, source: TextSource, folder: Path) -> Windows | Records:
    """Text as records or windows; windows are encoded into `folder`.

    Raises:
        ValueError: a model without a tokenizer, two sources, or a source without text.
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer to read text with: put its files into the folder")
    if source.texts and source.dataset:
        raise ValueError("--text and --dataset are both given: choose one")
    with processes().main_process_first():
        if source.dataset:
            return _of_rows(model, source, folder)
        if source.texts:
            return _of_files(model, source, folder)
        _check_no_shares(source)
        return worked_sums(model, TRAINED, source.seed, source.prompts_count, source.length)


def _of_files(model: Model, source: TextSource, folder: Path) -> Windows | Records:
    """Chat records where every file holds some, else windows of plain text."""
    files = text_files(source.texts)
    if all(is_chat_file(file) for file in files):
        return _chats(model, chain.from_iterable(map(exchanges_in, files)), source)
    _check_no_shares(source)
    return windows(model, source.texts, source.length, folder, source.seed)


def _of_rows(model: Model, source: TextSource, folder: Path) -> Windows | Records:
    """Chat records where the first row is one, else windows of the rows' texts."""
    rows = islice(dataset_rows(source.dataset), source.rows)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"the data set {source.dataset} has no row")
    every: Iterable[Mapping[str, Any]] = chain([first], rows)
    if is_exchange(first):
        named = (exchange_of(row, f"row {number} of {source.dataset}") for number, row in enumerate(every, 1))
        return _chats(model, named, source)
    _check_no_shares(source)
    file = folder / "dataset.ids"
    if processes().is_main_process:
        file.unlink(missing_ok=True)  # a stream does not tell whether it is what it was
    return windows_over(model.tokenizer, every, source.length, file, source.seed)


def _chats(model: Model, exchanges: Iterable[Exchange], source: TextSource) -> Records:
    found = kept(model.tokenizer, exchanges, source.length, source.shares, seed=source.seed)
    tell(str(found))
    return chat_records(model.tokenizer, found.exchanges, source.length, source.seed, source.prompts_count)


def _check_no_shares(source: TextSource) -> None:
    if source.shares:
        raise ValueError("domains have shares in chat records alone: the text holds something else")
