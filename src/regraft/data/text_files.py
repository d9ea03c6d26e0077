"""Text from files, folders, JSONL and data sets, read a piece at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from regraft.core.files import UnreadableError, read_text

Item = TypeVar("Item")

SUFFIXES = (".txt", ".md", ".py", ".jsonl")
PIECE = 200_000
"""Characters that are read at once, so that a file of any length fits."""
BROKEN = 0.01
"""Share of characters that may be broken in what is still read as text."""


def text_files(sources: Iterable[str | Path]) -> list[Path]:
    """The text files that some files and folders name; folders are searched for .txt, .md, .py and .jsonl.

    Raises:
        ValueError: there is none, or a source is not there.
    """
    files = [file for source in sources for file in _files(Path(source))]
    if not files:
        raise ValueError("there is no text: name a text file or a folder that holds some")
    return files


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(file for file in source.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not source.is_file():
        raise ValueError(f"{source} is neither a file nor a folder: name some text")
    return [source]


def texts_in(file: Path) -> Iterator[str]:
    """A file's texts: a line each of a JSONL file, else all of it in pieces of whole lines."""
    return (piece for piece, _ in pieces_in(file))


def pieces_in(file: Path) -> Iterator[tuple[str, bool]]:
    """The same with whether a document ends there: each line of a JSONL file is one, any other file is one as
    a whole.

    Raises:
        ValueError: the file holds no text.
    """
    if file.suffix == ".jsonl":
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _line_text(line, number, file), True
        return
    with file.open(encoding="utf-8", errors="replace") as stream:
        piece = stream.read(PIECE)
        while piece:
            piece += stream.readline()
            if "\0" in piece or piece.count("\ufffd") > BROKEN * len(piece):
                raise ValueError(f"{file} is no text in UTF-8: convert it, or leave it out")
            following = stream.read(PIECE)
            yield piece, not following
            piece = following


def _line_text(line: bytes, number: int, file: Path) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of {file} is no JSON: mend it, or leave the file out") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ValueError(f"line {number} of {file.name} has no text under `text`")
    return value["text"].encode("utf-8", errors="replace").decode()


def dataset_rows(name: str) -> Iterable[Mapping[str, Any]]:
    """Rows of a data set as a stream: a hub id or a folder, with a configuration behind a colon where it has
    several.

    Raises:
        ModuleNotFoundError: the library is missing.
        ValueError: the data set does not open, or has no part called `train`.
    """
    if not name:
        raise ValueError("a data set needs a name: give a hub id or a folder")
    load_dataset = import_module("datasets").load_dataset
    source, _, configuration = name.partition(":")
    try:
        return load_dataset(source, configuration or None, split="train", streaming=True)
    except OSError as error:
        raise ValueError(f"the data set {name} does not open: {str(error).splitlines()[0]}") from None


def text_of(item: str | Mapping[str, Any]) -> str:
    """The text of an item: itself, or what it has under `text`, as a dataset's rows do.

    Raises:
        ValueError: it has none.
    """
    text = item if isinstance(item, str) else item.get("text")
    if not isinstance(text, str):
        raise ValueError(
            f"an item of the data set has no text under `text`, only {', '.join(map(str, item))}"
        )
    return text


def read_prompts(path: Path | str) -> list[str]:
    """Prompts of a file: one on each line, or a JSON list of texts or of objects with a `prompt`.

    Raises:
        ValueError: it cannot be read, or holds something that is no prompt.
    """
    wanted = "write prompts as lines, or as a JSON list of texts or of objects with a prompt"
    text = read_text(path, wanted)
    if not text.lstrip().startswith("["):
        return [line for line in text.splitlines() if line.strip()]
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableError(f"{path} is no JSON list ({error}): {wanted}") from error
    given = [entry.get("prompt") if isinstance(entry, dict) else entry for entry in entries]
    found = [prompt for prompt in given if isinstance(prompt, str) and prompt.strip()]
    if not found or len(found) < len(given):
        raise UnreadableError(f"{path} holds an entry that is no prompt: {wanted}")
    return found


def read_pairs(path: Path | str, kind: Callable[..., Item], remedy: str) -> list[Item]:
    """Pairs of texts from a JSON list of objects, each with the fields of `kind`.

    Raises:
        ValueError: it cannot be read, or is no list of such objects.
    """
    text = read_text(path, remedy)
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): {remedy}") from error
    if not isinstance(listed, list):
        raise ValueError(f"{path} holds no pairs but a {type(listed).__name__}: {remedy}")
    names = [parameter.name for parameter in signature(kind).parameters.values()]
    for number, entry in enumerate(listed):
        given = set(entry) if isinstance(entry, dict) else set()
        if given != set(names):
            lacks, extra = [n for n in names if n not in given], sorted(given - set(names))
            told = [f"has no {', '.join(lacks)}"] * bool(lacks) + [f"has {', '.join(extra)}"] * bool(extra)
            raise ValueError(f"pair {number} of {path} {' and '.join(told)}: {remedy}")
    found = [kind(**entry) for entry in listed]
    if not found:
        raise ValueError(f"{path} holds no pairs: write at least one")
    for number, pair in enumerate(found):
        if not all(isinstance(text, str) and text for text in vars(pair).values()):
            raise ValueError(f"pair {number} of {path} has a field that is empty or no text: {remedy}")
    return found
