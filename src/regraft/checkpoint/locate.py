"""Checkpoints by name and folders on disk: which files are there, whether they are whole, and what they
weigh.

Weights are read from safetensors only. A header is checked before anything is loaded: its length, its JSON,
and that the tensors' offsets cover the file without a gap or an overlap.
"""

from __future__ import annotations

import json
import re
import struct
from importlib import resources
from pathlib import Path
from typing import Any

from regraft.checkpoint.checksums import digest, unlike_sums
from regraft.checkpoint.continued import put_together
from regraft.core.files import expanded, reading

SPECIMENS = {
    "qwen3": "specimen-qwen3",
    "tuned": "specimen-qwen3-tuned",
    "gpt2": "specimen-gpt2",
    "t5": "specimen-t5",
    "recall": "specimen-recall",
}
CONTINUED = {"specimen-recall": "specimen-qwen3"}
"""Specimens of which only what changed is shipped, and what they were before."""
DEFAULT_SPECIMEN = "specimen:qwen3"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LARGEST_HEADER = 100_000_000
"""Bytes that the format allows a header of safetensors."""
BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "C64": 8,
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be opened; the message says why and what to do."""


class NoCheckpointError(CheckpointError):
    """What was named is no checkpoint: not a damaged one, but a wrong name."""


def located(source: str | Path | None) -> tuple[Path | None, str]:
    """The folder that a source names, None where it is the id of a hub's repository; and the name to show.

    Raises:
        NoCheckpointError: it can be neither: there is no such specimen or folder, and no repository is called
            so.
        UnreadableError: the folder is closed.
    """
    text = DEFAULT_SPECIMEN if source is None else str(source)
    if text == "specimen" or text.startswith("specimen:"):
        kind = text.partition(":")[2] or DEFAULT_SPECIMEN.partition(":")[2]
        if kind not in SPECIMENS:
            raise NoCheckpointError(f"there is no specimen {kind!r}: choose one of {', '.join(SPECIMENS)}")
        return _specimen(SPECIMENS[kind]), f"specimen:{kind}"
    folder = expanded(text)
    with reading(text, "give a model folder that you may read"):
        if folder.exists() or text.startswith((".", "/", "~")) or not HUB_ID.fullmatch(text):
            if not folder.is_dir():
                raise NoCheckpointError(
                    f"{text} is not a folder: give a model folder, a hub id (owner/name), or"
                    f" {DEFAULT_SPECIMEN}"
                )
            next(folder.iterdir(), None)
            return folder, folder.resolve().name
    return None, text


def _specimen(name: str) -> Path:
    """The folder of a specimen; of one that is another's further training, where it was put together."""
    own, base = (
        Path(str(resources.files("regraft.specimens") / n)) for n in (name, CONTINUED.get(name, name))
    )
    if own == base:
        return own
    for folder in (own, base):
        _check_sums(folder)
    return put_together(own, base, check_header)


def check_folder(folder: Path, config: bool = True) -> list[Path]:
    """The weight files of a model folder, each with a whole header and the length that it promises; with
    `config=False` a folder of weights alone will do.

    Raises:
        CheckpointError: no config, no safetensors (a pickle is named, with the command that converts it), a
            shard that is missing, a file that is truncated or damaged, or one that differs from the folder's
            checksums.
        UnreadableError: a file is closed.
    """
    with reading(folder, "give a model folder whose files you may read"):
        files = model_files(folder, config)
        for file in files:
            check_header(file)
        _check_sums(folder)
    return files


def model_files(folder: Path, config: bool = True) -> list[Path]:
    """The weight files of a model folder by name; none of them is opened. With `config=False` a folder of
    weights alone will do.

    Raises:
        CheckpointError: it is no model folder, holds pickles alone, or lacks a shard.
    """
    if not folder.is_dir():
        raise NoCheckpointError(f"{folder} is not a folder: give a model folder, a hub id, or specimen:qwen3")
    if config and not (folder / "config.json").is_file():
        raise NoCheckpointError(f"{folder} is not a model folder: it has no config.json")
    return weight_files(folder)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, those of its index where it has one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = shards_of(index)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder.name} lacks {len(missing)} of its {len(names)} shards: {', '.join(missing)}"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder.name} holds its weights only as a pickle ({pickles[0]}), which can run code and is not"
            " read: convert "
            f'it where you trust it with python -c "from transformers import AutoModel; '
            f"AutoModel.from_pretrained('{folder.name}').save_pretrained('{folder.name}-safe')\""
        )
    raise NoCheckpointError(f"{folder} is not a model folder: it has no safetensors file")


def shards_of(index: Path) -> list[str]:
    """The shards that an index names.

    Raises:
        CheckpointError: the index cannot be read.
    """
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in shards})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index.name} is damaged: it names no shards: fetch the file again") from error


def check_header(file: Path) -> dict[str, Any]:
    """Read a safetensors header and check it against the file.

    Raises:
        CheckpointError: the header or the data is cut, damaged, or does not fit the file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = header_length(file.name, stream.read(8), size)
        return parse_header(file.name, stream.read(length), size)


def header_length(name: str, first: bytes, size: int) -> int:
    """How long the header is that follows a file's first eight bytes, before anything of that length is read.

    Raises:
        CheckpointError: a length that does not fit a file of `size` bytes, or no header's.
    """
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
        raise CheckpointError(
            f"{name} is damaged or cut: its header length does not fit: fetch the file again"
        )
    return length


def parse_header(name: str, text: bytes, size: int) -> dict[str, Any]:
    """A header's tensors by name, each with dtype, shape and offsets that fit a file of `size` bytes.

    Raises:
        CheckpointError: they do not.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} is damaged: its header cannot be read: fetch the file again"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{name} is damaged: its header is no table: fetch the file again")
    tensors = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
    for tensor, entry in tensors.items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if isinstance(kind, str) and re.fullmatch(r"[A-Z]+\d+(_E\d+M\d+\w*)?", kind) and kind not in BYTES:
            raise CheckpointError(
                f"{name} holds tensors of the type {kind} ({tensor}), which cannot be read here"
            )
        if not _is_entry(entry):
            raise CheckpointError(
                f"{name} is damaged: its entry for tensor {tensor} cannot be read: fetch the file again"
            )
    _check_offsets(name, tensors, size - 8 - len(text))
    return tensors


def _is_entry(entry: object) -> bool:
    """Whether a header's entry has a known dtype, a shape and two offsets, all of the right kind."""

    def naturals(values: object) -> bool:
        return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return False
    return (
        isinstance(entry["dtype"], str)
        and entry["dtype"] in BYTES
        and naturals(entry["shape"])
        and naturals(entry["data_offsets"])
        and len(entry["data_offsets"]) == 2
    )


def _check_offsets(name: str, tensors: dict[str, Any], data_bytes: int) -> None:
    end = 0
    for tensor, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        count = 1
        for dimension in entry["shape"]:
            count *= dimension
        if start != end or stop - start != count * BYTES[entry["dtype"]]:
            raise CheckpointError(f"{name} is damaged: tensor {tensor} does not lie where its shape says")
        end = stop
    if end != data_bytes:
        verb = "cut short" if end > data_bytes else "longer than its header says"
        raise CheckpointError(f"{name} is {verb} ({data_bytes:,} bytes of {end:,}): fetch the file again")


def _check_sums(folder: Path) -> None:
    if reason := unlike_sums(folder):
        raise CheckpointError(reason)


def weights_digest(folder: Path) -> str:
    """SHA-256 over all weight files of a folder, in the order of their names."""
    return digest(weight_files(folder))
