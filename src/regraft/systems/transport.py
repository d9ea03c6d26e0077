"""Tensors from one process to another: framed messages over a socket, and the bytes themselves over that
socket, through shared memory, or through Ray's object store.

A message is eight bytes of length, a header in JSON, and the bytes of its tensors one behind the other.
Whatever carries the bytes, the socket tells of every message, so that a peer that is gone is noticed at once.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

LENGTH = struct.Struct("!Q")
"""In front of a header: how long it is."""
PATIENCE_S = 120.0
"""Seconds without a word from a peer that lives, until it is given up; one that dies is noticed at once."""
POOL = 1 << 28
"""Bytes of shared memory that one side writes to: 256 MiB, the largest message."""
SHARED = "/dev/shm"
"""Where Linux keeps files in memory; elsewhere a temporary file that is mapped."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
MOST_HEADER = 1 << 24
"""Bytes of a header at most: longer ones come from something that is no peer of ours."""


class PeerGoneError(ConnectionError):
    """The process on the other side has ended, or says nothing any more."""


@dataclass
class Parcel:
    """What came: its name, what is told beside it, and tensors."""

    name: str
    told: dict[str, Any]
    tensors: list[Tensor]


@dataclass
class Counted:
    """What went over a link: bytes of tensors, and all bytes on the socket."""

    payload: int = 0
    wire: int = 0


