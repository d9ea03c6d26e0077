"""Edits whose effect on a block's output is linear: the recorded output is corrected and the block is not
run.

Zeroing a neuron takes one column of the down projection times its activation out of what the MLP added;
nothing else in the block reads it. The same holds for a head where attention and MLP read the stream side by
side. The projection must be proved to be its matrix. Shapes: n rows, B prompts, T positions, D width, W its
inputs, w features of the edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from regraft.core.structure import largest_difference
from regraft.core.tolerance import rounding
from regraft.model.model import Model
from regraft.model.parts import Block, close, has_matrix, in_width, matrix_OI
from regraft.model.recording import Recording
from regraft.model.sites import Tap, addition
from regraft.sweeps.batch_layout import BRANCH_OF
from regraft.sweeps.edits import Carried, Placed, apply_edits
from regraft.sweeps.variants import Edit


def linear_branches(block: Block) -> frozenset[str]:
    """The branches that nothing in the block reads: the last one, or all of them where they stand side by
    side."""
    kinds = [branch.kind for branch in block.branches]
    return frozenset(kinds if block.parallel else kinds[-1:])


def proved_columns(recording: Recording, block: int, kind: str) -> bool:
    """Whether what a change in front of a branch's projection adds behind it is the change times the module's
    matrix.

    Asked of the module itself, at the recording's own input: along a random direction and along the one that
    zeroes all of it. Codes in place of a matrix, a hook, a forward of another kind: there the block is run
    instead.
    """
    key = f"{block} columns of {kind}"
    if key not in recording.proved:
        branch = recording.model.blocks[block].branch(kind)
        assert branch is not None
        recording.proved[key] = branch.projection is not None and _adds_columns(
            recording, block, branch.projection
        )
    return recording.proved[key]


@torch.no_grad()
def _adds_columns(recording: Recording, block: int, projection: nn.Module) -> bool:
    clean_BTW = recording.read(block, Tap(projection, "input"))
    if not has_matrix(projection):
        return False
    matrix = matrix_OI(projection)
    noise = torch.randn(clean_BTW.shape, generator=torch.Generator().manual_seed(block)).to(clean_BTW)
    bound = rounding(matrix.dtype, 1, matrix.shape[1])
    with recording.model.held():
        out_BTD = projection(clean_BTW)
        for change_BTW in (noise * clean_BTW.pow(2).mean().sqrt(), -clean_BTW):
            there_BTD, wanted_BTD = projection(clean_BTW + change_BTW), out_BTD + change_BTW @ matrix.t()
            largest = max(float(t.abs().max()) for t in (out_BTD, there_BTD, wanted_BTD))
            if not largest_difference(there_BTD, wanted_BTD) <= bound * largest:
                return False
    return True


class CleanBlocks:
    """What recorded blocks made of their stream, each from running it once more: the block corrected last is
    kept.

    `runs` counts that work in rows x prompts x positions through one block.
    """

    def __init__(self, recording: Recording):
        self.recording, self.runs = recording, 0
        self._block, self._found = -1, {}
        self._matrices: dict[str, Tensor] = {}

    def of(self, block: int) -> dict[str, Tensor]:
        """By branch: `attn_out`, what it adds; `attn_in`, what its projection is given; `attn_raw`, in front
        of its norm."""
        if block != self._block:
            taps: dict[str, Tap] = {}
            for branch in self.recording.model.blocks[block].branches:
                taps[f"{branch.kind}_out"] = addition(branch)
                if branch.projection is not None:
                    taps[f"{branch.kind}_in"] = Tap(branch.projection, "input")
                if branch.out_norm is not None:
                    taps[f"{branch.kind}_raw"] = Tap(branch.module, "output")
            self._block, self._found = block, self.recording.read_all(block, taps)
            # Held, since a block that is streamed may be gone before all rows were corrected.
            self._matrices = {
                branch.kind: matrix_OI(branch.projection).detach()
                for branch in self.recording.model.blocks[block].branches
                if branch.projection is not None and has_matrix(branch.projection)
            }
            self.runs += self.recording.prompts * self.recording.positions_of(block)
        return self._found

    def matrix(self, kind: str) -> Tensor:
        """The matrix (outputs, inputs) of a branch's projection in the block that was asked for last."""
        return self._matrices[kind]


