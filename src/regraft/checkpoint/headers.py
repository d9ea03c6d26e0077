"""The safetensors headers of a checkpoint, on disk or at a hub: names, dtypes and shapes, without one weight.

At a hub only the headers are asked for, by HTTP range requests. A folder may hold several parts (a text
encoder, a transformer, a decoder of images), each with files of its own.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, RepoFile, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers

from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import (
    BYTES,
    HUB_ID,
    PICKLES,
    SPECIMENS,
    CheckpointError,
    check_header,
    header_length,
    parse_header,
)

WEIGHTS, INDEX, CONFIG, TOKENIZER = (
    ".safetensors", ".safetensors.index.json", "config.json", "tokenizer.json",
)  # fmt: skip
LARGEST_JSON = 50_000_000
"""Bytes of an index or a configuration: what passes it is something else."""


def http_error() -> type[Exception]:
    """The error of the hub client's own HTTP library: huggingface_hub 1 speaks through httpx and 2 through
    httpx2."""
    return sys.modules[type(get_session()).__module__.partition(".")[0]].HTTPError


@dataclass(frozen=True)
class Entry:
    """One tensor as its header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def count(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return self.count * BYTES[self.dtype]


@dataclass(frozen=True)
class Headers:
    """All tensors of one part of a checkpoint, by name; its config.json, where it has one; what is odd about
    its files."""

    part: str
    entries: dict[str, Entry]
    config: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    """Bytes of every other file of its folder."""
    tokenizer: dict[str, Any] | None = None
    """What tokenizer.json holds; it is not fetched from a hub."""


@dataclass(frozen=True)
class _Store:
    """A checkpoint's files: their names, and how to read a header or a small JSON file."""

    source: str
    sizes: dict[str, int]
    header: Callable[[str], dict[str, Any]]
    json: Callable[[str], Any]
    local: bool

    @property
    def files(self) -> list[str]:
        """Names of all files, in order."""
        return sorted(self.sizes)


def read_headers(source: str) -> list[Headers]:
    """The headers of a folder, a specimen or a hub id, one set for each folder that holds weights.

    Raises:
        CheckpointError: there is no such checkpoint, it holds no safetensors, a shard is missing, or a file
            is damaged.
    """
    store = _local(source)
    if store is None:
        store = _remote(source)
    folders: dict[str, list[str]] = {}
    for file in store.files:
        if file.endswith(WEIGHTS):
            folders.setdefault(_folder(file), []).append(file)
    indexed = {_folder(file) for file in store.files if file.endswith(INDEX)}
    if not folders and not indexed:
        pickles = [file for file in store.files if is_pickle(file)]
        what = (
            f"holds its weights only as a pickle ({pickles[0]}), which is not read"
            if pickles
            else "holds no safetensors file"
        )
        raise CheckpointError(f"{store.source} {what}: give a folder or a hub id with safetensors")
    parts = sorted({*folders, *indexed})
    found = [_part(store, folder, sorted(folders.get(folder, []))) for folder in parts]
    for file, size in store.sizes.items():
        if not file.endswith(WEIGHTS):
            place = parts.index(_folder(file)) if _folder(file) in parts else 0
            found[place].others[file] = size
    return found


def is_pickle(file: str) -> bool:
    """Whether a file holds weights as a pickle, by its name."""
    return any(PurePosixPath(file).match(pattern) for pattern in PICKLES)


def _folder(file: str) -> str:
    folder = str(PurePosixPath(file).parent)
    return "" if folder == "." else folder


def _part(store: _Store, folder: str, files: list[str]) -> Headers:
    """One folder's tensors; a tensor that two files hold is counted once and said."""
    notes: list[str] = []
    wanted = _index(store, folder)
    missing = sorted({*wanted.values()} - {*files})
    if missing:
        names = ", ".join(missing[:4])
        raise CheckpointError(
            f"{store.source} lacks {len(missing)} of its {len({*wanted.values()})} shards: {names}"
        )
    entries: dict[str, Entry] = {}
    twice = 0
    for file in files:
        for name, entry in store.header(file).items():
            name = name.encode("utf-8", "replace").decode()
            if name in entries:
                twice += 1
                continue
            entries[name] = Entry(name, entry["dtype"], tuple(entry["shape"]), file)
    lost = sorted(set(wanted) - set(entries))
    if lost:
        raise CheckpointError(
            f"the index of {store.source} names {lost[0]} (and {len(lost) - 1} more), which no shard holds"
        )
    if twice:
        notes.append(f"{twice:,} tensors stand in more than one file; each is counted once")
    beside = sorted(set(entries) - set(wanted)) if wanted else []
    if beside:
        notes.append(f"{len(beside):,} tensors stand in no index, first {beside[0]}")
    config = f"{folder}/{CONFIG}" if folder else CONFIG
    stated = store.json(config) if config in store.files else None
    if stated is not None and not isinstance(stated, dict):
        raise CheckpointError(f"{config} of {store.source} is no table of settings: fetch the file again")
    tokens = f"{folder}/{TOKENIZER}" if folder else TOKENIZER
    told = store.json(tokens) if store.local and tokens in store.files else None
    return Headers(folder, entries, stated, notes, {}, told if isinstance(told, dict) else None)


def _index(store: _Store, folder: str) -> dict[str, str]:
    """Which file holds which tensor, by the folder's indexes; empty where there is none."""
    found: dict[str, str] = {}
    for file in store.files:
        if file.endswith(INDEX) and _folder(file) == folder:
            stated = store.json(file)
            shards = stated.get("weight_map") if isinstance(stated, dict) else None
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise CheckpointError(f"{file} is damaged: it names no shards: fetch the file again")
            found |= {name: f"{folder}/{shard}" if folder else shard for name, shard in shards.items()}
    return found


def _parsed(name: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is damaged: it is no JSON: fetch the file again") from error


def _local(source: str) -> _Store | None:
    """A folder's files, those in folders within it too; None where the source is no folder and no
    specimen."""
    specimen = source.partition(":")[0] == "specimen" and (
        ":" not in source or source.partition(":")[2] in SPECIMENS
    )
    root = resolve(source)[0] if specimen else Path(source).expanduser()
    if not root.is_dir():
        return None
    found = [file for depth in ("*", "*/*", "*/*/*") for file in root.glob(depth) if file.is_file()]

    def small(name: str) -> Any:
        if (root / name).stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{name} is larger than any JSON of a checkpoint")
        return _parsed(name, (root / name).read_bytes())

    sizes = {file.relative_to(root).as_posix(): file.stat().st_size for file in found}
    return _Store(source, sizes, lambda name: check_header(root / name), small, local=True)


def _remote(source: str) -> _Store:
    """A hub repository's files, asked for by name; of a weight file only its header is fetched."""
    if not HUB_ID.fullmatch(source):
        raise CheckpointError(
            f"{source} is not a folder: give a model folder, a hub id (owner/name), or specimen:qwen3"
        )
    try:
        listed = list(HfApi().list_repo_tree(source, recursive=True))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, http_error(), OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{source} is neither a folder here nor a repository that the hub shows us: {reason}"
        ) from error

    def header(name: str) -> dict[str, Any]:
        first, size = _range(source, name, 0, 8)
        length = header_length(name, first, size)
        text, _ = _range(source, name, 8, length)
        return parse_header(name, text, size)

    def small(name: str) -> Any:
        text, size = _range(source, name, 0, LARGEST_JSON)
        if size > LARGEST_JSON:
            raise CheckpointError(f"{name} is larger than any JSON of a checkpoint")
        return _parsed(name, text)

    sizes = {file.path: file.size for file in listed if isinstance(file, RepoFile)}
    return _Store(source, sizes, header, small, local=False)


def _range(repository: str, name: str, start: int, length: int) -> tuple[bytes, int]:
    """`length` bytes of a hub file from `start` on (fewer where it ends), and the whole file's size.

    Raises:
        CheckpointError: the hub does not answer, or sends whole files where a range was asked for.
    """
    asked = {**build_hf_headers(), "Range": f"bytes={start}-{start + length - 1}"}
    try:
        with get_session().stream(
            "GET", hf_hub_url(repository, name), headers=asked, follow_redirects=True
        ) as answer:
            answer.raise_for_status()
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if answer.status_code != HTTPStatus.PARTIAL_CONTENT or told is None or int(told[1]) != start:
                raise CheckpointError(
                    f"the hub does not send a part of {name}: download the folder and inspect that"
                )
            return _at_most(answer.iter_bytes(), length), int(told[2])
    except (http_error(), HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name} of {repository} cannot be read at the hub: {str(error).splitlines()[0]}"
        ) from error


def _at_most(pieces: Iterable[bytes], length: int) -> bytes:
    """The first `length` bytes of a stream, whatever it goes on to send."""
    found = bytearray()
    for piece in pieces:
        found += piece[: length - len(found)]
        if len(found) >= length:
            break
    return bytes(found)
