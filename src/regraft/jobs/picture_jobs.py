"""What `regraft pack` does with pictures and font sheets."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from regraft.codecs import font
from regraft.codecs.font_sources import proved, source_of
from regraft.codecs.frame import MAGIC, is_packed, read_header
from regraft.codecs.image import FittedImage, fit_image, pack_image, read_image, weight_of
from regraft.codecs.image_network import ImagePlan, NetworkSize
from regraft.codecs.pack_options import ENDINGS, box_of, pair_of
from regraft.codecs.pictures import read_pixels
from regraft.core.files import expanded, reading, whole_file
from regraft.core.progress import tell
from regraft.jobs.pack_jobs import Outcome

PICTURES = (".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".jpg", ".jpeg", ".webp")
"""Endings of files that are looked at as pictures in a folder."""
FONT_ENDINGS = {"packed": ENDINGS["font"], "c": ".h", "rust": ".rs", "binary": ".bin"}
"""How a font's file ends, by its format."""


@dataclass(frozen=True)
class Likeness:
    """A lossy file beside the picture: bytes, PSNR in dB, SSIM, and what comes back."""

    name: str
    bytes: int
    psnr: float
    ssim: float
    pixels: np.ndarray


def pack_picture(
    name: str, out: str, options: dict[str, Any], seed: int = 0
) -> tuple[Outcome, list[Likeness]]:
    """Fit a picture and write it; beside it JPEG, WebP and AVIF of at most as many bytes.

    Raises:
        ValueError: it is no picture, or an option has no such value.
    """
    began = time.perf_counter()
    with reading(name, "name a picture"):
        pixels = read_pixels(expanded(name))
    boxes = [box_of(region) for region in options.get("region", ())]
    mask = expanded(options["mask"]) if "mask" in options else None
    weight = weight_of(pixels, boxes, mask, options.get("salient", False))
    begin = _opened_image(options["begin_with"]) if "begin_with" in options else None
    sizes = {key: options[key] for key in ("blocks", "units", "fourier") if key in options}
    if begin is not None and sizes:
        raise ValueError("--begin-with brings its network along: leave --blocks, --units and --fourier out")
    plan = ImagePlan(seed=seed, **{key: options[key] for key in ("steps", "ssim") if key in options})
    with whole_file(out) as part, part.open("wb") as file:
        made = fit_image(pixels, NetworkSize(**sizes), plan, options.get("bits", 6), weight, begin)
        _, stored = pack_image(made, file)
    outcome = Outcome(out, pixels.size, stored, time.perf_counter() - began)
    return outcome, [likeness("regraft", stored, pixels, made.pixels), *others(pixels, stored)]


def _opened_image(name: str) -> FittedImage:
    with reading(name, "name a packed picture"), expanded(name).open("rb") as source:
        return read_image(source)