def corrected_stream(clean: CleanBlocks, block: int, edits: Sequence[Sequence[Edit]]) -> Tensor:
    """The stream (n, B, T, D) that leaves a block for n rows, each with edits of one branch of that block."""
    recording = clean.recording
    model = recording.model
    part = model.blocks[block]
    name = model.site(edits[0][0].site).name
    branch = part.branch(BRANCH_OF[name])
    assert branch is not None
    carried = Carried(0, recording.positions_of(block), recording.lengths_of(block))
    found = clean.of(block)
    clean_out = found[f"{branch.kind}_out"]
    if name.endswith("_out"):
        placed = [Placed(row, edit) for row, own in enumerate(edits) for edit in own]
        outs = apply_edits(clean_out.expand(len(edits), *clean_out.shape), placed, carried)
    else:
        matrix = clean.matrix(branch.kind)
        delta = _projected_change(model, found[f"{branch.kind}_in"], matrix, edits, carried)
        if branch.out_norm is None:
            outs = clean_out + branch.factor * delta
        else:
            outs = branch.factor * branch.out_norm(found[f"{branch.kind}_raw"] + delta)
    if not part.sum_norms:
        return recording.post(block) + (outs - clean_out)
    return torch.stack([_closed(recording, part, {**found, f"{branch.kind}_out": out}) for out in outs])


def _closed(recording: Recording, part: Block, found: Mapping[str, Tensor]) -> Tensor:
    pre = recording.pre(part.index)
    stream = close(part.branches, pre, [found[f"{b.kind}_out"] for b in part.branches], pre.shape)
    assert stream is not None
    return stream


def _projected_change(
    model: Model, clean_BTW: Tensor, matrix_DW: Tensor, edits: Sequence[Sequence[Edit]], carried: Carried
) -> Tensor:
    """What the edits change in the projection's output, (n, B, T, D), from the changed features' columns
    alone.

    Rows that change as many features go together.
    """
    features = [_features(model, own) for own in edits]
    groups: dict[int, list[int]] = {}
    for row, own in enumerate(features):
        groups.setdefault(len(own), []).append(row)
    changes: list[Tensor] = [clean_BTW] * len(edits)
    for rows in groups.values():
        some = _alike(model, clean_BTW, matrix_DW, [(edits[row], features[row]) for row in rows], carried)
        for row, change_BTD in zip(rows, some, strict=True):
            changes[row] = change_BTD
    return torch.stack(changes)


def _alike(
    model: Model,
    clean_BTW: Tensor,
    matrix_DW: Tensor,
    rows: Sequence[tuple[Sequence[Edit], Tensor]],
    carried: Carried,
) -> Tensor:
    """The same for rows that change equally many features."""
    index_nw = torch.stack([features for _, features in rows]).to(clean_BTW.device)
    old_nBTw = clean_BTW[..., index_nw].permute(2, 0, 1, 3)
    placed = []
    for row, (own, _) in enumerate(rows):
        place = {int(f): i for i, f in enumerate(index_nw[row])}
        for edit in own:
            tap = model.taps[model.site(edit.site)]
            local = None if tap.features is None else torch.tensor([place[int(f)] for f in tap.features])
            placed.append(Placed(row, edit, local))
    change_nBTw = apply_edits(old_nBTw, placed, carried) - old_nBTw
    columns_nwD = matrix_DW.t()[index_nw]
    return torch.einsum("nbtw,nwd->nbtd", change_nBTw, columns_nwD)


def _features(model: Model, own: Sequence[Edit]) -> Tensor:
    """The features that a row's edits touch, in order; all of them where one edit has none of its own."""
    taps = [model.taps[model.site(edit.site)] for edit in own]
    if any(tap.features is None for tap in taps):
        return torch.arange(in_width(taps[0].module))
    return torch.unique(torch.cat([tap.features for tap in taps if tap.features is not None]))
