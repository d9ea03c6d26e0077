"""Memory for weights: pages that go back to the system, or are written over, when their tensor goes.

What the C library's allocator gives out for large blocks it keeps, in a heap of each thread, once it has seen
a few of them freed: a walk through a model would end with all of it resident. And new pages are cleared by
the system before they are filled, which costs as much as reading them from the page cache.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.streaming.side_stream import pin, unpin

LARGE = 1 << 20
"""Bytes from which on a tensor gets pages of its own: below, a page's rounding would cost more."""


class Pages:
    """Gives out tensors on pages of their own, and takes the pages back when nobody holds the tensor.

    At most `most` bytes wait to be given out again; what is more goes back to the system. `pinned` ones a
    card reads by itself.
    """

    def __init__(self, most: int = 0, pinned: bool = False):
        self.most, self.pinned = most, pinned
        self._waiting: dict[int, list[mmap.mmap]] = defaultdict(list)

    @property
    def waiting(self) -> int:
        """Bytes that nobody uses and that are kept for the next tensor."""
        return sum(size * len(some) for size, some in list(self._waiting.items()))

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, aligned to pages."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if size < LARGE:
            return torch.empty(tuple(shape), dtype=dtype)
        waiting = self._waiting[size]
        pages = waiting.pop() if waiting else self._new(size)
        array: np.ndarray[Any, Any] = np.frombuffer(pages, dtype=np.uint8)
        weakref.finalize(array, self._back, size, pages).atexit = False
        return torch.from_numpy(array).view(dtype).view(tuple(shape))

    def _new(self, size: int) -> mmap.mmap:
        pages = _pages(size, mmap.MADV_HUGEPAGE)
        if self.pinned:
            pin(_address(pages), size)
        return pages

    def _back(self, size: int, pages: mmap.mmap) -> None:
        if self.waiting + size <= self.most:
            self._waiting[size].append(pages)
        elif self.pinned:
            unpin(_address(pages))

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy on pages of its own, in another type where that is asked."""
        found = self.tensor(tensor.shape, dtype)
        found.copy_(tensor)
        return found


def give_free_memory_back() -> None:
    """Let the C library give the system what nobody holds.

    glibc keeps what is freed of up to 32 MiB in heaps full of holes: with scores of a large vocabulary that
    is half a gigabyte. Other C libraries have no such heap, and no `malloc_trim`.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def sparse_table(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A table of which only touched rows take memory; the others read as zeros."""
    pages = _pages(torch.Size(shape).numel() * dtype.itemsize, mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))


def _pages(size: int, advice: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(advice)
    return pages


def _address(pages: mmap.mmap) -> int:
    return np.frombuffer(pages, dtype=np.uint8).ctypes.data


def all_finite(tensor: Tensor) -> bool:
    """Whether every number is one, asked piece by piece: whole, the question takes more memory than the
    tensor."""
    pieces = tensor.reshape(-1).split(LARGE)
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)
