"""Pictures of any kind as bytes: alpha on white, sixteen bits scaled to eight; what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

MOST_PIXELS = 1 << 26
"""Pixels of the largest picture."""
DEEP = 257
"""What a value of sixteen bits is divided by: the lightest becomes the lightest."""
WHITE = 255
"""The lightest gray."""
_GRAY = ("L", "1", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


def read_pixels(path: Path, gray: bool = False) -> np.ndarray:
    """A picture as bytes (H, W, C), C 1 for gray and 3 else; `gray` makes every picture gray.

    Raises:
        ValueError: it is no picture, is cut, has too many pixels, or numbers that are no shades.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(
                    f"{path} has {opened.width} × {opened.height} pixels, more than {MOST_PIXELS:,}"
                )
            found = _pixels(opened, gray)
    except (Image.UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{path} is no picture that Pillow reads ({error}): name a PNG or the like"
        ) from error
    return found if found.ndim == 3 else found[:, :, None]


def _pixels(opened: Any, gray: bool) -> np.ndarray:
    from PIL import Image

    mode = opened.mode
    if mode == "F":
        raise ValueError("its pixels are fractions, which are no shades: save it with eight or sixteen bits")
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(opened).astype(np.int64)
        if values.min() < 0 or values.max() > WHITE * DEEP:
            raise ValueError("its pixels are no shades of sixteen bits: save it with eight or sixteen bits")
        return ((values + DEEP // 2) // DEEP).astype(np.uint8)
    shown = opened
    if "A" in opened.getbands() or "a" in opened.getbands() or "transparency" in opened.info:
        over = opened.convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), over)
    return np.asarray(shown.convert("L" if gray or mode in _GRAY else "RGB"))
