"""A tuned lens: one affine map for each depth, from the stream there to the stream at the end.

Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2023). Shapes: L
depths before the last, N positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KIND = "tuned lens"


class TunedLens(nn.Module):
    """h + A_l h + b_l for each depth l before the last; fresh, it changes nothing and the lens is the plain
    one."""

    def __init__(self, depths: int, width: int):
        super().__init__()
        self.depths, self.width = depths, width
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in range(depths))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()

    def forward(self, depth: int, resid_ND: Tensor) -> Tensor:
        """The stream (..., D) at a depth as it would be at the end; at the last depth it is there."""
        if depth == self.depths:
            return resid_ND
        own = next(self.parameters()).dtype
        return resid_ND + self.maps[depth](resid_ND.to(own)).to(resid_ND.dtype)
