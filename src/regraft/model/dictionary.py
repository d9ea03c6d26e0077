"""A dictionary of features on an activation: a sparse autoencoder, or a transcoder of an MLP.

Attached to a block it is a site of its own there: `5.sae` are all its features, `5.sae.317` is one. Shapes:
D width of what is read, E width of what is written, F features, any number of positions in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SITE = "sae"
Kind = Literal["standard", "jumprelu", "topk", "gated"]
Scaled = Literal["none", "constant_norm_rescale", "layer_norm"]


@dataclass(eq=False)
class Dictionary:
    """Weights of a dictionary and how features are computed from them.

    `reads` and `writes` name what a block's features are computed from and what they stand for: one and the
    same site of an autoencoder, `mlp_in` and `mlp_out` of a transcoder.
    """

    kind: Kind
    reads: str
    writes: str
    encoder_DF: Tensor
    encoder_bias_F: Tensor
    decoder_FE: Tensor
    decoder_bias_E: Tensor
    threshold_F: Tensor | None = None
    most: int = 0
    by_decoder_norm: bool = False
    magnitude_F: Tensor | None = None
    magnitude_bias_F: Tensor | None = None
    skip_ED: Tensor | None = None
    subtracts_bias: bool = False
    scaled: Scaled = "none"
    centred: bool = False
    source: str = ""

    @property
    def features(self) -> int:
        """How many features there are."""
        return self.encoder_DF.shape[1]

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes elsewhere than it reads."""
        return self.reads != self.writes

    def encode(self, x_D: Tensor, index: int | None = None) -> Tensor:
        """Features (..., F), or of one feature (..., 1), of an activation (..., D)."""
        given = self._seen(x_D.float())
        one = slice(None) if index is None or self.kind == "topk" else slice(index, index + 1)
        found = self._activated(given, one)
        return found if index is None or self.kind != "topk" else found[..., index : index + 1]

    def _activated(self, x_D: Tensor, one: slice) -> Tensor:
        before_F = x_D @ self.encoder_DF[:, one] + self.encoder_bias_F[one]
        if self.by_decoder_norm:
            before_F = before_F * self.decoder_FE[one].norm(dim=1)
        if self.kind == "jumprelu":
            assert self.threshold_F is not None
            return before_F.relu() * (before_F > self.threshold_F[one])
        if self.kind == "topk":
            top = before_F.topk(self.most, dim=-1)
            return torch.zeros_like(before_F).scatter(-1, top.indices, top.values.relu())
        if self.kind == "gated":
            assert self.magnitude_F is not None
            assert self.magnitude_bias_F is not None
            size_F = (
                x_D @ (self.encoder_DF[:, one] * self.magnitude_F[one].exp()) + self.magnitude_bias_F[one]
            )
            return size_F.relu() * (before_F > 0)
        return before_F.relu()

    def _seen(self, x_D: Tensor) -> Tensor:
        """What the encoder is given for an activation."""
        if self.centred:
            x_D = x_D - x_D.mean(-1, keepdim=True)
        if self.scaled == "layer_norm":
            x_D = x_D - x_D.mean(-1, keepdim=True)
        x_D = x_D / (self._unit(x_D) + (1e-5 if self.scaled == "layer_norm" else 0.0))
        return x_D - self.decoder_bias_E if self.subtracts_bias else x_D

    def _unit(self, x_D: Tensor) -> Tensor:
        """What one of the dictionary's units is in the activation's own, at each position, (..., 1)."""
        if self.scaled == "constant_norm_rescale":
            return x_D.norm(dim=-1, keepdim=True) / x_D.shape[-1] ** 0.5
        if self.scaled == "layer_norm":
            return x_D.std(-1, keepdim=True)
        return torch.ones_like(x_D[..., :1])

    def write(self, features_F: Tensor, x_D: Tensor, index: int | None = None) -> Tensor:
        """What features, or a change of them, add to the activation that is written, (..., E), at positions
        that read x."""
        rows = self.decoder_FE if index is None else self.decoder_FE[index : index + 1]
        if self.by_decoder_norm:
            rows = rows / rows.norm(dim=1, keepdim=True)
        return features_F @ rows * self._unit(x_D.float())

    def reconstruct(self, x_D: Tensor) -> Tensor:
        """What the dictionary makes of an activation, (..., E), its bias included."""
        x_D = x_D.float()
        unit = self._unit(x_D)
        made = self.write(self.encode(x_D), x_D) + self.decoder_bias_E * unit
        if self.scaled == "layer_norm" or self.centred:
            made = made + (x_D.mean(-1, keepdim=True) if not self.is_transcoder else 0.0)
        return made if self.skip_ED is None else made + x_D @ self.skip_ED.T

    def to(self, device: torch.device) -> Dictionary:
        """The same with its weights on a device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self
