"""A small network from a pixel's place to its colour (METHODS.md, section 8), and how it is fitted.

Colour = Σ over blocks of A φ(ψ_x(x) + ψ_y(y)) + b, φ the sine; ψ_x and ψ_y are linear maps of Fourier
features of one coordinate each, so that a whole row or column is computed once. Shapes: H, W pixels, N
places, F Fourier features, U units, C colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.core.randomness import drawing_from

MOST_WORK = 1 << 36
"""Units of all blocks times pixels: some minutes of one core."""
ROWS_AT_ONCE = 1 << 16
"""Pixels that are computed at a time."""
PATCH = 32
"""Pixels across a patch that is drawn where the loss looks at structure."""
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""The window of structural similarity, as it was published."""


@dataclass(frozen=True)
class NetworkSize:
    """Blocks, units of each, and pairs of Fourier features of a coordinate (none: the coordinate alone)."""

    blocks: int = 2
    units: int = 128
    fourier: int = 16

    def check(self) -> None:
        """Make sure that such a network is possible.

        Raises:
            ValueError: it is not.
        """
        for name, value, most in (
            ("--blocks", self.blocks, 64),
            ("--units", self.units, 4096),
            ("--fourier", self.fourier, 512),
        ):
            least = 0 if name == "--fourier" else 1
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} {value} is no number from {least} to {most}")


def check_work(size: NetworkSize, width: int, height: int) -> None:
    """Make sure that a picture can be shown in some minutes.

    Raises:
        ValueError: it cannot.
    """
    features = 1 + 2 * size.fourier
    if size.blocks * size.units * (width * height + features * (width + height)) > MOST_WORK:
        raise ValueError(
            f"{size.blocks} blocks of {size.units} units are too many for {width:,} × {height:,} pixels"
        )