def likeness(name: str, size: int, pixels: np.ndarray, found: np.ndarray) -> Likeness:
    """PSNR and SSIM (scikit-image's) of what came back."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    same = bool((pixels == found).all())
    psnr = float("inf") if same else float(peak_signal_noise_ratio(pixels, found, data_range=255))
    smallest = min(pixels.shape[:2])
    ssim = (
        float(cast(float, structural_similarity(pixels, found, channel_axis=2, data_range=255)))
        if smallest >= 7
        else float("nan")
    )
    return Likeness(name, size, psnr, ssim, found)


def others(pixels: np.ndarray, most: int) -> list[Likeness]:
    """JPEG, WebP and AVIF at the best quality that takes no more bytes; none that cannot be so small."""
    from PIL import Image

    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    found = []
    for kind in ("JPEG", "WEBP", "AVIF"):
        best = None
        low, high = 0, 100
        while low <= high:
            quality = (low + high) // 2
            out = io.BytesIO()
            try:
                picture.save(out, kind, quality=quality)
            except (ValueError, OSError):  # too many pixels across for this kind
                break
            if out.tell() <= most:
                best, low = out.getvalue(), quality + 1
            else:
                high = quality - 1
        if best is not None:
            with Image.open(io.BytesIO(best)) as opened:
                back = np.asarray(opened.convert(picture.mode))
            found.append(likeness(kind, len(best), pixels, back.reshape(pixels.shape)))
    return found


def side_by_side(pixels: np.ndarray, shown: Sequence[Likeness], place: Path) -> None:
    """A PNG with the picture and what came back of it, each with its name and numbers above."""
    from PIL import Image, ImageDraw

    height, width = pixels.shape[:2]
    titles = [
        "the picture",
        *(f"{one.name}: {one.bytes:,} B, {one.psnr:.1f} dB, {one.ssim:.3f}" for one in shown),
    ]
    sheet = Image.new("RGB", ((width + 8) * len(titles) - 8, height + 20), "white")
    for at, (title, each) in enumerate(zip(titles, [pixels, *(one.pixels for one in shown)], strict=True)):
        colours = np.repeat(each, 3, axis=2) if each.shape[2] == 1 else each
        sheet.paste(Image.fromarray(colours), ((width + 8) * at, 20))
        ImageDraw.Draw(sheet).text(((width + 8) * at, 4), title, fill="black")
    with whole_file(place) as part, part.open("wb") as file:
        sheet.save(file, "PNG")


def read_sheet(name: str, options: dict[str, Any]) -> font.Font:
    """The font on a picture, or in a packed file.

    Raises:
        ValueError: it is neither, or no grid fits or is found.
    """
    with reading(name, "name a picture of a font"):
        place = expanded(name)
        with place.open("rb") as source:
            if is_packed(source.read(len(MAGIC))):
                source.seek(0)
                return font.unpack_font(read_header(source)[1], source)
        grid = pair_of(options["grid"], "--grid") if "grid" in options else None
        cell = pair_of(options["char_size"], "--char-size") if "char_size" in options else None
        return font.read_font(place, grid, cell, options.get("threshold"), options.get("solid", False))


def pack_sheet(name: str, out: str, options: dict[str, Any]) -> Outcome:
    """A font sheet into a packed file, source, or bits.

    Raises:
        ValueError: it is no font sheet, or no compiler is there to verify a source.
        RuntimeError: what was written does not give the font back.
    """
    began = time.perf_counter()
    sheet = read_sheet(name, options)
    kind, raw = options.get("format", "packed"), options.get("raw", False)
    if raw and kind == "packed":
        raise ValueError("--raw leaves zeros as they are in c, rust and binary: choose one with --format")
    content = _font_bytes(sheet, kind, Path(name).stem, raw)
    if options.get("verify"):
        if _font_bits(content, kind, Path(name).stem, raw, len(sheet.bits)) != sheet.bits:
            raise RuntimeError("what would be written does not give the font back: nothing is kept")
        tell(f"verified: {kind} gives the {len(sheet.bits):,} bytes of bits back")
    with whole_file(out) as part:
        part.write_bytes(content)
    return Outcome(out, len(sheet.bits), len(content), time.perf_counter() - began)


def _font_bytes(sheet: font.Font, kind: str, name: str, raw: bool) -> bytes:
    if kind == "packed":
        out = io.BytesIO()
        font.pack_font(sheet, out)
        return out.getvalue()
    return font.coded(sheet.bits, raw) if kind == "binary" else source_of(sheet, kind, name, raw).encode()


def _font_bits(content: bytes, kind: str, name: str, raw: bool, length: int) -> bytes:
    """The bits that were written, by the way that a reader of them goes."""
    if kind == "packed":
        source = io.BytesIO(content)
        return font.unpack_font(read_header(source)[1], source).bits
    if kind == "binary":
        return content if raw else font.unpack_block(content, length)
    return proved(content.decode(), kind, name)


def sheets_in(folder: str) -> Iterator[tuple[str, str]]:
    """The pictures below a folder and what grid is found in each, or why none."""
    with reading(folder, "name a folder"):
        if not expanded(folder).is_dir():
            raise ValueError(f"{folder} is no folder: name one with font sheets")
        files = sorted(path for path in expanded(folder).rglob("*") if path.suffix.lower() in PICTURES)
    for path in (path for path in files if path.is_file()):
        try:
            grid = font.read_font(path).grid
        except ValueError as error:
            yield str(path), f"no font: {error}"
            continue
        size = f"{len(grid.columns)} × {len(grid.rows)} cells of {grid.cell[0]} × {grid.cell[1]} pixels"
        yield str(path), f"{size} ({grid.found})"
