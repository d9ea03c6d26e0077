"""Names, types and shapes of the tensors in a file of PyTorch's own, without executing what it asks for.

Such a file is a zip archive with a pickle, which may name any function to be called. Here every name leads to
one of the few inert stand-ins below: tensors become their shapes, everything else becomes nothing.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.checkpoint.headers import LARGEST_JSON, Entry
from regraft.checkpoint.locate import CheckpointError

TYPES = {
    "FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
"""Kinds of storage, and the types that safetensors calls their values."""
DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError,
)  # fmt: skip
"""What the reader raises on a pickle that was cut or written over."""
DEEPEST = 16
"""Tables inside tables that are looked through."""


@dataclass(frozen=True)
class _Shape:
    dtype: str
    shape: tuple[int, ...]


class _Nothing:
    """Stands for whatever is no tensor and no table: made, called and filled without any effect."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Keep nothing."""

    def extend(self, values: Any) -> None:
        """Keep nothing."""


def _tensor(storage: Any, offset: Any, size: Any, *rest: Any) -> _Shape | _Nothing:
    """What PyTorch calls to make a tensor from a storage."""
    if not isinstance(storage, str) or not isinstance(size, tuple):
        return _Nothing()
    return _Shape(storage, tuple(int(n) for n in size))


def _parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


class _Table(dict[Any, Any]):
    """An ordered table; what is attached to it is let go."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name; nothing is imported."""
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("collections", "OrderedDict"): _Table,
        }
        if name in TYPES:
            return TYPES[name]
        return known.get((module, name), _Nothing)

    def persistent_load(self, pid: Any) -> Any:
        """The type of a storage, in place of its values."""
        return pid[1] if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "storage" else _Nothing()


def pickle_entries(path: Path) -> dict[str, Entry]:
    """Every tensor of a file, by its name in the tables that hold it.

    Raises:
        CheckpointError: it is no archive as PyTorch writes them since 1.6, or it is damaged.
    """
    text = _list(path)
    try:
        held = _Reader(io.BytesIO(text)).load()
    except DAMAGED as error:
        raise CheckpointError(
            f"the list of tensors in {path.name} is damaged: fetch the file again"
        ) from error
    found = {name: Entry(name, one.dtype, one.shape, path.name) for name, one in _named(held, "", 0)}
    if not found:
        raise CheckpointError(f"{path.name} names no tensor in its tables: there is nothing to tell")
    return found


def _list(path: Path) -> bytes:
    """The pickle inside the archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"), "")
            if not name:
                raise CheckpointError(f"{path.name} holds no data.pkl: its shapes cannot be read")
            if archive.getinfo(name).file_size > LARGEST_JSON:
                raise CheckpointError(f"data.pkl of {path.name} is larger than any list of tensors")
            return archive.read(name)
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(
            f"{path.name} is no whole archive of PyTorch 1.6 or later: its shapes cannot be read"
        ) from error


def _named(held: Any, path: str, depth: int) -> Iterator[tuple[str, _Shape]]:
    """Tensors inside tables and lists, by the names on the way, joined by dots."""
    if isinstance(held, _Shape) and held.dtype:
        yield path, held
    inner = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
    if depth < DEEPEST:
        for name, value in inner:
            yield from _named(value, f"{path}.{name}" if path else str(name), depth + 1)
