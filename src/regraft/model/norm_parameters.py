"""What a norm does, measured on the module itself, so that another kind of norm can take its place.

Shapes: D width of the stream.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.core.tolerance import gap

SHIFT = 3.0
"""Added to all inputs of a norm: a norm that takes the mean away does not notice, whatever its size."""
SAME = 1e-2
"""A shift of an input of size 1 by 3 changes an RMSNorm's answer by its own size."""
LARGE, SMALL = 1e4, 1e-3
"""An input beside which eps is nothing, and one whose square is as small as the eps of most norms."""
NORM_AGREES = 1e-4
"""How near our formula must come to the module: a thousand times the rounding of float32."""


@dataclass(frozen=True)
class Gains:
    """A norm's factors, offsets and eps as it applies them, whatever it stores (a factor less one, a name of
    its own)."""

    factor_D: Tensor
    offset_D: Tensor
    eps: float


@torch.no_grad()
def gains_of(norm: nn.Module, width: int) -> Gains:
    """What a norm multiplies by, adds, and keeps from dividing by zero: measured on inputs for which the
    answer tells.

    Behind it stands out = factor x / sqrt(mean(x^2) + eps) + offset, for an x whose mean is zero.

    Raises:
        ValueError: the norm is none of this form.
    """
    plain = copy.deepcopy(norm).float()
    at = next(plain.parameters()).device
    x_D = _zero_mean(width).to(at)
    offset_D = plain(torch.zeros(1, 1, width, device=at))[0, 0]
    factor_D = (plain(LARGE * x_D[None, None])[0, 0] - offset_D) / x_D
    share = float(
        ((plain(SMALL * x_D[None, None])[0, 0] - offset_D) * x_D * factor_D).sum()
        / (x_D * factor_D).pow(2).sum()
    )
    gains = Gains(factor_D, offset_D, max(0.0, SMALL**2 * (1 / share**2 - 1)))
    probe_D = x_D.roll(1) * torch.linspace(0.5, 1.5, width, device=at)
    probe_D = probe_D - probe_D.mean()
    if not gap(rms_norm(probe_D, gains), plain(probe_D[None, None])[0, 0]) <= NORM_AGREES:
        raise ValueError(
            f"a {type(norm).__name__} is no norm of a known form, so there is no other norm to put in its"
            " place"
        )
    return gains


def _zero_mean(width: int) -> Tensor:
    """A vector of mean 0 and root mean square 1 without a zero in it."""
    x = torch.ones(width)
    x[1::2] = -1
    if width % 2:
        x[-3:] = torch.tensor([1.0, 1.0, -2.0]) if width > 3 else torch.tensor([1.0, 1.0, -2.0])[-width:]
    return x / x.pow(2).mean().sqrt()


def rms_norm(x: Tensor, gains: Gains) -> Tensor:
    """An RMSNorm with the given factors, offsets and eps, computed in at least float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + gains.eps)
    return (scaled * gains.factor_D + gains.offset_D).to(x.dtype)


def takes_mean_away(norm: nn.Module, width: int) -> bool:
    """Whether a norm gives the same for an input and the input shifted by a constant: measured."""
    with torch.no_grad():
        weight = next(norm.parameters())
        x = torch.linspace(-1, 1, width, device=weight.device, dtype=weight.dtype).roll(1)[None, None]
        return gap(norm(x + SHIFT), norm(x)) <= SAME
