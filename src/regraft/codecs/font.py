"""`font`: a bitmap font sheet as one bit a pixel, eight to a byte, zeros coded (METHODS.md, section 8).

Every cell is kept row by row in the size of the largest, its rows filled up to whole bytes. The header tells
where the cells stand on the sheet, so unpacking gives the sheet's own bitmap back.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from regraft.codecs.block_stream import Prepared, UnpackBlock, pack_stream, prepared_blocks, unpack_stream
from regraft.codecs.font_grid import (
    MOST_CELLS,
    CellGrid,
    behind_each_other,
    cells_of,
    grid_of,
    read_ink,
    sheet_of,
)
from regraft.codecs.frame import LARGEST_BLOCK, DamagedFileError
from regraft.codecs.pictures import MOST_PIXELS
from regraft.codecs.zero_runs import pack_block, unpack_block

NUMBER = 5
"""Of the codec in the frame."""
BLOCK = 1 << 20
"""Bytes of a block."""


@dataclass(frozen=True)
class Font:
    """Cells (count, h, w) of a sheet and where they stand on it."""

    cells: np.ndarray
    grid: CellGrid

    @property
    def bits(self) -> bytes:
        """The cells, eight pixels to a byte, the leftmost the highest bit."""
        return np.packbits(self.cells, axis=2).tobytes()

    @property
    def sheet(self) -> np.ndarray:
        """The sheet (H, W), True for ink."""
        return sheet_of(self.cells, self.grid)


def read_font(
    path: Path,
    grid: tuple[int, int] | None = None,
    cell: tuple[int, int] | None = None,
    threshold: int | None = None,
    solid: bool = False,
) -> Font:
    """The font on a picture.

    Raises:
        ValueError: it is no picture, nothing is on it, or no grid fits or is found.
    """
    ink = read_ink(path, threshold)
    found = grid_of(ink, grid, cell, solid)
    return Font(cells_of(ink, found), found)


def coded(bits: bytes, raw: bool) -> bytes:
    """A font's bits as a program carries them: with runs of zeros coded, or `raw` as they are."""
    return bits if raw else pack_block(bits)


def pack_font(font: Font, out: BinaryIO) -> tuple[int, int]:
    """A font into a packed file; bytes of its bits, and written."""
    width, height = font.grid.cell
    parameters = {
        "cell": [width, height],
        "sheet": [font.grid.width, font.grid.height],
        "columns": [list(span) for span in font.grid.columns],
        "rows": [list(span) for span in font.grid.rows],
        "found": font.grid.found,
    }
    ready = prepared_blocks(pack_block, BLOCK, None, 1)
    whole = Prepared(parameters, ready.pack_block, ready.block_size, 1)
    return pack_stream(io.BytesIO(font.bits), out, NUMBER, whole)


def opened(_parameters: dict[str, Any]) -> UnpackBlock:
    """What unpacks blocks: they need no parameters."""
    return unpack_block


def unpack_font(parameters: dict[str, Any], source: BinaryIO, max_size: int | None = None) -> Font:
    """The font behind a header.

    Raises:
        DamagedFileError: it is damaged.
        TooLargeError: it is larger than `max_size` bytes.
    """
    grid = _grid_told(parameters)
    width, height = grid.cell
    row = -(-width // 8)
    needed = grid.count * height * row
    out = io.BytesIO()
    unpack_stream(
        source, out, unpack_block, LARGEST_BLOCK, 1, needed if max_size is None else min(needed, max_size)
    )
    if len(out.getvalue()) != needed:
        raise DamagedFileError("the bits do not make up the cells: the file is damaged")
    bits = np.frombuffer(out.getvalue(), np.uint8).reshape(grid.count, height, row)
    return Font(np.unpackbits(bits, axis=2, count=width).astype(bool), grid)


def _grid_told(parameters: dict[str, Any]) -> CellGrid:
    try:
        width, height = parameters["sheet"]
        spans = [tuple((start, stop) for start, stop in parameters[name]) for name in ("columns", "rows")]
        numbers = [width, height, *(number for span in spans for pair in span for number in pair)]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError("its header tells no grid: the file is damaged") from error
    whole = all(type(number) is int and 0 <= number <= MOST_PIXELS for number in numbers)
    if not whole or width * height > MOST_PIXELS:
        raise DamagedFileError("its header tells an impossible sheet: the file is damaged")
    if not behind_each_other(spans[0], width) or not behind_each_other(spans[1], height):
        raise DamagedFileError("its header tells cells that lie over each other: the file is damaged")
    grid = CellGrid(spans[0], spans[1], str(parameters.get("found", "")), width, height)
    if grid.count > MOST_CELLS or grid.count * grid.cell[0] * grid.cell[1] > 4 * MOST_PIXELS:
        raise DamagedFileError("its header tells too many cells: the file is damaged")
    return grid


def picture(font: Font) -> Any:
    """The sheet as a picture of Pillow's, ink black on white."""
    from PIL import Image

    return Image.fromarray(np.where(font.sheet, 0, 255).astype(np.uint8), "L").convert("1")


def preview(font: Font, columns: int = 100) -> Iterator[str]:
    """Lines that show the cells in a terminal, two rows of pixels in a line."""
    width, height = font.grid.cell
    across = max(1, columns // (width + 1))
    for first in range(0, font.grid.count, across):
        group = font.cells[first : first + across]
        for top in range(0, height, 2):
            upper = group[:, top]
            lower = group[:, top + 1] if top + 1 < height else np.zeros_like(upper)
            marks = np.array([" ", "▀", "▄", "█"])[upper.astype(int) + 2 * lower.astype(int)]
            yield " ".join("".join(row) for row in marks).rstrip()
        yield ""


def statistics(font: Font) -> dict[str, Any]:
    """What a font is, in numbers: cells, their size, how many are empty or equal to one before, ink, bytes of
    the bits and of the bits with runs of zeros coded."""
    bits = font.bits
    flat = font.cells.reshape(len(font.cells), -1)
    return {
        "cells": font.grid.count,
        "cell": "{} × {} pixels".format(*font.grid.cell),
        "grid": f"{len(font.grid.columns)} × {len(font.grid.rows)} ({font.grid.found})",
        "empty": int((~flat.any(1)).sum()),
        "repeated": len(flat) - len(np.unique(flat, axis=0)),
        "ink": f"{font.cells.mean():.1%} of the pixels",
        "bits": f"{len(bits):,} bytes",
        "coded": f"{len(pack_block(bits)):,} bytes",
    }