class CoordinateNetwork(nn.Module):
    """The network for pictures with so many colours."""

    def __init__(self, size: NetworkSize, colours: int):
        super().__init__()
        size.check()
        self.size = size
        features = 1 + 2 * size.fourier
        self.across = nn.ModuleList(nn.Linear(features, size.units) for _ in range(size.blocks))
        self.down = nn.ModuleList(nn.Linear(features, size.units, bias=False) for _ in range(size.blocks))
        self.colour = nn.ModuleList(
            nn.Linear(size.units, colours, bias=block == 0) for block in range(size.blocks)
        )
        for block in range(size.blocks):
            for layer in (self.across[block], self.down[block]):
                nn.init.normal_(layer.weight, std=2.0 / math.sqrt(features))  # type: ignore[arg-type]
            nn.init.normal_(self.colour[block].weight, std=0.3 / math.sqrt(size.units))  # type: ignore[arg-type]

    def features(self, coordinate_N: Tensor) -> Tensor:
        """Fourier features (N, F) of coordinates in -1 to 1: periods from twice the picture downwards, evenly
        by octaves up to `fourier` whole waves across it."""
        count = self.size.fourier
        rates = torch.logspace(-1, math.log2(max(count, 1)), count, base=2.0) if count else torch.zeros(0)
        angles = math.pi * coordinate_N[:, None] * rates
        return torch.cat([coordinate_N[:, None], torch.sin(angles), torch.cos(angles)], 1)

    def forward(self, x_N: Tensor, y_N: Tensor) -> Tensor:
        """Colours (N, C) at some places."""
        x_NF, y_NF = self.features(x_N), self.features(y_N)
        parts = [
            colour(torch.sin(across(x_NF) + down(y_NF)))
            for across, down, colour in zip(self.across, self.down, self.colour, strict=True)
        ]
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def picture(self, height: int, width: int) -> Tensor:
        """The whole picture (H, W, C), values from 0 to 1."""
        x_W, y_H = places(width), places(height)
        across = min(width, ROWS_AT_ONCE)
        step = max(1, ROWS_AT_ONCE // across)
        rows = []
        for top in range(0, height, step):
            parts = [
                self._tile(x_W[left : left + across], y_H[top : top + step])
                for left in range(0, width, across)
            ]
            rows.append(torch.cat(parts, 1).clamp(0, 1))
        return torch.cat(rows)

    def _tile(self, x_W: Tensor, y_H: Tensor) -> Tensor:
        """Colours (H, W, C) of a tile."""
        x_WF, y_HF = self.features(x_W), self.features(y_H)
        parts = [
            colour(torch.sin(across(x_WF) + down(y_HF)[:, None]))
            for across, down, colour in zip(self.across, self.down, self.colour, strict=True)
        ]
        return torch.stack(parts).sum(0)


def places(length: int) -> Tensor:
    """The middles of pixels, from -1 to 1."""
    return (2 * torch.arange(length) + 1) / length - 1


def structural_similarity(one_PCHW: Tensor, other_PCHW: Tensor) -> Tensor:
    """Mean structural similarity of patches with values from 0 to 1 (Wang and others, 2004: a Gaussian window
    of eleven pixels)."""
    offsets = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    line = line / line.sum()
    channels = one_PCHW.shape[1]
    window = (line[:, None] * line).expand(channels, 1, -1, -1)

    def mean(values: Tensor) -> Tensor:
        return nn.functional.conv2d(values, window, groups=channels)

    mean_a, mean_b = mean(one_PCHW), mean(other_PCHW)
    var_a, var_b = mean(one_PCHW**2) - mean_a**2, mean(other_PCHW**2) - mean_b**2
    both = mean(one_PCHW * other_PCHW) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    return (
        (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    ).mean()


@dataclass(frozen=True)
class ImagePlan:
    """How a picture is fitted: steps, places of a step, learning rate at the start, share of L1 beside the
    mean square, share of 1 - SSIM beside both, and the seed."""

    steps: int = 2000
    places: int = 8192
    rate: float = 2e-2
    l1: float = 0.1
    ssim: float = 0.0
    seed: int = 0

    def check(self, pixels: tuple[int, int]) -> None:
        """Make sure that a plan is possible.

        Raises:
            ValueError: it is not.
        """
        if self.steps < 1 or self.places < 1:
            raise ValueError("--steps and the places of a step must be 1 or more")
        if not all(map(math.isfinite, (self.ssim, self.l1, self.rate))):
            raise ValueError("--ssim, --l1 and the rate are numbers")
        if self.ssim < 0 or self.l1 < 0 or self.rate <= 0:
            raise ValueError("--ssim and --l1 are no less than 0, the rate more")
        if self.ssim and min(pixels) < PATCH:
            raise ValueError(
                f"--ssim looks at patches of {PATCH} pixels, and the picture is smaller: leave it out"
            )


def fit(
    network: CoordinateNetwork, picture_HWC: Tensor, weight_HW: Tensor | None, plan: ImagePlan
) -> CoordinateNetwork:
    """Fit a network to a picture, in place: each pixel's error counts by its weight (mean 1)."""
    height, width = picture_HWC.shape[:2]
    plan.check((height, width))
    optimizer = torch.optim.Adam(network.parameters(), lr=plan.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.steps, plan.rate / 100)
    generator = torch.Generator().manual_seed(plan.seed)
    x_W, y_H = places(width), places(height)
    for step in range(plan.steps):
        rows = torch.randint(height, (plan.places,), generator=generator)
        columns = torch.randint(width, (plan.places,), generator=generator)
        error = network(x_W[columns], y_H[rows]) - picture_HWC[rows, columns]
        each = error**2 + plan.l1 * error.abs()
        loss = (each.mean(-1) * weight_HW[rows, columns]).mean() if weight_HW is not None else each.mean()
        if plan.ssim:
            # single pixels tell of the rim as of the middle, patches tell of structure
            rows, columns = _patches(height, width, plan, generator)
            shape = (-1, PATCH, PATCH, picture_HWC.shape[2])
            made = network(x_W[columns], y_H[rows]).reshape(shape).movedim(-1, 1)
            meant = picture_HWC[rows, columns].reshape(shape).movedim(-1, 1)
            loss = loss + plan.ssim * (1 - structural_similarity(made, meant))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        advance(f"steps: loss {float(loss.detach()):.4f}", step + 1, plan.steps)
    return network


def _patches(height: int, width: int, plan: ImagePlan, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pixels of a step's patches."""
    count = max(1, plan.places // PATCH**2)
    tops = torch.randint(height - PATCH + 1, (count, 1, 1), generator=generator)
    lefts = torch.randint(width - PATCH + 1, (count, 1, 1), generator=generator)
    inside = torch.arange(PATCH)
    shape = (count, PATCH, PATCH)
    return (
        (tops + inside[:, None]).expand(shape).reshape(-1),
        (lefts + inside).expand(shape).reshape(-1),
    )


def fresh_network(size: NetworkSize, colours: int, seed: int) -> CoordinateNetwork:
    """A network before it is fitted, its numbers drawn from a seed."""
    with drawing_from(seed):
        return CoordinateNetwork(size, colours)
