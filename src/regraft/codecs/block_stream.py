"""Streams through a frame, block by block over the cores: memory is a few blocks, whatever the length."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeVar

from regraft.codecs.frame import (
    LARGEST_BLOCK,
    PACKED,
    STORED,
    DamagedFileError,
    Digest,
    StoredBlock,
    block,
    header,
    read_blocks,
)
from regraft.core.progress import advance

Given = TypeVar("Given")
Made = TypeVar("Made")
PackBlock = Callable[[bytes], bytes]
UnpackBlock = Callable[[bytes, int], bytes]
SMALLEST_BLOCK = 1 << 10
"""Bytes of the smallest block that can be asked for."""


@dataclass(frozen=True)
class Prepared:
    """A codec with its options: what the header keeps, how a block is packed, bytes of a block, threads."""

    parameters: dict[str, Any]
    pack_block: PackBlock
    block_size: int
    workers: int


def prepared_blocks(
    work: Callable[..., bytes], default: int, size: int | None, workers: int | None, **options: Any
) -> Prepared:
    """A codec of which `work` packs a block with some options, which the header keeps.

    Raises:
        ValueError: so small or large a block, or so few threads, are not possible.
    """
    size = size or default
    if not SMALLEST_BLOCK <= size <= LARGEST_BLOCK:
        raise ValueError(f"--block-size {size} is no size from {SMALLEST_BLOCK:,} to {LARGEST_BLOCK:,} bytes")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers} is no number of threads: write 1 or more")
    return Prepared(dict(options), partial(work, **options), size, workers or cores())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(work: Callable[[Given], Made], given: Iterable[Given], workers: int) -> Iterator[Made]:
    """`work` of each item, in their order, by some threads, never more than two items ahead of each."""
    if workers <= 1:
        yield from map(work, given)
        return
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in given:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()


def pieces(source: BinaryIO, size: int) -> Iterator[bytes]:
    """A stream in pieces of one size, the last one shorter; a pipe's small reads are put together."""
    while True:
        parts, missing = [], size
        while missing and (part := source.read(missing)):
            parts.append(part)
            missing -= len(part)
        if parts:
            yield b"".join(parts)
        if missing:
            return


def pack_stream(
    source: BinaryIO,
    out: BinaryIO,
    number: int,
    ready: Prepared,
    total: int = 0,
) -> tuple[int, int]:
    """A whole stream into the frame of codec `number`; bytes read and written.

    A block that would not become smaller is stored as it is.
    """
    digest, written = Digest(), 0

    def work(raw: bytes) -> tuple[bytes, bytes]:
        packed = ready.pack_block(raw)
        smaller = len(packed) < len(raw)
        return raw, block(PACKED if smaller else STORED, len(raw), packed if smaller else raw)

    def put(content: bytes) -> None:
        nonlocal written
        out.write(content)
        written += len(content)

    put(header(number, ready.parameters))
    for raw, stored in in_order(work, pieces(source, ready.block_size), ready.workers):
        digest.add(raw)
        put(stored)
        advance("bytes packed", digest.raw, max(total, digest.raw))
    put(digest.end())
    return digest.raw, written


def unpack_stream(
    source: BinaryIO,
    out: BinaryIO,
    unpack_block: UnpackBlock,
    largest: int,
    workers: int,
    limit: int | None = None,
) -> int:
    """The blocks behind a header into a stream; how many bytes.

    Raises:
        DamagedFileError: the file is cut or changed.
        TooLargeError: it unpacks to more than `limit` bytes.
    """
    digest = Digest(limit)
    told = None

    def stored() -> Iterator[StoredBlock]:
        nonlocal told
        promised = 0
        for found in read_blocks(source, largest):
            if isinstance(found, StoredBlock):
                promised += found.raw
                digest.allow(promised - digest.raw)
                yield found
            else:
                told = found

    def work(found: StoredBlock) -> bytes:
        raw = found.stored if found.kind == STORED else unpack_block(found.stored, found.raw)
        if len(raw) != found.raw:
            raise DamagedFileError("a block does not unpack to its length: the file is damaged")
        return raw

    for raw in in_order(work, stored(), workers):
        digest.add(raw)
        out.write(raw)
        advance("bytes unpacked", digest.raw, 0)
    assert told is not None
    digest.check(told)
    return digest.raw
