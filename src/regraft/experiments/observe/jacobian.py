"""How linear a function is around a point: differences, exact derivatives, and what is computed from them.

A function maps rows to rows, each row by itself: g(x_RD) -> (R, D). Derivatives are taken of such functions
only, so a toy can be measured as a block is. Shapes: R rows, D width, E step sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity

Function = Callable[[Tensor], Tensor]

STEPS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Steps in shares of the length of a state, two in a power of ten, over which the order of the gap is
fitted."""
STEP = 0.05
"""The step that the published gap is given at."""
RELIABLE = 0.5
"""Share of the variance that the fitted order must explain."""
ROUNDING = 1e-6
"""Gaps up to here are rounding in the float64 that they are taken in, so nothing bends."""


def unit_directions(count: int, width: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Random directions of length 1, (count, D)."""
    drawn = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return (drawn / drawn.norm(dim=1, keepdim=True)).to(like)


def central_difference(g: Function, x_RD: Tensor, delta_RD: Tensor) -> Tensor:
    """(g(x + delta) - g(x - delta)) / 2: the derivative along delta times its length, up to third order in
    the step."""
    ahead, behind = g(torch.cat([x_RD + delta_RD, x_RD - delta_RD])).chunk(2)
    return (ahead - behind) / 2


def exact_derivative(g: Function, x_RD: Tensor, delta_RD: Tensor) -> Tensor:
    """The derivative along delta by forward-mode differentiation, with attention computed by plain matrix
    products.

    Where a layer's own differentiation rule has no forward mode, the same derivative comes from reverse mode
    twice.
    """
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return jvp(g, (x_RD.contiguous(),), (delta_RD.contiguous(),))[1]
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x_RD.detach().clone().requires_grad_()
        u = torch.zeros_like(x, requires_grad=True)
        (pulled,) = torch.autograd.grad(g(x), x, u, create_graph=True)
        return torch.autograd.grad(pulled, u, delta_RD)[0].detach()


PROVED = 1e-9
"""Share of the longest J v by which v J v, from the left and from the right, may differ in float64: they do
by 1e-14, with a lost layer by a percent or so."""
_LOST = "not have been used in the graph"
"""What PyTorch says where no layer's rule for going backward can itself be differentiated."""


def linearized(g: Function, x_RD: Tensor, probe_RD: Tensor) -> tuple[Function, Function, Tensor]:
    """The maps v -> J v and u -> u J at x, for as many directions as one likes, and J `probe`.

    u J is reverse mode; as a function of u it is linear, and its own reverse mode is J v: neither runs the
    function again. A layer that cannot be differentiated twice drops out of that J v without a word, but not
    out of u J, so the two are held together along `probe`; where they differ, forward mode serves every
    direction.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = x_RD.detach().clone().requires_grad_()
        y = g(x)
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)

    def pull(u_RD: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, u_RD, retain_graph=True)[0]

    def push(v_RD: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, u, v_RD, retain_graph=True)[0]

    def pushed_forward(v_RD: Tensor) -> Tensor:
        return exact_derivative(g, x_RD, v_RD)

    try:
        found = push(probe_RD)
    except RuntimeError as error:
        if _LOST not in str(error):
            raise
        return pushed_forward, pull, pushed_forward(probe_RD)
    right_R, left_R = (probe_RD * found).sum(1), (pull(probe_RD) * probe_RD).sum(1)
    if bool(((right_R - left_R).abs() <= PROVED * found.norm(dim=1).max()).all()):
        return push, pull, found
    return pushed_forward, pull, pushed_forward(probe_RD)


def gaps(
    g: Function, x_D: Tensor, directions_RD: Tensor, steps: tuple[float, ...] = STEPS, exact: bool = False
) -> Tensor:
    """Perturbation gap of every step size and direction, (E, R); NaN where the function does not move at all.

    gap = |g(x + d) - g(x) - J d| / |g(x + d) - g(x)| with d of `step` times the length of x. J d is the
    central difference of the same step, or the exact derivative.
    """
    moved_ERD, linear_ERD = differences(g, x_D, directions_RD, steps)
    if exact:
        along_RD = exact_derivative(g, x_D.expand_as(directions_RD), directions_RD)
        linear_ERD = torch.stack([step * x_D.norm() * along_RD for step in steps])
    return missed(moved_ERD, linear_ERD)


def differences(
    g: Function, x_D: Tensor, directions_RD: Tensor, steps: tuple[float, ...] = STEPS
) -> tuple[Tensor, Tensor]:
    """g(x + d) - g(x) and the central difference (g(x + d) - g(x - d)) / 2, each (E, R, D), from one call.

    d is `step` times the length of x along a direction.
    """
    deltas = torch.cat([step * x_D.norm() * directions_RD for step in steps])
    x_RD = x_D.expand_as(deltas)
    with torch.no_grad():
        out = g(torch.cat([x_D[None], x_RD + deltas, x_RD - deltas]))
    here, ahead, behind = out[:1], *out[1:].chunk(2)
    shape = len(steps), len(directions_RD), -1
    return (ahead - here).view(shape), ((ahead - behind) / 2).view(shape)


def missed(moved_ERD: Tensor, linear_ERD: Tensor) -> Tensor:
    """Share of the moves that a linear map misses, (E, R); NaN where nothing moves."""
    return (moved_ERD - linear_ERD).norm(dim=-1) / moved_ERD.norm(dim=-1)


def order(gap_E: np.ndarray, steps: tuple[float, ...] = STEPS) -> tuple[float, float]:
    """Slope + 1 of log gap against log step, and R squared of the line: 2 for a quadratic.

    NaN where there is no bend to follow: a gap of 0, or none above 1e-6, which is rounding.
    """
    gap_E = np.asarray(gap_E, dtype=float)
    if not (np.isfinite(gap_E).all() and (gap_E > 0).all() and gap_E.max() > ROUNDING):
        return float("nan"), float("nan")
    x, y = np.log(np.array(steps)), np.log(gap_E)
    slope, level = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    fit = 1 - ((y - slope * x - level) ** 2).sum() / spread if spread > 0 else float("nan")
    return float(slope + 1), float(fit)


def spectral_norm(g: Function, x_RD: Tensor, generator: torch.Generator, iterations: int = 5) -> Tensor:
    """Largest singular value of the Jacobian at every row, (R,), by power iterations on its square: a bound
    from below."""
    v_RD = unit_directions(len(x_RD), x_RD.shape[1], generator, x_RD)
    push, pull, moved_RD = linearized(g, x_RD, v_RD)
    for _ in range(iterations):
        w_RD = pull(moved_RD)
        size_R1 = w_RD.norm(dim=1, keepdim=True)
        v_RD = torch.where(size_R1 > 0, w_RD / size_R1, v_RD)
        moved_RD = push(v_RD)
    return moved_RD.norm(dim=1)


def consistency(along_NRD: Tensor) -> float:
    """Mean cosine of J(x_i) d and J(x_j) d over pairs of different points i, j and over directions."""
    points = len(along_NRD)
    if points < 2:
        return float("nan")
    cosines = [
        cosine_similarity(along_NRD[i], along_NRD[j], dim=-1).mean() for i in range(points) for j in range(i)
    ]
    return float(torch.stack(cosines).mean())
