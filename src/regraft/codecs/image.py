"""`image`: a picture as the quantized weights of a small network fitted to it (METHODS.md, section 8).

Lossy: what comes back is what the network shows. The header keeps sizes and one scale for every tensor of
weights, the blocks keep the weights as bytes under arithmetic coding. Shapes: H, W pixels, C colours.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from regraft.codecs.block_stream import Prepared, UnpackBlock, pack_stream, prepared_blocks, unpack_stream
from regraft.codecs.frame import LARGEST_BLOCK, DamagedFileError, TooLargeError, read_header
from regraft.codecs.image_network import (
    CoordinateNetwork,
    ImagePlan,
    NetworkSize,
    check_work,
    fit,
    fresh_network,
)
from regraft.codecs.pictures import MOST_PIXELS, read_pixels
from regraft.codecs.symbol_code import pack_block, unpack_block
from regraft.core.files import reading

NUMBER = 4
"""Of the codec in the frame."""
BLOCK = 1 << 20
"""Weights of a block."""
BITS = (3, 8)
"""The fewest and the most bits of a weight."""
INSIDE = 4.0
"""How much more the error of a pixel in a region of interest counts."""


@dataclass(frozen=True)
class FittedImage:
    """A picture's size, its network's size and quantized weights with a scale for each tensor."""

    height: int
    width: int
    colours: int
    size: NetworkSize
    bits: int
    scales: tuple[float, ...] = ()
    weights: bytes = field(default=b"", repr=False)

    @property
    def network(self) -> CoordinateNetwork:
        """The network with the weights that are kept."""
        network = fresh_network(self.size, self.colours, 0)
        data = torch.from_numpy(np.frombuffer(self.weights, np.uint8).astype(np.float32)) - 128
        at = 0
        with torch.no_grad():
            for parameter, scale in zip(network.parameters(), self.scales, strict=True):
                part = data[at : at + parameter.numel()]
                parameter.copy_((part * scale).view_as(parameter))
                at += parameter.numel()
        return network

    @property
    def pixels(self) -> np.ndarray:
        """The picture that comes back: (H, W, C) bytes."""
        shown = self.network.picture(self.height, self.width)
        return (shown * 255).round().to(torch.uint8).numpy()


def weight_of(
    pixels: np.ndarray,
    boxes: Sequence[tuple[int, int, int, int]] = (),
    mask: Path | None = None,
    salient: bool = False,
) -> Tensor | None:
    """How much each pixel counts (H, W), 1 on the mean: more inside boxes (left, top, width, height), where a
    mask is white, or where a saliency method (spectral residual) sees more; None where all count alike.

    Raises:
        ValueError: a box lies outside, or a mask has another size.
    """
    height, width = pixels.shape[:2]
    if not boxes and mask is None and not salient:
        return None
    weight = np.ones((height, width))
    for left, top, across, down in boxes:
        if min(left, top) < 0 or min(across, down) < 1 or left + across > width or top + down > height:
            raise ValueError(
                f"--region {left},{top},{across},{down} does not lie in the {width} × {height} pixels"
            )
        weight[top : top + down, left : left + across] = INSIDE
    if mask is not None:
        with reading(mask, "name a picture with --mask"):
            mask.stat()
        shown = read_pixels(mask).mean(-1)
        if shown.shape != (height, width):
            raise ValueError(
                f"the mask has {shown.shape[1]} × {shown.shape[0]} pixels, the picture {width} × {height}"
            )
        weight = np.maximum(weight, 1 + (INSIDE - 1) * shown / 255)
    if salient:
        weight = np.maximum(weight, 1 + (INSIDE - 1) * saliency(pixels))
    return torch.from_numpy(weight / weight.mean()).float()


def saliency(pixels: np.ndarray) -> np.ndarray:
    """Where a picture draws the eye, from 0 to 1 (H, W): OpenCV's spectral residual (Hou and Zhang, 2007)."""
    import cv2

    method: Any = cv2.saliency.StaticSaliencySpectralResidual_create()  # pyright: ignore
    shown = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, ::-1]
    ok, found = method.computeSaliency(np.ascontiguousarray(shown))
    assert ok
    most = float(found.max())
    return found / most if most > 0 else found


def fit_image(
    pixels: np.ndarray,
    size: NetworkSize,
    plan: ImagePlan,
    bits: int = 6,
    weight: Tensor | None = None,
    begin: FittedImage | None = None,
) -> FittedImage:
    """Fit a network to a picture and quantize it, on from `begin` where that is given.

    Raises:
        ValueError: the bits are no number of bits, or what to begin with is of another size.
    """
    if not BITS[0] <= bits <= BITS[1]:
        raise ValueError(f"--bits {bits} is no number from {BITS[0]} to {BITS[1]}")
    height, width, colours = pixels.shape
    check_work(begin.size if begin is not None else size, width, height)
    if begin is not None and begin.colours != colours:
        raise ValueError(f"--begin-with has {begin.colours} colours, and the picture {colours}")
    network = begin.network if begin is not None else fresh_network(size, colours, plan.seed)
    fit(network, torch.from_numpy(pixels.astype(np.float32) / 255), weight, plan)
    whole = FittedImage(height, width, colours, network.size, bits)
    return quantized(network, whole)


