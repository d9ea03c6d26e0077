"""Transcoder adapters: beside the MLP of every block a sparse map of what the MLP is given to what tuning
added.

`mlp(x) + dec(relu(enc(x)))`, encoder and decoder linear with a bias, the decoder starting at zero, so that
adapters change nothing before they are trained. Features can be switched while the model runs. Shapes: B
sequences, T tokens, D width, F features, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TranscoderShape:
    """Width of the stream, features of each block, blocks, and whether the decoders have a bias."""

    width: int
    features: int
    blocks: int
    dec_bias: bool = True


class Transcoder(nn.Module):
    """The adapter of one block.

    `strength` multiplies all that it adds: 1 on, 0 off. `switched` maps features to ("scale", factor) or
    ("set", value), at every token. `heard`, where it is a list, is given what the encoder says and the
    features of every call; with `cuts`, gradients end at those features, and begin anew behind them.
    """

    def __init__(self, width: int, features: int, dec_bias: bool = True):
        super().__init__()
        self.enc = nn.Linear(width, features)
        self.dec = nn.Linear(features, width, bias=dec_bias)
        bound = 1 / math.sqrt(width)
        nn.init.uniform_(self.enc.weight, -bound, bound)
        nn.init.uniform_(self.enc.bias, -bound, bound)
        for parameter in self.dec.parameters():
            nn.init.zeros_(parameter)
        self.strength = 1.0
        self.switched: dict[int, tuple[str, float]] = {}
        self.heard: list[tuple[Tensor, Tensor]] | None = None
        self.cuts = False

    def features(self, before_BTF: Tensor) -> Tensor:
        """The features (B, T, F) of what the encoder says, as they are switched."""
        found_BTF = torch.relu(before_BTF)
        if not self.switched:
            return found_BTF
        found_BTF = found_BTF.clone()
        for feature, (how, value) in self.switched.items():
            found_BTF[..., feature] = found_BTF[..., feature] * value if how == "scale" else value
        return found_BTF

    def forward(self, x_BTD: Tensor) -> Tensor:
        """What is added to the MLP's output, (B, T, D): computed in the adapter's own type, given in the
        MLP's."""
        if self.strength == 0.0 and self.heard is None:
            return torch.zeros_like(x_BTD)
        before_BTF = self.enc(x_BTD.to(self.enc.weight.dtype))
        found_BTF = self.features(before_BTF)
        if self.cuts:
            found_BTF = found_BTF.detach().requires_grad_(True)
        if self.heard is not None:
            self.heard.append((before_BTF, found_BTF))
        added_BTD = self.dec(found_BTF).to(x_BTD.dtype)
        return added_BTD if self.strength == 1.0 else self.strength * added_BTD


class AdaptedMLP(nn.Module):
    """An MLP with its adapter beside it, in the MLP's place."""

    def __init__(self, mlp: nn.Module, adapter: Transcoder):
        super().__init__()
        self.mlp, self.adapter = mlp, adapter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the MLP returns, with what the adapter adds to its first tensor."""
        outcome = self.mlp(*args, **kwargs)
        given = args[0] if args else next(iter(kwargs.values()))
        added = self.adapter(given)
        return (outcome[0] + added, *outcome[1:]) if isinstance(outcome, tuple) else outcome + added


class Transcoders(nn.Module):
    """The adapters of all blocks: one graft.

    `silent_LF` counts the training batches since each feature was last above zero, `batches` all of them.
    """

    silent_LF: Tensor
    batches: Tensor

    def __init__(self, shape: TranscoderShape):
        super().__init__()
        self.shape = shape
        self.adapters = nn.ModuleList(
            Transcoder(shape.width, shape.features, shape.dec_bias) for _ in range(shape.blocks)
        )
        self.register_buffer("silent_LF", torch.zeros(shape.blocks, shape.features, dtype=torch.int32))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def __iter__(self) -> Iterator[Transcoder]:
        for adapter in self.adapters:
            assert isinstance(adapter, Transcoder)
            yield adapter

    def __getitem__(self, block: int) -> Transcoder:
        found = self.adapters[block]
        assert isinstance(found, Transcoder)
        return found

    def check_feature(self, block: int, feature: int) -> None:
        """Make sure that there is such a feature.

        Raises:
            ValueError: there is not.
        """
        if not 0 <= block < self.shape.blocks:
            raise ValueError(
                f"there is no block {block}: the adapters have blocks 0 to {self.shape.blocks - 1}"
            )
        if not 0 <= feature < self.shape.features:
            raise ValueError(
                f"there is no feature {block}.feature.{feature}: a block has features 0 to"
                f" {self.shape.features - 1}"
            )

    @contextmanager
    def switch(
        self,
        strength: float | None = None,
        scaled: Mapping[tuple[int, int], float] | None = None,
        clamped: Mapping[tuple[int, int], float] | None = None,
    ) -> Iterator[None]:
        """While inside, the adapters run otherwise, whoever runs the model.

        Args:
            strength: of all adapters: 0 is off, 1 as trained.
            scaled: factors of single features by (block, feature); 0 ablates one.
            clamped: values of single features by (block, feature), at every token.

        Raises:
            ValueError: a feature that does not exist, or one that is both scaled and clamped.
        """
        scaled, clamped = scaled or {}, clamped or {}
        both = set(scaled) & set(clamped)
        if both:
            raise ValueError(f"feature {min(both)} is to be scaled and clamped: choose one")
        for block, feature in (*scaled, *clamped):
            self.check_feature(block, feature)
        before = [(adapter.strength, dict(adapter.switched)) for adapter in self]
        try:
            for adapter in self:
                adapter.strength = adapter.strength if strength is None else strength
            for kind, chosen in (("scale", scaled), ("set", clamped)):
                for (block, feature), value in chosen.items():
                    self[block].switched[feature] = (kind, value)
            yield
        finally:
            for adapter, (was, switched) in zip(self, before, strict=True):
                adapter.strength, adapter.switched = was, switched

    @contextmanager
    def hearing(self, cuts: bool = False) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
        """While inside, every run leaves what each block's encoder says, and its features, both (B, T, F), in
        the block's list; with `cuts` features are where gradients end and begin."""
        heard: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.adapters]
        before = [(adapter.heard, adapter.cuts) for adapter in self]
        try:
            for adapter, own in zip(self, heard, strict=True):
                adapter.heard, adapter.cuts = own, cuts
            yield heard
        finally:
            for adapter, (was, cut) in zip(self, before, strict=True):
                adapter.heard, adapter.cuts = was, cut


@contextmanager
def beside(root: nn.Module, mlps: Sequence[nn.Module], graft: Transcoders) -> Iterator[None]:
    """While inside, every MLP of a model has its adapter beside it.

    Raises:
        ValueError: there are not as many as the graft has blocks, or the model does not hold one.
    """
    if len(mlps) != graft.shape.blocks:
        raise ValueError(f"the adapters are for {graft.shape.blocks} blocks, and this model has {len(mlps)}")
    wanted = {id(mlp): adapter for mlp, adapter in zip(mlps, graft, strict=True)}
    places = [
        (parent, name, child)
        for parent in root.modules()
        for name, child in parent._modules.items()
        if id(child) in wanted and child is not None
    ]
    if len(places) < len(mlps):
        raise ValueError("this model does not hold all of these MLPs")
    try:
        for parent, name, child in places:
            setattr(parent, name, AdaptedMLP(child, wanted[id(child)]))
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)
