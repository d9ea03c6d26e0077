"""Blocks that are filled when they run: some stay, two take turns, the one that comes next is read meanwhile.

The live model's own modules are filled and emptied; whoever calls a block, in whatever order, finds it
filled. Blocks are called by number, counted over all stacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regraft.checkpoint.locate import CheckpointError
from regraft.core.progress import advance
from regraft.core.sizes import in_words
from regraft.streaming.empty_model import empty
from regraft.streaming.pages import all_finite
from regraft.streaming.residency import Ceiling, Placement
from regraft.streaming.side_stream import SideStream


class Source(Protocol):
    """Where tensors are read from, by name; `bytes_read` counts."""

    bytes_read: int

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        ...

    def state(self) -> tuple[Any, ...]:
        """Another value where they are other tensors."""
        ...


class Filler(Protocol):
    """What brings tensors that were read into a module of the live model."""

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep what was read, unseen."""
        ...

    def hand_over(self, path: str, module: nn.Module) -> None:
        """Give the live module at a path what was read for it."""
        ...


@dataclass(frozen=True)
class Unit:
    """A block as it is read: its module, the tensors of the files that fill it, and their bytes in memory."""

    path: str
    module: nn.Module
    names: tuple[str, ...]
    bytes: int


@dataclass(eq=False)
class BlockStore:
    """Which blocks are filled, and how.

    `reads` counts how often each block was read from its files.
    """

    units: Sequence[Unit]
    shards: Source
    loader: Filler
    placement: Placement
    ceiling: Ceiling
    reads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reads = [0] * len(self.units)
        self._filled: list[int] = []
        self._coming: tuple[int, Future[None]] | None = None
        self._proved: set[int] = set()
        self._alike = False
        self._lock = RLock()
        self._side = SideStream(self.ceiling.device)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="regraft-blocks")
        for number, unit in enumerate(self.units):
            unit.module.register_forward_pre_hook(Filling(self, number))

    @property
    def filled(self) -> frozenset[int]:
        """The blocks that are in memory, or on their way."""
        coming = () if self._coming is None else (self._coming[0],)
        return frozenset((*self._filled, *coming))

    def settle(self) -> None:
        """Wait for what is on its way, so that `reads` and the bytes that were read are those of whole
        blocks."""
        with self._lock:
            self._arrive()

    @property
    def all_stay(self) -> bool:
        """Whether every block stays once it was read."""
        return self.placement.pinned >= len(self.units)

    def place(self, placement: Placement) -> None:
        """Another number of blocks that stay; those that no longer do leave at once, but for the one that ran
        last."""
        with self._lock:
            self._arrive()
            self.placement = placement
            self._leave_all_but(1)

    def enter(self, number: int, ahead: bool = True) -> None:
        """Fill a block, unless it is; it stays until another one that takes turns has run.

        `ahead`: begin to read the one that comes next.
        """
        with self._lock:
            if self._alike:
                number = self._first_alike(number, fill=True)
            self._arrive()
            if number in self._filled:
                self._filled.remove(number)
            else:
                self._leave_all_but(1)
                self._read(number)
                self._take(number)
            self._filled.append(number)
            if ahead:
                self._ask_for_the_next(number)
        self.ceiling.mind()
        told = f"{sum(self.reads):,} read, {in_words(self.shards.bytes_read)}"
        advance(f"blocks: {told}", number + 1, len(self.units))

    def left_out_of_graphs(self) -> AbstractContextManager[Any]:
        """While inside, a graph for gradients keeps no weight of a block: it is read again on the way
        back."""

        def pack(tensor: Tensor) -> Any:
            at = tensor.untyped_storage().data_ptr()
            for number in self._filled[-1:]:
                for name, parameter in self.units[number].module.named_parameters():
                    if parameter.dim() > 1 and parameter.untyped_storage().data_ptr() == at:
                        return number, name, tensor.size(), tensor.stride(), tensor.storage_offset()
            return tensor

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            number, name, *layout = packed
            self.enter(number, ahead=False)
            return self.units[number].module.get_parameter(name).detach().as_strided(*layout)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    @contextmanager
    def any_numbers(self) -> Iterator[None]:
        """While inside, blocks of one shape all run with the numbers of the first: for what hangs on shapes
        alone, and so costs no reading of all blocks."""
        self._alike = True
        try:
            yield
        finally:
            with self._lock:
                self._alike = False
                self._arrive()
                for number, unit in enumerate(self.units):
                    if number not in self._filled:
                        _drop(unit)

    def _first_alike(self, number: int, fill: bool) -> int:
        """The first block of the same shapes; this one is given its numbers."""
        unit = self.units[number]
        first = next(i for i, other in enumerate(self.units) if _shapes(other.module) == _shapes(unit.module))
        if first != number:
            if first not in self._filled:
                self._leave_all_but(1)
                self._read(first)
                self._take(first)
                self._filled.append(first)
            for (_, there), (_, here) in zip(
                self.units[first].module.named_modules(), unit.module.named_modules(), strict=True
            ):
                for name, parameter in there.named_parameters(recurse=False):
                    if here.get_parameter(name).is_meta:
                        here._parameters[name] = parameter
        return first

    def _arrive(self) -> None:
        """Wait for the block that is on its way."""
        if self._coming is not None:
            number, future = self._coming
            self._coming = None
            future.result()
            self._take(number)
            self._filled.append(number)

    def _leave_all_but(self, most: int) -> None:
        """Empty the blocks that take turns, but for the `most` that ran last."""
        turning = [number for number in self._filled if number >= self.placement.pinned]
        for number in turning[: max(0, len(turning) - most)]:
            self._filled.remove(number)
            _drop(self.units[number])

    def _ask_for_the_next(self, number: int) -> None:
        """Begin to read the block that a walk comes to next, of those that are not there."""
        if self._alike or len(self._filled) == len(self.units):
            return
        count = len(self.units)
        others = [i % count for i in range(number + 1, number + count)]
        following = next(i for i in others if i >= self.placement.pinned or i not in self._filled)
        if following not in self._filled:
            self._leave_all_but_running(number)
            self._coming = (following, self._reader.submit(self._read, following))

    def _leave_all_but_running(self, number: int) -> None:
        for other in [n for n in self._filled if n >= self.placement.pinned and n != number]:
            self._filled.remove(other)
            _drop(self.units[other])

    def _read(self, number: int) -> None:
        """Read a block from its files; nobody sees it yet."""
        unit = self.units[number]
        with self._side.copying():
            self.loader.fill({name: self.shards.read(name) for name in unit.names})
        self.reads[number] += 1

    def _take(self, number: int) -> None:
        """Give the live block what was read for it."""
        unit = self.units[number]
        self.loader.hand_over(unit.path, unit.module)
        self._side.handed_over(unit.module)
        if number not in self._proved:
            for name, parameter in unit.module.named_parameters():
                refuse_missing(f"{unit.path}.{name}", parameter)
            self._proved.add(number)


@dataclass(frozen=True, eq=False)
class Filling:
    """The hook that fills a block before it runs."""

    store: BlockStore
    number: int

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Fill it."""
        self.store.enter(self.number)

    def __deepcopy__(self, memo: dict[int, Any]) -> Filling:
        return self


def _drop(unit: Unit) -> None:
    """Empty a block's matrices; vectors are next to nothing and stay, so that norms can be asked at any
    time. A block that nothing fills stays as it is."""
    module = unit.module if unit.names else nn.Module()
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.dim() > 1:
                empty(part, name)


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(p.shape), p.dtype) for name, p in module.named_parameters()]


def refuse_missing(name: str, parameter: Tensor) -> None:
    """Make sure that a parameter has numbers, and that they are numbers.

    Raises:
        CheckpointError: the files lack it, or hold NaN or infinite values there.
    """
    if parameter.is_meta:
        raise CheckpointError(f"the files lack {name}, which the config calls for")
    if parameter.is_floating_point() and not all_finite(parameter):
        what = "NaN (not a number)" if bool(torch.isnan(parameter).any()) else "infinite values"
        raise CheckpointError(f"the weights hold {what}, first in {name}: nothing measured would mean much")
