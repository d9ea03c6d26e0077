"""Variants that change nothing: the value that is put in is the value that is there, to the bit.

In a grid of patches those are all positions in front of the first token that differs. They are answered from
the clean run. Shapes: B prompts, T positions, W features, k positions of an edit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from regraft.model.recording import Recording
from regraft.sweeps.batch_layout import STREAM_SITES, BatchLayout, check_positions, edit_positions
from regraft.sweeps.edits import Carried, pick_value
from regraft.sweeps.routes import Route
from regraft.sweeps.variants import Replace, Variant

ASKED = 8
"""Variants of a block from which on its insides are read to compare them, at the cost of one run of the
block; fewer would often cost more than they save."""


class Unchanged:
    """Which variants of a recording take the clean route and replace activations by what they are.

    Streams between blocks are at hand. What is inside a block is read by running that block once more, and
    only where a grid asks for it (`ASKED`) and the block's weights are in memory. `runs` counts positions
    that were run for it.
    """

    def __init__(self, recording: Recording, variants: Sequence[Variant], layout: BatchLayout):
        self.recording, self.layout, self.runs = recording, layout, 0
        self.inside: dict[str, Tensor] = {}
        replacing = {n: tuple(found) for n, v in enumerate(variants) if (found := self._replacements(v))}
        self._read_insides([edit for edits in replacing.values() for edit in edits])
        self.numbers = {n for n, edits in replacing.items() if all(self._is_there(edit) for edit in edits)}

    def _replacements(self, variant: Variant) -> list[Replace]:
        """The edits of a variant that takes the clean route and does nothing but replace; none of another.

        A variant that is wrong is left to the plan.
        """
        if any(type(edit) is not Replace for edit in variant.edits):
            return []
        if variant.route is not None and variant.route != Route.order(range(self.layout.blocks)):
            return []
        return [edit for edit in variant.edits if isinstance(edit, Replace)]

    def _read_insides(self, edits: Sequence[Replace]) -> None:
        if self.recording.model.streamed is not None:
            return
        asked = [edit for edit in edits if self._block_inside(edit) is not None and self._places(edit)]
        blocks = Counter(self._block_inside(edit) for edit in asked)
        for block, count in blocks.items():
            if block is None or count < ASKED:
                continue
            sites = {edit.site for edit in asked if self._block_inside(edit) == block}
            mid = {site for site in sites if self.layout.addresses[site][1] == "resid_mid"}
            self.inside |= {site: self.recording[site] for site in mid}
            taps = {site: self.recording.model.tap(site) for site in sites - mid}
            self.inside |= self.recording.read_all(block, taps) if taps else {}
            self.runs += self.recording.positions_of(block) * (bool(mid) + bool(taps))

    def _block_inside(self, edit: Replace) -> int | None:
        block, name = self.layout.addresses[edit.site]
        return None if name in STREAM_SITES else block

    def _places(self, edit: Replace) -> bool:
        """Whether it leaves positions alone: what replaces all of them is hardly ever what is there."""
        block, _ = self.layout.addresses[edit.site]
        assert block is not None
        places = edit_positions(edit, self.recording.lengths_of(block))
        return places is not None and len(places[0]) < self.recording.positions_of(block)

    def _is_there(self, edit: Replace) -> bool:
        block, name = self.layout.addresses[edit.site]
        if block is None or (name not in STREAM_SITES and edit.site not in self.inside):
            return False
        streams = {"resid_pre": self.recording.pre, "resid_post": self.recording.post}
        clean_BTW = streams[name](block) if name in streams else self.inside[edit.site]
        lengths, count = self.recording.lengths_of(block), self.recording.positions_of(block)
        check_positions(edit, self.layout, block)
        listed = edit_positions(edit, lengths) or [list(range(count))] * self.recording.prompts
        positions_Bk = torch.tensor(listed, device=clean_BTW.device)
        batch_B1 = torch.arange(self.recording.prompts, device=clean_BTW.device)[:, None]
        old_BkW = clean_BTW[batch_B1, positions_Bk]
        assert edit.value is not None
        value = pick_value(edit, edit.value, positions_Bk, Carried(0, count, lengths), old_BkW.shape[-1])
        return torch.equal(value.to(old_BkW.dtype).expand_as(old_BkW), old_BkW)
