"""The cells of a patch grid: which edit each is, and what attribution estimates for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from regraft.model.model import Model
from regraft.model.parts import Block, in_width
from regraft.model.recording import Recording
from regraft.model.sites import SiteError, parse_site
from regraft.sweeps.gradients import gradients
from regraft.sweeps.metric_kinds import LogitDifference
from regraft.sweeps.variants import Replace, Variant

STREAM = "resid_pre"
"""The site that is patched where none is named."""
FIXED = {"head": "z", "neuron": "mlp_act"}
"""Grids whose columns are parts of one site, and that site."""
WHOLE = ("block", "last")
"""Grids with one cell for each block: all positions, or the one at which the answer is read."""


class PatchGrid:
    """The cells of a grid: which blocks are rows, which addresses a cell patches, and what stands in a
    column."""

    def __init__(self, model: Model, grid: str, site: str, window: int, block: int):
        if grid in FIXED and site not in (STREAM, FIXED[grid]):
            raise ValueError(
                f"the {grid} grid patches {FIXED[grid]}, part by part, not {site}: leave site out"
            )
        self.model, self.grid, self.window = model, grid, window
        self.site = FIXED.get(grid, site)
        blocks = stack_blocks(model)
        self.rows: list[Block] = list(blocks)
        self.cells: list[tuple[int, int]] = []
        if grid == "neuron":
            if not -len(blocks) <= block < len(blocks):
                raise ValueError(
                    f"there is no block {block}: there are {len(blocks)} blocks, 0 to {len(blocks) - 1}"
                )
            self.rows = [blocks[block]]
            model.tap(f"{blocks[block].address}.mlp_act")
        elif grid not in ("position", "block", "last", *FIXED):
            raise ValueError(f"grid {grid!r} is not known: choose position, head, block, last or neuron")
        self.addresses = [_address(model, row, self.site) for row in self.rows]
        if grid == "head" and not any(a and model.tap(a).heads for a in self.addresses):
            raise SiteError(
                "the number of heads is not told by this model's blocks, so there is no head grid"
            )
        if not any(self.addresses):
            model.site(f"{blocks[0].address}.{self.site}")

    def variants(self, source: Recording, places: list[tuple[int, int]]) -> tuple[list[Variant], list[Any]]:
        """One variant for each cell, in the order of `cells`, and the names of the columns."""
        froms, here = [a for a, _ in places], [b for _, b in places]
        value = {address: source[address].flatten(2)[0] for address in self.addresses if address}
        parts = [self.parts_of(address) for address in self.addresses]
        counts = {"position": len(places), "block": 1, "last": 1}.get(self.grid, max(parts))
        named: dict[str, list[Any]] = {"position": here, "block": ["all"], "last": ["last"]}
        columns = named.get(self.grid, list(range(counts)))
        self.cells = [
            (row, column)
            for row, address in enumerate(self.addresses)
            if address
            for column in range(counts if self.grid in ("position", *WHOLE) else parts[row])
        ]
        return [Variant(self._edits(row, column, value, froms, here)) for row, column in self.cells], columns

    def parts_of(self, address: str) -> int:
        """Number of heads, or of neurons, in the activation at an address."""
        if not address:
            return 0
        tap = self.model.tap(address)
        return tap.heads if self.grid == "head" else in_width(tap.module) if self.grid == "neuron" else 0

    def _edits(
        self, row: int, column: int, value: dict[str, Tensor], froms: list[int], here: list[int]
    ) -> list[Replace]:
        """The edits of one cell: the activation of its block, or of as many blocks from there on as the
        window is wide."""
        edits = []
        for address in self.addresses[row : row + self.window]:
            if not address or (self.grid in ("head", "neuron") and column >= self.parts_of(address)):
                continue
            whole = value[address]
            if self.grid == "position":
                edits.append(Replace(address, whole[froms[column]], position=here[column]))
            elif self.grid in WHOLE:
                edits.append(Replace(address, whole[froms], position=here))
            else:
                part = whole.unflatten(-1, (self.parts_of(address), -1))[froms, column]
                name = f"{address.rpartition('.')[0]}.{self.grid}.{column}"
                edits.append(Replace(name, part, position=here))
        return edits

    def attributed(
        self,
        source: Recording,
        target: Recording,
        places: list[tuple[int, int]],
        tokens: tuple[int, int],
        read: int | None,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        """Attribution patching: difference times gradient for every cell, in logits; what the patch would do,
        to first order, from one backward pass (Nanda, 2023; Kramar et al., "AtP*", 2024). NaN where a block
        does not have the site."""
        estimate = np.full(shape, np.nan)
        chosen = [address for address in self.addresses if address]
        difference_of_logits = LogitDifference("difference", "logits", True, read, tokens)
        found = gradients(target, difference_of_logits, chosen)
        slope = {address: gradient.flatten(2)[0] for address, gradient in found.items()}
        froms, here = [a for a, _ in places], [b for _, b in places]
        single = np.zeros(shape)
        for row, address in enumerate(self.addresses):
            if not address:
                single[row] = np.nan
                continue
            difference = source[address].flatten(2)[0, froms] - target[address].flatten(2)[0, here]
            product = (difference * slope[address][here]).double()
            if self.grid == "position":
                single[row] = product.sum(-1).cpu().numpy()
            elif self.grid in WHOLE:
                single[row] = float(product.sum())
            else:
                split = product.unflatten(-1, (self.parts_of(address), -1)).sum((0, 2)).cpu().numpy()
                single[row, : len(split)] = split
                single[row, len(split) :] = np.nan
        for row in range(shape[0]):
            estimate[row] = (
                np.nansum(single[row : row + self.window], axis=0) if self.window > 1 else single[row]
            )
        return estimate


def _address(model: Model, block: Block, site: str) -> str:
    """The site's address in a block; empty where this block, for a reason, does not have it.

    Raises:
        SiteError: the site is none that is written as a whole.
    """
    address = f"{block.address}.{site}"
    if parse_site(address, model.parts).index is not None or site == "pattern":
        raise SiteError(
            f"{site} cannot be patched as a whole: choose resid_pre, attn_out, mlp_out, z or another whole"
            " site"
        )
    return address if model.taps.exists(block.index, site) else ""


def stack_blocks(model: Model) -> tuple[Block, ...]:
    """The blocks that read the prompt: the only stack's, or the encoder's."""
    return model.parts.stacks[0].blocks