def quantized(network: CoordinateNetwork, image: FittedImage) -> FittedImage:
    """A network's weights as whole numbers, a scale for each tensor: the one of some that errs least."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise RuntimeError("the fit did not come to numbers: take fewer --ssim, or another --seed")
    most = 2 ** (image.bits - 1) - 1
    scales, found = [], []
    for parameter in network.parameters():
        values = parameter.detach()
        best = min(
            (_scale(float(values.abs().max()), share, most) for share in np.linspace(0.4, 1.0, 13)),
            key=lambda scale: float(
                ((values / scale).round().clamp(-most, most) * scale - values).square().sum()
            ),
        )
        scales.append(best)
        found.append((values / best).round().clamp(-most, most).flatten() + 128)
    weights = torch.cat(found).to(torch.uint8).numpy().tobytes()
    return replace(image, scales=tuple(scales), weights=weights)


def _scale(largest: float, share: float, most: int) -> float:
    """A scale as the header keeps it: 32 bits."""
    return struct.unpack("<f", struct.pack("<f", max(largest * share / most, 1e-12)))[0]


def shown(image: FittedImage) -> Any:
    """What comes back, as a picture of Pillow's."""
    from PIL import Image

    pixels = image.pixels
    return Image.fromarray(pixels[:, :, 0] if image.colours == 1 else pixels)


def pack_image(image: FittedImage, out: BinaryIO) -> tuple[int, int]:
    """A fitted picture into a packed file; bytes of its weights, and written."""
    told = {"height": image.height, "width": image.width, "colours": image.colours, "bits": image.bits}
    parameters = {**told, "size": asdict(image.size), "scales": list(image.scales)}
    ready = prepared_blocks(pack_block, BLOCK, None, 1)
    whole = Prepared(parameters, ready.pack_block, ready.block_size, 1)
    return pack_stream(io.BytesIO(image.weights), out, NUMBER, whole)


def opened(_parameters: dict[str, Any]) -> UnpackBlock:
    """What unpacks blocks: they need no parameters."""
    return unpack_block


def read_image(source: BinaryIO, max_size: int | None = None) -> FittedImage:
    """A fitted picture from a packed file.

    Raises:
        ValueError: it is none.
        DamagedFileError: it is damaged.
        TooLargeError: its picture takes more than `max_size` bytes.
    """
    number, parameters = read_header(source)
    if number != NUMBER:
        raise ValueError("this is a packed file, but no picture's")
    return image_behind(parameters, source, max_size)


def image_behind(parameters: dict[str, Any], source: BinaryIO, max_size: int | None = None) -> FittedImage:
    """A fitted picture behind a header that was read."""
    image = _told(parameters)
    if max_size is not None and image.height * image.width * image.colours > max_size:
        raise TooLargeError(
            f"it shows {image.width} × {image.height} pixels, more than the {max_size:,} bytes that"
            " --max-size allows: raise it if you trust the file"
        )
    out = io.BytesIO()
    needed = weights_of(image.size, image.colours)
    unpack_stream(source, out, unpack_block, LARGEST_BLOCK, 1, needed)
    if len(out.getvalue()) != needed:
        raise DamagedFileError("the weights do not make up the network: the file is damaged")
    return replace(image, weights=out.getvalue())


def weights_of(size: NetworkSize, colours: int) -> int:
    """How many weights a network of a size has."""
    features = 1 + 2 * size.fourier
    return size.blocks * (2 * features * size.units + size.units + size.units * colours) + colours


def _told(parameters: dict[str, Any]) -> FittedImage:
    try:
        told = {name: parameters[name] for name in ("height", "width", "colours", "bits")}
        size = NetworkSize(**parameters["size"])
        size.check()
        scales = tuple(parameters["scales"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError("its header tells no picture: the file is damaged") from error
    whole = all(type(value) is int and value > 0 for value in told.values())
    real = all(type(scale) is float and math.isfinite(scale) for scale in scales)
    if not whole or not real or told["colours"] not in (1, 3) or len(scales) != 4 * size.blocks + 1:
        raise DamagedFileError("its header tells an impossible picture: the file is damaged")
    if told["height"] * told["width"] > MOST_PIXELS:
        raise DamagedFileError("its header tells too large a picture: the file is damaged")
    try:
        check_work(size, told["width"], told["height"])
    except ValueError as error:
        raise DamagedFileError(f"its header tells too much work ({error}): the file is damaged") from error
    return FittedImage(**told, size=size, scales=scales)