class Link(Protocol):
    """One way of carrying tensors."""

    sent: Counted

    def send(self, name: str, tensors: Sequence[Tensor] = (), told: Mapping[str, Any] = NOTHING) -> None:
        """Send a message."""
        ...

    def receive(self) -> Parcel:
        """Wait for a message."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass
class TcpLink:
    """Everything over one socket."""

    channel: socket.socket
    sent: Counted = field(default_factory=Counted)

    def __post_init__(self) -> None:
        self.channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.channel.settimeout(PATIENCE_S)

    def send(self, name: str, tensors: Sequence[Tensor] = (), told: Mapping[str, Any] = NOTHING) -> None:
        """Send a message.

        Raises:
            PeerGoneError: nobody takes it.
        """
        views = [as_bytes(tensor) for tensor in tensors]
        self.header({"name": name, "told": dict(told), "tensors": shapes_of(tensors)})
        for view in views:
            self._all(view)
            self.sent.payload += len(view)

    def receive(self) -> Parcel:
        """Wait for a message.

        Raises:
            PeerGoneError: the peer ended or says nothing.
        """
        head = self.header_received()
        tensors = [empty_as(dtype, shape) for dtype, shape in head["tensors"]]
        for tensor in tensors:
            self._fill(as_bytes(tensor))
        return Parcel(head["name"], head["told"], tensors)

    def header(self, head: Mapping[str, Any]) -> None:
        """Send a header alone."""
        written = json.dumps(head).encode()
        self._all(memoryview(LENGTH.pack(len(written)) + written))

    def header_received(self) -> dict[str, Any]:
        """Wait for a header."""
        length = bytearray(LENGTH.size)
        self._fill(memoryview(length))
        (size,) = LENGTH.unpack(length)
        if size > MOST_HEADER:
            raise PeerGoneError("what came over the socket is no message of a peer")
        written = bytearray(size)
        self._fill(memoryview(written))
        return json.loads(bytes(written))

    def close(self) -> None:
        """End the connection."""
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()

    def _all(self, view: memoryview) -> None:
        try:
            self.channel.sendall(view)
        except OSError as error:
            raise PeerGoneError(f"the peer is gone: {error}") from error
        self.sent.wire += len(view)

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = self.channel.recv_into(view[done:])
            except OSError as error:
                raise PeerGoneError(f"the peer is gone: {error or type(error).__name__}") from error
            if not count:
                raise PeerGoneError("the peer has ended in the middle of its work")
            done += count


class Memory:
    """Memory that two processes see: a file that lives in memory where the system has such a place."""

    def __init__(self, path: str = ""):
        self.owned = not path
        folder = SHARED if Path(SHARED).is_dir() else None
        if self.owned:
            handle, self.path = tempfile.mkstemp(prefix="regraft-", dir=folder)
            os.ftruncate(handle, POOL)  # takes no room before it is written to
        else:
            self.path, handle = path, os.open(path, os.O_RDWR)
        self.view = mmap.mmap(handle, POOL)
        os.close(handle)

    def close(self) -> None:
        """Give it back."""
        self.view.close()
        if self.owned:
            Path(self.path).unlink(missing_ok=True)


@dataclass
class SharedLink:
    """Bytes through memory that both processes see; the socket says where, and when it has been read."""

    channel: TcpLink
    mine: Memory = field(default_factory=Memory)
    theirs: Memory | None = None
    sent: Counted = field(default_factory=Counted)

    def send(self, name: str, tensors: Sequence[Tensor] = (), told: Mapping[str, Any] = NOTHING) -> None:
        """Write the tensors into shared memory, tell of it, and wait until they have been read.

        Raises:
            PeerGoneError: nobody reads them.
            ValueError: they are larger than the memory.
        """
        views = [as_bytes(tensor) for tensor in tensors]
        total = sum(map(len, views))
        if total > POOL:
            raise ValueError(f"a message of {total:,} bytes does not fit into {POOL:,} of shared memory")
        start = 0
        for view in views:
            self.mine.view[start : start + len(view)] = view
            start += len(view)
        head = {"name": name, "told": dict(told), "tensors": shapes_of(tensors), "memory": self.mine.path}
        self.channel.header(head)
        if views:
            self.channel.header_received()
        self.sent = Counted(self.sent.payload + total, self.channel.sent.wire)

    def receive(self) -> Parcel:
        """Wait for a message, and copy its tensors out of shared memory.

        Raises:
            PeerGoneError: the peer ended or says nothing.
        """
        head = self.channel.header_received()
        if not head["tensors"]:
            return Parcel(head["name"], head["told"], [])
        if self.theirs is None:
            self.theirs = Memory(head["memory"])
        tensors, start = [], 0
        for dtype, shape in head["tensors"]:
            tensor = empty_as(dtype, shape)
            view = as_bytes(tensor)
            view[:] = self.theirs.view[start : start + len(view)]
            start += len(view)
            tensors.append(tensor)
        self.channel.header({"read": start})
        return Parcel(head["name"], head["told"], tensors)

    def close(self) -> None:
        """End it, and give the memory back."""
        self.channel.close()
        self.mine.close()
        if self.theirs is not None:
            self.theirs.close()


@dataclass
class RayLink:
    """Bytes through Ray's object store; the socket says which objects. Both processes are of one cluster."""

    channel: TcpLink
    ray: Any
    sent: Counted = field(default_factory=Counted)
    kept: list[Any] = field(default_factory=list)

    def send(self, name: str, tensors: Sequence[Tensor] = (), told: Mapping[str, Any] = NOTHING) -> None:
        """Put the tensors into the store, tell of them, and wait until they have been read.

        Raises:
            PeerGoneError: nobody reads them.
        """
        self.kept = [self.ray.put(bytes(as_bytes(tensor))) for tensor in tensors]
        named = [base64.b64encode(self.ray.cloudpickle.dumps(one)).decode() for one in self.kept]
        head = {"name": name, "told": dict(told), "tensors": shapes_of(tensors), "objects": named}
        self.channel.header(head)
        if tensors:
            self.channel.header_received()
        payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.sent = Counted(self.sent.payload + payload, self.channel.sent.wire)

    def receive(self) -> Parcel:
        """Wait for a message, and take its tensors out of the store.

        Raises:
            PeerGoneError: the peer ended or says nothing.
        """
        head = self.channel.header_received()
        tensors = []
        for (dtype, shape), named in zip(head["tensors"], head.get("objects", ()), strict=True):
            found = self.ray.get(self.ray.cloudpickle.loads(base64.b64decode(named)))
            tensor = empty_as(dtype, shape)
            as_bytes(tensor)[:] = found
            tensors.append(tensor)
        if tensors:
            self.channel.header({"read": len(tensors)})
        return Parcel(head["name"], head["told"], tensors)

    def close(self) -> None:
        """End it."""
        self.kept = []
        self.channel.close()


def shapes_of(tensors: Sequence[Tensor]) -> list[tuple[str, list[int]]]:
    """Type and shape of each, as a header says them."""
    return [(str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for tensor in tensors]


def empty_as(dtype: str, shape: Sequence[int]) -> Tensor:
    """A tensor to read into."""
    return torch.empty(list(shape), dtype=getattr(torch, dtype))


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor: of one that lies in a row its own, so that it can be read into."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # pyright: ignore[reportArgumentType]
