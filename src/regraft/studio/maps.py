"""Maps of parts at one token: what every head puts out, which neurons are strongest, which features of
adapters are active.

Shapes: L blocks, H heads, K neurons that are shown, W width of a head, F neurons or features of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from regraft.model.recording import Recording
from regraft.model.sites import SiteError
from regraft.modules.transcoder import Transcoders
from regraft.studio.limits import RefusedError

STRONGEST = 12
"""Neurons and features of a block that are shown."""


@dataclass(frozen=True)
class PartMap:
    """Numbers of parts by block: `sites[row][column]` is what a click touches, "" where there is nothing."""

    unit: str
    rows: list[str]
    values: np.ndarray
    sites: list[list[str]]
    words: list[list[str]]


def head_map(clean: Recording, position: int) -> PartMap:
    """How long the vector is that each head puts out at a token, (L, H).

    Raises:
        RefusedError: no block has heads that can be told apart.
    """
    found: list[tuple[str, list[float]]] = []
    for block in clean.model.main_blocks:
        try:
            z_HW = clean[f"{block.address}.z"][0, position]
        except SiteError:
            continue
        found.append((block.address, z_HW.float().norm(dim=-1).tolist() if z_HW.dim() == 2 else []))
    if not any(values for _, values in found):
        raise RefusedError(f"{clean.model.name} has no heads that can be told apart")
    wide = max(len(values) for _, values in found)
    values = np.array([[*row, *[np.nan] * (wide - len(row))] for _, row in found])
    sites = [[f"{block}.head.{n}" if n < len(row) else "" for n in range(wide)] for block, row in found]
    words = [[str(n) if site else "" for n, site in enumerate(row)] for row in sites]
    return PartMap("length of the head's output", [f"block {b}" for b, _ in found], values, sites, words)


def neuron_map(clean: Recording, position: int) -> PartMap:
    """The neurons of each block whose activation is largest at a token, by size, (L, K).

    Raises:
        RefusedError: no block has neurons that can be read.
    """
    rows, values, sites = [], [], []
    for block in clean.model.main_blocks:
        try:
            act_F = clean[f"{block.address}.mlp_act"][0, position].float().flatten()
        except SiteError:
            continue
        top = act_F.abs().topk(min(STRONGEST, len(act_F))).indices.tolist()
        rows.append(f"block {block.address}")
        values.append([float(act_F[n]) for n in top])
        sites.append([f"{block.address}.neuron.{n}" for n in top])
    if not rows:
        raise RefusedError(f"{clean.model.name} has no neurons that can be read")
    words = [[site.rpartition(".")[2] for site in row] for row in sites]
    return PartMap("activation", rows, np.array(values), sites, words)


@torch.no_grad()
def feature_map(clean: Recording, adapters: Transcoders, position: int) -> PartMap:
    """The features of each block's adapter that are most active at a token, (L, K)."""
    with adapters.hearing() as heard:
        clean.model.run(**clean.inputs)
    values, sites = [], []
    for block, runs in enumerate(heard):
        act_F = runs[-1][1][0, position].float()
        top = act_F.topk(min(STRONGEST, len(act_F)))
        values.append(top.values.tolist())
        sites.append([f"{block}.feature.{n}" for n in top.indices.tolist()])
    words = [[site.rpartition(".")[2] for site in row] for row in sites]
    return PartMap("activation", [f"block {n}" for n in range(len(values))], np.array(values), sites, words)
