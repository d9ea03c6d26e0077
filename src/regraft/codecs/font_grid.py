"""Where the cells of a bitmap font sheet are: found, or as told.

Shapes: H rows of pixels, W columns of pixels; True is ink.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from regraft.codecs.pictures import WHITE, read_pixels

MOST_CELLS = 1 << 18
"""Cells of a sheet."""
HALF = 0.5
"""Share of a sheet's rim that is dark from which on ink is light."""
SMALLEST_CELL = 3
"""Pixels of a cell that is looked for: no letter is narrower with its gap."""
PARTS = 0.8
"""Cells for each stretch of ink, at least: some letters are of two."""


@dataclass(frozen=True)
class CellGrid:
    """Columns and rows of cells as (start, stop) in pixels, how they were found, and the sheet's size."""

    columns: tuple[tuple[int, int], ...]
    rows: tuple[tuple[int, int], ...]
    found: str
    width: int
    height: int

    @property
    def count(self) -> int:
        """Cells of the sheet."""
        return len(self.columns) * len(self.rows)

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of the largest cell: all are kept in this size."""
        return max(b - a for a, b in self.columns), max(b - a for a, b in self.rows)


def read_ink(path: Path, threshold: int | None, invert: bool | None = None) -> np.ndarray:
    """A picture as ink (H, W): darker than the threshold, or lighter where its rim is dark.

    `threshold` None is half of the lightest and darkest; `invert` says that ink is light.

    Raises:
        ValueError: it is no picture, too large, or nothing is on it.
    """
    gray = read_pixels(path, gray=True)[:, :, 0]
    if threshold is not None and not 0 < threshold <= WHITE:
        raise ValueError(f"--threshold {threshold} is no value from 1 to 255")
    level = (int(gray.min()) + int(gray.max()) + 1) // 2 if threshold is None else threshold
    dark = gray < level
    rim = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
    light_ink = bool(rim.mean() > HALF) if invert is None else invert
    ink = ~dark if light_ink else dark
    if not ink.any() or ink.all():
        raise ValueError(f"{path} is all of one kind at threshold {level}: choose another with --threshold")
    return ink


def grid_of(
    ink: np.ndarray,
    grid: tuple[int, int] | None = None,
    cell: tuple[int, int] | None = None,
    solid: bool = False,
) -> CellGrid:
    """Cells of a sheet: as told by their number across and down (`grid`) or their size (`cell`), else found.

    What is looked for: the smallest steps of equal cells whose borders no stroke crosses; where there are
    none, empty columns and rows between cells of different sizes. `solid` says that cells touch, so that
    nothing can be found.

    Raises:
        ValueError: what is told does not fit the sheet, or nothing is found.
    """
    height, width = ink.shape
    if grid is not None and cell is not None:
        raise ValueError("--grid and --char-size both say where the cells are: choose one")
    if grid is not None:
        if min(grid) < 1 or width % grid[0] or height % grid[1]:
            raise ValueError(
                f"--grid {grid[0]}x{grid[1]} does not divide a sheet of {width} × {height} pixels"
            )
        cell = width // grid[0], height // grid[1]
    if cell is not None:
        if min(cell) < 1 or cell[0] > width or cell[1] > height:
            raise ValueError(
                f"--char-size {cell[0]}x{cell[1]} does not fit a sheet of {width} × {height} pixels"
            )
        told = _steps(width // cell[0], cell[0], 0), _steps(height // cell[1], cell[1], 0)
        found = CellGrid(*told, "told", width, height)
        _check_told(ink, found)
        return found
    if solid:
        raise ValueError("cells that touch have no borders to find: tell --grid or --char-size with --solid")
    columns, rows = _runs(np.any(ink, axis=0)), _runs(np.any(ink, axis=1))
    across, down = _period(ink, columns), _period(ink.T, rows)
    if across and down:
        return CellGrid(across, down, "equal cells", width, height)
    if len(columns) * len(rows) < 2:
        raise ValueError("no grid can be found in the sheet: tell it with --grid or --char-size")
    return CellGrid(columns, rows, "gaps between uneven cells", width, height)


def _check_told(ink: np.ndarray, grid: CellGrid) -> None:
    """Make sure that a grid that was told holds all ink, in no more cells than can be kept."""
    if grid.count > MOST_CELLS:
        raise ValueError(f"{grid.count:,} cells are more than the {MOST_CELLS:,} that a file keeps")
    right, below = grid.columns[-1][1], grid.rows[-1][1]
    if ink[below:].any() or ink[:, right:].any():
        raise ValueError(
            f"there is ink outside of {len(grid.columns)} × {len(grid.rows)} cells of"
            f" {grid.cell[0]} × {grid.cell[1]} pixels: tell another --char-size"
        )


def _steps(count: int, step: int, start: int) -> tuple[tuple[int, int], ...]:
    return tuple((at, at + step) for at in range(start, start + count * step, step))


def _period(ink: np.ndarray, runs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Equal columns; nothing where there are none.

    The smallest step that divides the sheet and whose borders no stroke crosses, which is ink on both sides
    in one row. Not one that puts several stretches of ink into one cell: that is chance among cells of
    different sizes; but a letter may be of two stretches. Else, behind a margin, a step that gives every
    stretch a cell of its own, as near as can be to how far apart they stand.
    """
    width = ink.shape[1]
    crossed = np.zeros(width + 1, bool)
    crossed[1:width] = np.any(ink[:, 1:] & ink[:, :-1], axis=0)
    for step in range(SMALLEST_CELL, width // 2 + 1):
        if width % step == 0 and not crossed[::step].any() and width // step >= PARTS * len(runs):
            return _steps(width // step, step, 0)
    if len(runs) < 2:
        return ()
    starts, stops = np.array(runs).T
    apart = float((stops[-1] - stops[0] + starts[-1] - starts[0]) / (2 * (len(runs) - 1)))
    for step in sorted(range(SMALLEST_CELL, width), key=lambda one: abs(one - apart)):
        low, high = int(stops[-1]) - len(runs) * step, int(starts[0])
        for start in range(max(0, low), high + 1):
            cells = start + step * np.arange(len(runs))
            if (cells <= starts).all() and (stops <= cells + step).all() and cells[-1] + step <= width:
                return _steps(len(runs), step, start)
    return ()


def _runs(held: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Stretches in which there is ink."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], held, [False]]).astype(np.int8)))
    return tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))


def cells_of(ink: np.ndarray, grid: CellGrid) -> np.ndarray:
    """The cells (count, h, w) of a sheet, row by row, those that are smaller filled up to the right and
    below."""
    width, height = grid.cell
    found = np.zeros((grid.count, height, width), bool)
    places = [(rows, columns) for rows in grid.rows for columns in grid.columns]
    for cell, ((top, bottom), (left, right)) in zip(found, places, strict=True):
        cell[: bottom - top, : right - left] = ink[top:bottom, left:right]
    return found


def sheet_of(cells: np.ndarray, grid: CellGrid) -> np.ndarray:
    """The sheet (H, W) that cells were taken from, what lies between them empty."""
    ink = np.zeros((grid.height, grid.width), bool)
    places = [(rows, columns) for rows in grid.rows for columns in grid.columns]
    for cell, ((top, bottom), (left, right)) in zip(cells, places, strict=True):
        ink[top:bottom, left:right] = cell[: bottom - top, : right - left]
    return ink


def behind_each_other(spans: Sequence[tuple[int, int]], length: int) -> bool:
    """Whether stretches lie behind each other within a length."""
    return (
        len(spans) > 0
        and spans[0][0] >= 0
        and spans[-1][1] <= length
        and all(start < stop for start, stop in spans)
        and all(one[1] <= other[0] for one, other in pairwise(spans))
    )
