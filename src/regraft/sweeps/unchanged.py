"""Variants that change nothing: the value that is put in is the value that is there, to the bit.

In a grid of patches those are all positions in front of the first token that differs. They are answered from
the clean run. Shapes: B prompts, T positions, W features, k positions of an edit.
"""

from __future__ import annotations

import torch

from regraft.model.recording import Recording
from regraft.sweeps.batch_layout import STREAM_SITES, BatchLayout, check_positions, edit_positions
from regraft.sweeps.edits import Carried, pick_value
from regraft.sweeps.variants import Replace, Route, Variant


def changes_nothing(recording: Recording, variant: Variant, layout: BatchLayout) -> bool:
    """Whether a variant takes the clean route and replaces streams between blocks by what they are.

    Asked only of streams, which a recording holds: anything else would first have to be run. A variant of
    another kind, or one that is wrong, is left to the plan.
    """
    if not variant.edits or any(type(edit) is not Replace for edit in variant.edits):
        return False
    if variant.route is not None and variant.route != Route.order(range(layout.blocks)):
        return False
    return all(_is_there(recording, edit, layout) for edit in variant.edits if isinstance(edit, Replace))


def _is_there(recording: Recording, edit: Replace, layout: BatchLayout) -> bool:
    block, name = layout.addresses[edit.site]
    if block is None or name not in STREAM_SITES:
        return False
    clean_BTW = recording.pre(block) if name == "resid_pre" else recording.post(block)
    lengths, count = recording.lengths_of(block), recording.positions_of(block)
    check_positions(edit, layout, block)
    listed = edit_positions(edit, lengths) or [list(range(count))] * recording.prompts
    positions_Bk = torch.tensor(listed, device=clean_BTW.device)
    batch_B1 = torch.arange(recording.prompts, device=clean_BTW.device)[:, None]
    old_BkW = clean_BTW[batch_B1, positions_Bk]
    assert edit.value is not None
    value = pick_value(edit, edit.value, positions_Bk, Carried(0, count, lengths), old_BkW.shape[-1])
    return torch.equal(value.to(old_BkW.dtype).expand_as(old_BkW), old_BkW)
