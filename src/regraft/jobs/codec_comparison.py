"""All codecs of bytes beside those that everybody has: bytes and rates of one file, in one table and one
figure."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import platform
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from regraft.codecs.block_stream import cores
from regraft.codecs.codec_table import codec
from regraft.core.files import expanded, reading
from regraft.core.progress import advance
from regraft.core.sizes import in_words

Work = Callable[[bytes], bytes]
AGAIN = 3
"""Each direction is run so often where it takes less than `SHORT` seconds; the fastest counts."""
SHORT = 2.0
"""Seconds."""
LARGEST = 1 << 30
"""Bytes of the largest file that is compared: everything is held in memory."""


def candidates(model: Any = None) -> dict[str, tuple[Work, Work]]:
    """Every codec that applies, by name: how it packs and unpacks."""
    import brotli
    import lz4.frame
    import zpaq
    import zstandard

    found: dict[str, tuple[Work, Work]] = {}
    for name, options in (("bpez", {}), ("ulz", {"level": 1}), ("ulz", {"level": 5}), ("ulz", {"level": 9})):
        label = f"{name} -{options['level']}" if options else name
        found[label] = _own(name, options)
    for level in (1, 3, 5):
        found[f"archive -{level}"] = _zpaq(level), zpaq.decompress
    if model is not None:
        one = codec("lm")
        found["lm"] = (
            lambda data: one.compress(data, model=model),
            lambda data: one.decompress(data, model=model),
        )
    return found | {
        "gzip -1": (lambda data: gzip.compress(data, 1), gzip.decompress),
        "gzip -9": (lambda data: gzip.compress(data, 9), gzip.decompress),
        "bzip2 -9": (bz2.compress, bz2.decompress),
        "xz -9": (lambda data: lzma.compress(data, preset=9), lzma.decompress),
        "zstd -3": (zstandard.ZstdCompressor(3).compress, _zstd),
        "zstd -19": (zstandard.ZstdCompressor(19).compress, _zstd),
        "brotli -11": (lambda data: brotli.compress(data, quality=11), brotli.decompress),
        "lz4": (lz4.frame.compress, lz4.frame.decompress),
        "lz4hc": (lambda data: lz4.frame.compress(data, compression_level=12), lz4.frame.decompress),
    }


def _own(name: str, options: dict[str, Any]) -> tuple[Work, Work]:
    one = codec(name)
    return lambda data: one.compress(data, **options), one.decompress


def _zpaq(level: int) -> Work:
    import zpaq

    from regraft.codecs.archive import method_of

    return lambda data: zpaq.compress(data, method=method_of(data, level), threads=1)


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def compare_codecs(name: str, model: Any = None) -> xr.Dataset:
    """Bytes, bits per byte and rates of every codec on one file; what is packed is unpacked and compared.

    The rates are of this machine in this run, our own codecs with all cores, the others as they come.

    Raises:
        ValueError: the file is empty or too large.
        UnreadableError: it cannot be read.
    """
    with reading(name, "name a file"):
        place = expanded(name)
        if place.stat().st_size > LARGEST:
            raise ValueError(f"{name} has more than the {in_words(LARGEST)} that are compared in memory")
        data = place.read_bytes()
    if not data:
        raise ValueError(f"{name} is empty, and every codec makes nothing of it in no time")
    rows: dict[str, tuple[int, float, float]] = {}
    works = candidates(model)
    for done, (label, (pack, unpack)) in enumerate(works.items(), 1):
        packed, packing = _timed(pack, data)
        again, unpacking = _timed(unpack, packed)
        if again != data:
            raise RuntimeError(f"{label} does not give the file back")
        rows[label] = len(packed), len(data) / packing / 1e6, len(data) / unpacking / 1e6
        advance(f"codecs: {label}", done, len(works))
    return _dataset(name, len(data), rows)


def _timed(work: Work, data: bytes) -> tuple[bytes, float]:
    """What some work makes, and the seconds of the fastest of some runs."""
    best, found = float("inf"), b""
    for _ in range(AGAIN):
        began = time.perf_counter()
        found = work(data)
        best = min(best, time.perf_counter() - began)
        if best > SHORT:
            break
    return found, best


def _dataset(name: str, size: int, rows: dict[str, tuple[int, float, float]]) -> xr.Dataset:
    sizes, packing, unpacking = (list(column) for column in zip(*rows.values(), strict=True))
    libraries = ("numba", "zpaq", "zstandard", "brotli", "lz4")
    return xr.Dataset(
        {
            "bytes": ("codec", sizes, {"units": "bytes"}),
            "bits_per_byte": ("codec", [8 * one / size for one in sizes], {"units": "bits per byte"}),
            "ratio": ("codec", [size / one for one in sizes], {"units": "bytes before over bytes after"}),
            "packing": ("codec", packing, {"units": "MB/s"}),
            "unpacking": ("codec", unpacking, {"units": "MB/s"}),
        },
        {"codec": list(rows)},
        {
            "experiment": "codecs",
            "file": Path(name).name,
            "size": size,
            "cores": cores(),
            "machine": platform.processor() or platform.machine(),
            "load": os.getloadavg()[0],
            "versions": ", ".join(
                [f"regraft {version('regraft')}", f"zlib {zlib.ZLIB_RUNTIME_VERSION}"]
                + [f"{library} {version(library)}" for library in libraries]
            ),
        },
    )
