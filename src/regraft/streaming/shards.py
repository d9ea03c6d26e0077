"""Tensors read straight from the safetensors files of a checkpoint, and counted.

Large ones are the file's own pages, mapped for as long as their tensor is held, so that what is resident is
what is held, and nothing is copied. Shapes: R rows of a table, D width.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.checkpoint.locate import CheckpointError, check_header, weight_files
from regraft.streaming.pages import LARGE, Pages

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


POPULATE_READ = 22
"""Linux' number of the advice to fetch all pages of a mapping."""


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies: its file, its first byte there, its type and shape."""

    file: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the whole tensor on disk."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Shards:
    """The tensors of a checkpoint's files by name.

    `bytes_read` counts what was read of them since they were opened.

    Raises:
        CheckpointError: a file is missing, cut or damaged, or holds numbers of a type that PyTorch has not.
    """

    def __init__(self, folder: Path):
        self.places: dict[str, TensorPlace] = {}
        self.bytes_read = 0
        self.pages = Pages()
        self._files: dict[Path, int] = {}
        self._lock = Lock()
        self.folder, self.files = folder, weight_files(folder)
        for file in self.files:
            header = check_header(file)
            first = 8 + int.from_bytes(_head(file), "little")
            for name, entry in header.items():
                if entry["dtype"] not in TYPES:
                    raise CheckpointError(
                        f"{file.name} holds {name} as {entry['dtype']}, which cannot be streamed"
                    )
                begin = first + entry["data_offsets"][0]
                self.places[name] = TensorPlace(file, begin, TYPES[entry["dtype"]], tuple(entry["shape"]))

    def read(self, name: str) -> Tensor:
        """A whole tensor, in memory of its own."""
        return self.read_at(self.places[name])

    def read_at(self, place: TensorPlace) -> Tensor:
        """The tensor that lies in a place: the file's own pages where that can be, else a copy."""
        if place.bytes >= LARGE and place.begin % place.dtype.itemsize == 0 and not self.pages.pinned:
            return self._mapped(place)
        found = self.pages.tensor(place.shape, place.dtype)
        self._into(found, place, 0)
        return found

    def _mapped(self, place: TensorPlace) -> Tensor:
        """A tensor on the file's pages, all of them fetched; they are let go with the tensor. Who writes to
        it writes to copies."""
        before = place.begin % mmap.PAGESIZE
        pages = mmap.mmap(
            self._handle(place.file), before + place.bytes, flags=mmap.MAP_PRIVATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=place.begin - before,
        )  # fmt: skip
        try:
            pages.madvise(POPULATE_READ)
        except OSError:  # a kernel before 5.14: read a number of each page instead
            np.frombuffer(pages, np.uint8)[:: mmap.PAGESIZE].sum()
        with self._lock:
            self.bytes_read += place.bytes
        flat: np.ndarray[Any, Any] = np.frombuffer(pages, np.uint8, place.bytes, before)
        return torch.from_numpy(flat).view(place.dtype).view(place.shape)

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end` of a table, (R, D)."""
        place = self.places[name]
        found = self.pages.tensor((end - begin, *place.shape[1:]), place.dtype)
        self._into(found, place, begin * _row_bytes(place))
        return found

    def state(self) -> tuple[Any, ...]:
        """Names, sizes and times of the files: another value where one of them was written anew."""
        return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self.files)

    def _into(self, tensor: Tensor, place: TensorPlace, offset: int) -> None:
        """Fill a tensor with the bytes that begin at an offset of its place."""
        flat: Any = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        view = memoryview(flat)
        handle, done = self._handle(place.file), 0
        while done < len(view):
            got = os.preadv(handle, [view[done:]], place.begin + offset + done)
            if not got:
                raise CheckpointError(f"{place.file.name} ends in the middle of a tensor: fetch it again")
            done += got
        with self._lock:
            self.bytes_read += done

    def _handle(self, file: Path) -> int:
        with self._lock:
            if file not in self._files:
                self._files[file] = os.open(file, os.O_RDONLY)
            return self._files[file]

    def close(self) -> None:
        """Let the files go."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def __del__(self) -> None:
        self.close()


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(8)


def _row_bytes(place: TensorPlace) -> int:
    return torch.Size(place.shape[1:]).numel() * place.dtype.itemsize
