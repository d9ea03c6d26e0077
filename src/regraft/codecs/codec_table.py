"""The table of codecs, and what all of them offer: bytes to bytes, and streams to streams."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, BinaryIO

from regraft.codecs.block_stream import Prepared, UnpackBlock, cores, pack_stream, unpack_stream
from regraft.codecs.frame import LARGEST_BLOCK, read_header

ONE_BLOCK = 1 << 16
"""A packed file of fewer bytes is unpacked without threads: to start them takes longer."""


@dataclass(frozen=True)
class Codec:
    """One codec: its name, its number in the frame, and the module with `prepared` and `opened`; none for
    those of files."""

    name: str
    number: int
    module: str = ""
    options: tuple[str, ...] = ()

    def prepared(self, **options: Any) -> Prepared:
        """The codec with its options, checked.

        Raises:
            ValueError: an option is not one of the codec's, or has no such value.
        """
        for name in options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ValueError(f"{name} is no option of the codec {self.name}: it has {known}")
        return self._module().prepared(**options)

    def opened(self, parameters: dict[str, Any], **options: Any) -> UnpackBlock:
        """What unpacks the blocks of a file with these parameters."""
        return self._module().opened(parameters, **options)

    def _module(self) -> Any:
        if not self.module:
            raise ValueError(f"{self.name} packs files, not bytes: use `regraft pack --codec {self.name}`")
        return import_module(self.module)

    def compress(self, data: bytes, **options: Any) -> bytes:
        """Bytes packed, with the frame around them.

        >>> import regraft
        >>> ulz = regraft.codec("ulz")
        >>> ulz.decompress(ulz.compress(b"to be or not to be"))
        b'to be or not to be'

        Raises:
            ValueError: an option is not one of the codec's.
        """
        out = io.BytesIO()
        ready = self.prepared(**options)
        blocks = -(-len(data) // ready.block_size)
        pack_stream(io.BytesIO(data), out, self.number, replace(ready, workers=min(ready.workers, blocks)))
        return out.getvalue()

    def decompress(self, data: bytes, max_size: int | None = None, **options: Any) -> bytes:
        """What was packed.

        Raises:
            ValueError: it is no packed file, one of another codec, or unpacks to more than `max_size` bytes.
            DamagedFileError: it is cut or changed.
        """
        out = io.BytesIO()
        if len(data) < ONE_BLOCK:
            options.setdefault("workers", 1)
        self.unpack(io.BytesIO(data), out, max_size, **options)
        return out.getvalue()

    def pack(self, source: BinaryIO, out: BinaryIO, total: int = 0, **options: Any) -> tuple[int, int]:
        """A stream packed into another; bytes read and written. `total` is for the progress bar alone."""
        return pack_stream(source, out, self.number, self.prepared(**options), total)

    def unpack(self, source: BinaryIO, out: BinaryIO, max_size: int | None = None, **options: Any) -> int:
        """A packed stream unpacked into another; bytes written."""
        number, parameters = read_header(source)
        if number != self.number:
            raise ValueError(f"this was packed by {codec_of(number).name}, not by {self.name}")
        return self.unpack_rest(parameters, source, out, max_size, **options)

    def unpack_rest(
        self,
        parameters: dict[str, Any],
        source: BinaryIO,
        out: BinaryIO,
        max_size: int | None,
        **options: Any,
    ) -> int:
        """The blocks behind a header that was read."""
        workers = options.pop("workers", 0) or cores()
        unpack_block = self.opened(parameters, **options)
        return unpack_stream(source, out, unpack_block, LARGEST_BLOCK, workers, max_size)


CODECS = {
    codec.name: codec
    for codec in (
        Codec(
            "bpez",
            1,
            "regraft.codecs.bpez",
            ("cycles", "block_size", "workers"),
        ),
        Codec(
            "ulz",
            2,
            "regraft.codecs.ulz",
            ("level", "window", "block_size", "workers"),
        ),
        Codec("archive", 3),
        Codec("image", 4),
        Codec("font", 5),
        Codec(
            "lm",
            6,
            "regraft.codecs.lm",
            ("model", "window", "block_size", "workers"),
        ),
    )
}
"""Every codec by name."""


def codec(name: str) -> Codec:
    """A codec by name.

    Returns:
        An object with `compress` and `decompress`, bytes to bytes, and both for streams.

    Raises:
        ValueError: there is none of this name.

    Examples:
        >>> ulz = regraft.codec("ulz")
        >>> packed = ulz.compress(b"to be or not to be, " * 20)
        >>> len(packed) < 400, ulz.decompress(packed) == b"to be or not to be, " * 20
        (True, True)
    """
    if name not in CODECS:
        raise ValueError(f"there is no codec {name!r}: choose one of {', '.join(CODECS)}")
    return CODECS[name]


def codec_of(number: int) -> Codec:
    """The codec with a number in the frame.

    Raises:
        ValueError: this program knows none.
    """
    for found in CODECS.values():
        if found.number == number:
            return found
    raise ValueError(
        f"it was packed by codec {number}, which this version of regraft does not know: update it"
    )
