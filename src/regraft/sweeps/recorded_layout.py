"""What a recording tells a plan: its layout, and how many rows go through a block together."""

from __future__ import annotations

import torch

from regraft.model.model import Model
from regraft.model.parts import in_width, is_linear, out_width
from regraft.model.recording import Recording
from regraft.sweeps.batch_layout import BRANCH_OF, BatchLayout
from regraft.sweeps.linear_edits import linear_branches, proved_columns
from regraft.sweeps.prefix_cache import cone_holds

CPU_ROW_POSITIONS = 1024
"""Positions that go through a block together on a CPU."""


LIVE_FLOATS = 1 << 29
"""Numbers of the streams of all variants under way: 2 GiB in float32."""


def layout_of(
    recording: Recording, addresses: set[str], cone: bool = True, read_from: int = 0
) -> BatchLayout:
    """The numbers that the plan needs to know about a recording."""
    model = recording.model
    stacks = model.parts.stacks
    sites = {address: model.site(address) for address in addresses}
    trusted = not model.hooked_since
    walks = model.streamed is not None and not model.streamed.store.all_stay
    linear = [linear_branches(block) if trusted else frozenset() for block in model.blocks]
    asked = {
        (s.block or 0, BRANCH_OF[s.name])
        for s in sites.values()
        if s.name in BRANCH_OF and not s.name.endswith("_out")
    }
    proved = {
        (block, kind)
        for block, kind in sorted(asked)
        if kind in linear[block] and proved_columns(recording, block, kind)
    }
    return BatchLayout(
        stacks=tuple((stack.first, stack.stop) for stack in stacks),
        positions=tuple(recording.positions_of(stack.first) for stack in stacks),
        prompts=recording.prompts,
        lengths=tuple(recording.lengths_of(stack.first) for stack in stacks),
        linear=tuple(linear),
        addresses={address: (site.block, site.name) for address, site in sites.items()},
        cone=cone and trusted and bool(addresses or (read_from and not walks)) and cone_holds(model),
        columns=tuple(frozenset(kind for at, kind in proved if at == block.index) for block in model.blocks),
        read_from=read_from,
        key_share=key_share(model),
        walks=walks,
    )


def key_share(model: Model) -> float:
    """Share of the last block's matrices that stand between the stream and the keys and values."""
    block = model.blocks[-1]
    attn = block.branch("attn")
    sizes = {id(m): out_width(m) * in_width(m) for m in block.module.modules() if is_linear(m)}
    if attn is None or attn.attention is None or attn.projection is None:
        return 1.0
    given = [m for m in attn.attention.modules() if id(m) in sizes and m is not attn.projection]
    return sum(sizes[id(m)] for m in given) / max(sum(sizes.values()), 1)


def batch_rows(recording: Recording) -> int:
    """How many rows go through a block together: as many as the free memory holds, on a CPU as many as its
    caches like."""
    model = recording.model
    positions = recording.prompts * max(stream.shape[1] for stream in recording.taken.stream)
    if model.device.type != "cuda":
        return max(1, CPU_ROW_POSITIONS // positions)
    free, _ = torch.cuda.mem_get_info(model.device)
    widest = max((m.out_features for m in model.hf.modules() if isinstance(m, torch.nn.Linear)), default=1)
    per_position = 4 * (min(widest, 16 * model.width) + 8 * model.width) * model.dtype.itemsize
    return max(1, int(0.5 * free) // (positions * per_position))


def live_rows(recording: Recording) -> int:
    """How many variants may be under way at once, so that their streams stay within a bound."""
    floats = recording.pre(0).numel()
    return max(2, LIVE_FLOATS // max(floats, 1))
