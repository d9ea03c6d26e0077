"""A graft's error as an amount of noise: how much Gaussian noise on the true rows of a token table would move
predictions as far.

Shapes: B sequences, T tokens, D width, V vocabulary, S scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.quantities import quantity
from regraft.core.randomness import drawing_from
from regraft.model.model import Model
from regraft.modules.placement import Swaps, all_placed

SCALES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Sizes of the noise, in root mean squares of the table's values: a hundredth is hardly seen, and at one
the noise is as large as what it falls on."""
SOURCE = "planned in embedding-transplant studies (deformers); carried out here"


class NoisyRows(nn.Module):
    """The vectors of a token embedding, each with Gaussian noise of its own."""

    def __init__(self, embedding: nn.Module, noise_VD: Tensor):
        super().__init__()
        self.embedding, self.noise_VD = embedding, noise_VD

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of ids."""
        vectors = self.embedding(ids)
        return vectors + self.noise_VD[ids].to(vectors.dtype)


def noise_quantities(
    model: Model, swaps: Swaps, divergence: Callable[[], float], seed: int = 0
) -> dict[str, Any]:
    """Divergence under noise of each scale, and the scale at which it equals the graft's; nothing where no
    token embedding is among the parts that are exchanged.

    Args:
        swaps: each part of the model with the graft that takes its place.
        divergence: nats per token between the model as it was and as it is when called, on some text.
        seed: of the noise; the same draw at every scale, so that more noise is more of the same.
    """
    embedding = model.parts.embedding
    if not any(old is embedding for old, _ in swaps):
        return {}
    with torch.no_grad():
        rows_VD = embedding(torch.arange(model.table_rows, device=model.device)).float()
        size = float(rows_VD.square().mean().sqrt())
        with drawing_from(seed):
            noise_VD = size * torch.randn(rows_VD.shape).to(rows_VD.device)
        found = []
        for scale in SCALES:
            with all_placed(model.hf, [(embedding, NoisyRows(embedding, scale * noise_VD))]):
                found.append(divergence())
        with all_placed(model.hf, swaps):
            own = divergence()
    return {
        "noise_kl": quantity(
            "scale", found, "nats per token from the model as it was, with noise on its own rows",
            "The ladder that the graft is held against: Gaussian noise of a share of the table's root mean"
            " square.", SOURCE,
        ),
        "equivalent_noise": quantity(
            (), equal_scale(own, found), "of the root mean square of the table's values",
            "The graft moves predictions as far as noise of this size on every row; not a number where it"
            f" moves them less than {SCALES[0]:.0%} or more than {SCALES[-1]:.0%} of noise does.", SOURCE,
        ),
    }  # fmt: skip


def equal_scale(own: float, found: list[float]) -> float:
    """The scale at which noise diverges as far, between two scales by a straight line in logarithms; NaN
    outside of them."""
    curve = np.maximum.accumulate(np.array(found))
    if not (own > 0 and curve[0] > 0 and curve[0] <= own <= curve[-1]):
        return float("nan")
    return float(np.exp(np.interp(np.log(own), np.log(curve), np.log(SCALES))))
