"""Edges of attention cut on the live model, at prompts and at what is written behind them.

Shapes: B prompts, q queries of one call, s keys that it reads, those of a cache among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from regraft.core.structure import walk_tensors
from regraft.model.attention_mask import MaskArgument, mask_argument, reads_ahead, with_edges_cut
from regraft.model.block_call import BlockCall, split_call, with_arguments
from regraft.model.model import Model
from regraft.sweeps.attention_edits import CutAttention
from regraft.sweeps.live_places import Place


@contextmanager
def cutting(
    model: Model, edit: CutAttention, place: Place, here: Callable[[nn.Module], nn.Module]
) -> Iterator[None]:
    """While inside, every call of the edit's block is given a mask without the edges that it names."""
    index = model.site(edit.site).block
    assert index is not None
    block, argument = model.blocks[index], mask_argument(model, index)
    stack = next(one for one in model.parts.stacks if one.first <= index < one.stop)

    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call, stream_BqD = split_call(args, kwargs)
        keys = _keys_read(call, argument, stream_BqD.shape[1], index - stack.first)
        cut_Bqs = _cut(edit, place, stream_BqD.shape[1], keys).to(stream_BqD.device)
        if not bool(cut_Bqs.any()):
            return args, kwargs
        given = with_edges_cut(call, argument, cut_Bqs, causal=not reads_ahead(model, index))
        nested = with_arguments(call, given)
        return nested["args"], nested["kwargs"]

    handle = here(block.module).register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _keys_read(call: BlockCall, argument: MaskArgument, queries: int, layer: int) -> int:
    """How many keys a call reads: as many as its mask has columns, else what its cache will tell it."""
    mask = dict(walk_tensors(call.nested())).get(argument.path)
    if mask is not None:
        return mask.shape[-1]
    past = next((one for one in (*call.args, *call.kwargs.values()) if isinstance(one, Cache)), None)
    return queries if past is None else past.get_mask_sizes(queries, layer)[0]


def _cut(edit: CutAttention, place: Place, queries: int, keys: int) -> Tensor:
    """Which edges an edit cuts in the call at hand, (B, q, s)."""
    end_B = place.at_BT[:, -1:] + 1
    at_Bs = end_B + torch.arange(-keys, 0)
    at_Bq = place.at_BT[:, -queries:]
    cut_Bqs = (
        place.meant(edit, edit.position, at_Bq)[:, :, None] & place.meant(edit, edit.keys, at_Bs)[:, None]
    )
    return cut_Bqs if edit.own else cut_Bqs & (at_Bq[:, :, None] != at_Bs[:, None])
