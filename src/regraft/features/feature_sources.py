"""What a pass over text reads features from: adapters, or what they are held against, random directions and
the neurons of the MLPs themselves.

All are read in the adapted model, adapters in place, and change nothing. Shapes: B sequences, T tokens, N
real tokens, F features, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regraft.core.randomness import drawing_from
from regraft.data.records import PADDING, Records
from regraft.data.windows import Windows
from regraft.model.model import Model
from regraft.model.parts import in_width
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import Transcoders, beside
from regraft.sweeps.live_reads import live_reads, run_heard
from regraft.training.tasks.transcoder_task import inputs_of, split_batch

Of = Literal["adapters", "random", "neurons"]
"""What features are read from, as people name it."""
MATCHED, BATCH = 64, 16
"""Sequences of each text by which random directions are made as frequent as features; those read together."""


@dataclass(frozen=True)
class FeatureSource:
    """Features of every block: how many, their values on a batch, and the direction that each writes.

    `values` is given the arguments of a forward pass and answers with each block's (B, T, F); `columns` is
    given a block and answers (F, D).
    """

    of: Of
    features: int
    blocks: int
    values: Callable[[dict[str, Tensor]], Sequence[Tensor]]
    columns: Callable[[int], Tensor]


def adapter_features(model: Model, graft: Transcoders) -> FeatureSource:
    """The adapters' own features."""

    def values(inputs: dict[str, Tensor]) -> list[Tensor]:
        with beside(model.hf, mlps_of(model), graft), graft.hearing() as heard:
            model.run(**inputs)
        return [own[0][1] for own in heard]

    def columns(block: int) -> Tensor:
        return graft[block].dec.weight.detach().float().T

    return FeatureSource("adapters", graft.shape.features, graft.shape.blocks, values, columns)


def neuron_features(model: Model, graft: Transcoders) -> FeatureSource:
    """The MLPs' neurons, as their last projection is given them; what one writes is that projection's column.

    Raises:
        ValueError: the blocks' MLPs have no neurons that can be read, or not equally many.
    """
    taps = [model.tap(f"{block.address}.mlp_act") for block in model.main_blocks]
    widths = {in_width(tap.module) for tap in taps}
    if len(widths) != 1:
        raise ValueError(f"the blocks' MLPs have {sorted(widths)} neurons: one page needs equally many")
    count = widths.pop()

    def columns(block: int) -> Tensor:
        project = taps[block].module
        with torch.no_grad():
            unit_FF = torch.eye(count, device=model.device, dtype=model.dtype)
            return (project(unit_FF) - project(torch.zeros_like(unit_FF[:1]))).float()

    return FeatureSource("neurons", count, len(taps), _reading(model, graft, "mlp_act"), columns)


def random_features(
    model: Model, graft: Transcoders, texts: Sequence[Windows | Records], seed: int = 0
) -> FeatureSource:
    """Directions drawn at random, as many as the adapters have features, each above zero at as many tokens of
    the first sequences of some texts as the feature in whose place it stands (never, where that never is),
    and writing a random direction as long as its."""
    with drawing_from(seed):
        read = [_like(adapter.enc.weight) for adapter in graft]
        written = [_like(adapter.dec.weight.T) for adapter in graft]
    given, own = _reading(model, graft, "mlp_in"), adapter_features(model, graft)
    floors = _floors(texts, given, own.values, read)

    def values(inputs: dict[str, Tensor]) -> list[Tensor]:
        return [
            torch.relu(x_BTD.float() @ direction_FD.T - floor_F)
            for x_BTD, direction_FD, floor_F in zip(given(inputs), read, floors, strict=True)
        ]

    return FeatureSource("random", own.features, own.blocks, values, lambda block: written[block])


def _reading(model: Model, graft: Transcoders, site: str) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """What a site of every block holds, adapters in place."""
    sites = [f"{block.address}.{site}" for block in model.main_blocks]

    def values(inputs: dict[str, Tensor]) -> list[Tensor]:
        shape = (*inputs["input_ids"].shape, -1)
        with beside(model.hf, mlps_of(model), graft), live_reads(model, sites) as heard:
            run_heard(model, inputs)
        return [heard[one].view(shape) for one in sites]

    return values


def _like(rows_FD: Tensor) -> Tensor:
    """Random rows, each as long as the one in whose place it stands."""
    rows_FD = rows_FD.detach().float()
    drawn_FD = torch.nn.functional.normalize(torch.randn(rows_FD.shape), dim=1).to(rows_FD.device)
    return drawn_FD * rows_FD.norm(dim=1, keepdim=True)


@torch.no_grad()
def _floors(
    texts: Sequence[Windows | Records],
    given: Callable[[dict[str, Tensor]], Sequence[Tensor]],
    features: Callable[[dict[str, Tensor]], Sequence[Tensor]],
    read: Sequence[Tensor],
) -> list[Tensor]:
    """For each direction (F,) the value over which it is as often as the feature in whose place it stands."""
    states: list[list[Tensor]] = [[] for _ in read]
    active: list[Tensor | int] = [0 for _ in read]
    for text in texts:
        for start in range(0, min(MATCHED, len(text)), BATCH):
            rows = range(start, min(start + BATCH, MATCHED, len(text)))
            ids_BT, kind_BT = split_batch(text.rows(rows).to(read[0].device))
            inputs, real_BT = inputs_of(ids_BT, kind_BT), kind_BT > PADDING
            for block, (x_BTD, found_BTF) in enumerate(zip(given(inputs), features(inputs), strict=True)):
                states[block].append(x_BTD[real_BT].float())
                active[block] = active[block] + (found_BTF[real_BT] > 0).sum(0)
    floors = []
    for some, active_F, direction_FD in zip(states, active, read, strict=True):
        assert isinstance(active_F, Tensor)
        falling_NF = (torch.cat(some) @ direction_FD.T).sort(dim=0, descending=True).values
        # behind the last one that is to be above zero
        floor_F = falling_NF.gather(0, active_F.clamp_max(len(falling_NF) - 1)[None])[0]
        floors.append(torch.where(active_F > 0, floor_F, float("inf")))
    return floors
