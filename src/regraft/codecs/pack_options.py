"""Options of `regraft pack` and `unpack` beside those that every command has, and which codec takes which.

Nothing heavy is imported: the command line reads this for `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ENDINGS = {
    "bpez": ".bpez", "ulz": ".ulz", "archive": ".rga", "image": ".rgi", "font": ".rgf", "lm": ".rgl",
}  # fmt: skip
"""How the names of packed files end, where no other name is asked for."""
STREAMS = ("bpez", "ulz", "lm")
"""Codecs that take standard input and give standard output."""


@dataclass(frozen=True)
class ByteOptions:
    """Options of the codecs of bytes."""

    level: int | None = None
    """level of ulz, 1 (fast) to 9 (small), 5 by default; of archive 1 to 5, 3 by default"""
    window: int | None = None
    """largest distance of ulz as a power of two, 17 by default, 22 at level 9; tokens of context of lm"""
    cycles: int | None = None
    """how many pairs bpez replaces in a block, 64 by default"""
    block_size: str = ""
    """bytes of a block of bpez, ulz, lm, such as 1MiB"""
    workers: int | None = None
    """threads; by default all cores"""
    raw: bool = False
    """the bare stream of bpez, without lengths and checksums; a font's bits without zeros coded"""
    verify: bool = False
    """unpack what was written and compare, before it is kept"""


@dataclass(frozen=True)
class ArchiveOptions:
    """Options of archives."""

    only: list[str] | None = None
    """paths in an archive, * stands for anything; again for several"""
    without: list[str] | None = None
    """paths that are left out, when adding too; again for several"""
    version: int = 0
    """version of an archive, the last by default"""
    date: str = ""
    """the last version up to a date, such as 2026-11-29"""


@dataclass(frozen=True)
class ImageOptions:
    """Options of the codec of pictures."""

    blocks: int | None = None
    """blocks of the network, 2 by default"""
    units: int | None = None
    """units of a block, 128 by default"""
    fourier: int | None = None
    """Fourier features of a coordinate, 16 by default"""
    bits: int | None = None
    """bits of a weight, 6 by default"""
    steps: int | None = None
    """steps of the fit, 2,000 by default"""
    ssim: float | None = None
    """weight of structural similarity in the loss, 0 by default"""
    region: list[str] | None = None
    """LEFT,TOP,WIDTH,HEIGHT of a region that counts more; again for several"""
    mask: str = ""
    """picture whose white parts count more"""
    salient: bool = False
    """what draws the eye counts more (spectral residual)"""
    begin_with: str = ""
    """packed picture whose network is fitted on"""


@dataclass(frozen=True)
class FontOptions:
    """Options of the codec of bitmap fonts."""

    grid: str = ""
    """cells across and down, such as 16x8; found by default"""
    char_size: str = ""
    """pixels of a cell, such as 8x16"""
    threshold: int | None = None
    """gray value below which a pixel is ink, 1 to 255; the middle by default"""
    solid: bool = False
    """cells touch, so that no grid is looked for"""
    format: Literal["packed", "c", "rust", "binary"] = "packed"
    """a packed file, source in C or Rust, or the coded bits alone"""
    stats: bool = False
    """what the font is, in numbers; nothing is written"""
    preview: bool = False
    """show the cells in the terminal; nothing is written"""
    batch: bool = False
    """several sheets, each to a file beside it or in the folder --out"""
    list_fonts: bool = False
    """the sheets in a folder and their grids"""


TAKEN_BY: dict[str, tuple[str, ...]] = {
    "level": ("ulz", "archive"),
    "window": ("ulz", "lm"),
    "cycles": ("bpez",),
    "block_size": ("bpez", "ulz", "lm"),
    "workers": ("bpez", "ulz", "lm"),
    "raw": ("bpez", "font"),
    "verify": ("bpez", "ulz", "lm", "font", "archive"),
    "only": ("archive",),
    "without": ("archive",),
    "version": ("archive",),
    "date": ("archive",),
    **dict.fromkeys(ImageOptions.__dataclass_fields__, ("image",)),
    **dict.fromkeys(FontOptions.__dataclass_fields__, ("font",)),
}
"""Which codecs take an option."""


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were asked for."""
    classes = (ByteOptions, ArchiveOptions, ImageOptions, FontOptions)
    unset = {name: field.default for one in classes for name, field in one.__dataclass_fields__.items()}
    return {name: value for name, value in values.items() if value != unset[name] and value != []}


def check_taken(codec: str, values: dict[str, Any]) -> dict[str, Any]:
    """The options that were asked for, all of them the codec's.

    Raises:
        ValueError: one is another codec's.
    """
    found = given(values)
    for name in found:
        if codec not in TAKEN_BY[name]:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is an option of {' and '.join(TAKEN_BY[name])}, not of {codec}")
    return found


def pair_of(text: str, option: str) -> tuple[int, int]:
    """Two numbers such as 16x8.

    Raises:
        ValueError: they are none.
    """
    first, _, second = text.lower().partition("x")
    if not (first.isdigit() and second.isdigit()):
        raise ValueError(f"{option} {text} is no size: write two numbers such as 16x8")
    return int(first), int(second)


def box_of(text: str) -> tuple[int, int, int, int]:
    """Four numbers such as 10,20,64,48.

    Raises:
        ValueError: they are none.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--region {text} is no region: write LEFT,TOP,WIDTH,HEIGHT such as 10,20,64,48")
    left, top, width, height = map(int, parts)
    return left, top, width, height
