"""The argument of a block that says which keys a query may read, and the same with some edges taken out.

transformers hands every block a mask that grows with queries and keys, or none where its kernel needs none to
be causal. No model code is touched: the block is called with another mask. Shapes: R rows, H heads (or 1), q
queries, s keys, T positions.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.core.structure import Path, walk_tensors
from regraft.core.tolerance import gap
from regraft.model.block_call import BlockCall
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.recording import Recording, record
from regraft.model.selfcheck import sample_ids
from regraft.model.sites import SiteError

NAME = "attention_mask"
_TOKENS, _SHORTER, _KEY = 8, 5, 2
"""Of the proof: tokens of its two prompts, of which the shorter one makes the model write its mask out, and
the key that is cut, neither the first one, which heads rest on, nor near the end, which few queries read."""


@dataclass(frozen=True)
class MaskArgument:
    """Where a block takes its mask, and in which form: true on what is read, or what is added to the
    scores."""

    path: Path
    dtype: torch.dtype


def mask_argument(model: Model, block: int) -> MaskArgument:
    """Where a block of the model takes its mask; found and proved once for each block.

    The proof: with an edge taken out, what stands at its key does not change what leaves the block at its
    query.

    Raises:
        SiteError: the block has no attention, its mask is no argument, or the query reads the key in another
            way as well (a convolution, a recurrence).
    """
    if block not in model.mask_arguments:
        try:
            model.mask_arguments[block] = _proved(model, block)
        except SiteError as error:
            model.mask_arguments[block] = str(error)
    found = model.mask_arguments[block]
    if isinstance(found, str):
        raise SiteError(found)
    return found


def with_edges_cut(call: BlockCall, argument: MaskArgument, cut: Tensor, causal: bool) -> dict[Path, Tensor]:
    """The mask of a call with edges taken out, as the argument to be given in place of its own.

    Args:
        call: what the block was called with, for as many queries and keys.
        cut: true where a query may not read a key, (R, q, s), or head by head (R, H, q, s).
        causal: what a call without a mask means: no key behind its query (else every key).

    Raises:
        ValueError: a query would be left without any key.
    """
    before = dict(walk_tensors(call.nested())).get(argument.path)
    cut_RHqs = cut[:, None] if cut.dim() == 3 else cut
    rows, _, queries, keys = cut_RHqs.shape
    if before is None:
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=cut.device)
        allowed = allowed.tril(keys - queries)[None, None] if causal else allowed[None, None]
    else:
        assert before.shape[-2:] == (queries, keys)
        before = before if before.shape[0] == rows else before.repeat(rows // before.shape[0], 1, 1, 1)
        allowed = before if before.dtype == torch.bool else before > torch.finfo(before.dtype).min / 2
    kept = allowed & ~cut_RHqs
    if bool((cut_RHqs.any(-1) & allowed.any(-1) & ~kept.any(-1)).any()):
        raise ValueError(
            "an attention edit takes every key from a query, whose attention is then no number: leave it"
            " one, for example its own position"
        )
    if argument.dtype == torch.bool:
        return {argument.path: kept}
    base = torch.zeros((), dtype=argument.dtype, device=kept.device) if before is None else before
    return {argument.path: base.masked_fill(~kept, torch.finfo(argument.dtype).min)}


def reads_ahead(model: Model, block: int) -> bool:
    """Whether queries of a block that is given no mask read keys behind them: those of an encoder."""
    return block < model.parts.stacks[1].first if model.two_stacks else not model.causal


def _proved(model: Model, block: int) -> MaskArgument:
    at = f"{model.blocks[block].address}.pattern cannot be cut"
    attn = model.blocks[block].branch("attn")
    if attn is None or attn.recurrent:
        why = "this block has no attention" if attn is None else "linear attention forms no pattern"
        raise SiteError(f"{at}: {why}")
    ids = [sample_ids(model.table_rows, min(_TOKENS, model.probe), seed) for seed in (1, 2)]
    rows = [ids[0], ids[1][:_SHORTER]]
    padded = record(model, rows, rows if model.two_stacks else None, attention_mask="all")
    argument = _found(model.blocks[block], padded)
    if argument is None:
        raise SiteError(f"{at}: the mask is no argument of this model's blocks")
    alone = record(model, [ids[0]], [ids[0]] if model.two_stacks else None, attention_mask="all")
    if _leaks(alone, block, argument):
        raise SiteError(f"{at}: with its mask closed, a query still reads the key in another way")
    return argument


def _found(block: Block, recording: Recording) -> MaskArgument | None:
    """The mask among the arguments of a call that needed one, by the name that transformers gives it."""
    call = recording.taken.calls[block.index]
    names = dict(enumerate(inspect.signature(block.module.forward).parameters))
    shape = (recording.positions_of(block.index),) * 2
    for path, tensor in walk_tensors(call.nested()):
        name = path[1] if path[0] == "kwargs" else names.get(int(path[1]))
        if len(path) == 2 and name == NAME and tensor.dim() == 4 and tensor.shape[-2:] == shape:
            return MaskArgument(path, tensor.dtype)
    return None


def _leaks(recording: Recording, block: int, argument: MaskArgument) -> bool:
    """Whether a key is felt at the queries behind it though the edges between them are cut."""
    stream = recording.pre(block)
    length = stream.shape[1]
    cut = torch.zeros(1, length, length, dtype=torch.bool, device=stream.device)
    cut[:, _KEY + 1 :, _KEY] = True
    causal = not reads_ahead(recording.model, block)
    mask = with_edges_cut(recording.taken.calls[block], argument, cut, causal)
    other = stream.clone()
    other[:, _KEY] = -2 * stream[:, _KEY].flip(-1)
    with torch.no_grad():
        outs = [recording.run_block(block, one, rows=1, given=mask) for one in (stream, other)]
    behind = [out[:, _KEY + 1 :] for out in outs]
    return gap(behind[0], behind[1]) > recording.model.rounding
