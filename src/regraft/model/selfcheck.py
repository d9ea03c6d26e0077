"""Prove on a short input that what was found is what the model does; refuse the sites whose identity fails.

Identities: replayed blocks and head give the model's own logits; two copies of the prompts in one batch give
the same; `resid + attn_out + mlp_out` closes; `mlp(mlp_in) == mlp_out`; `down_proj(mlp_act) == mlp_out`;
`o_proj(z) == attn_out`; with one token, whose attention can only look at itself, a head's `z` is its `v`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from regraft.core.structure import largest_difference, main_tensor
from regraft.core.tolerance import gap
from regraft.model.attention_inputs import roles_refused
from regraft.model.block_call import CANNOT, capture, output_of, without_cache
from regraft.model.model import Model
from regraft.model.parts import Block, Branch, close, in_width
from regraft.model.recording import Recording, record
from regraft.model.session import hooks
from regraft.model.sites import Tap, head_count, packed_taps

LENGTH = 8
"""Tokens of the probe: few, so that the check costs little."""


@dataclass
class SelfCheck:
    """What was measured. Differences are largest absolute ones, relative to the largest value where marked
    so.

    `replay`: logits (or last hidden states) of replayed blocks and head against the model's own. `batch`: the
    same with the rows repeated; `replays`, `batches`: whether that is small enough, `largest` the official
    output's largest value. `closure`, `projections`: relative. `causal`: no position of the last stack sees a
    later one. `width`: of the stream that leaves the last block. `refused`: sites refused, with the reason.
    """

    replay: float = float("inf")
    batch: float = float("inf")
    closure: float = 0.0
    projections: float = 0.0
    causal: bool = False
    width: int = 0
    largest: float = 0.0
    replays: bool = False
    batches: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)


def sample_ids(model_rows: int, length: int, seed: int = 0) -> list[int]:
    """A short row of token ids, away from the special ones at the start of most vocabularies."""
    generator = torch.Generator().manual_seed(seed)
    low = min(5, model_rows - 1)
    return torch.randint(low, model_rows, (length,), generator=generator).tolist()


def check(model: Model) -> SelfCheck:
    """Run every identity; sites that fail are refused in `model.taps`.

    All that is asked of a block is asked while it is at hand, so that a streamed model is read five times.
    """
    found, model.hooks_at = SelfCheck(), hooks(model.hf)
    ids = sample_ids(model.table_rows, model.probe)
    recording = _record(model, ids)
    found.width = recording.post(len(model.blocks) - 1).shape[-1]
    official = _official(recording)
    found.largest = float(official.abs().max())
    found.replay, found.batch = _replay_differences(recording, official, (1, 3))
    limit = model.rounding
    found.replays = found.replay <= limit * found.largest
    found.batches = found.batch <= limit * found.largest
    found.causal = _is_causal(model, recording, ids, limit)
    single = _record(model, ids[:1])
    for block in model.blocks:
        _check_block(model, recording, block, found, limit)
        _check_values(model, single, block, found, limit)
    return found


def _record(model: Model, ids: list[int]) -> Recording:
    return record(model, [ids], [ids] if model.two_stacks else None, attention_mask="all")


def _replay_differences(recording: Recording, official: Tensor, counts: Sequence[int]) -> list[float]:
    """Largest difference between the model's own output and that of so many replayed copies, for each
    count."""
    model = recording.model
    memories: list[Tensor | None] = [None for _ in counts]
    streams = [recording.pre(0) for _ in counts]
    with torch.no_grad():
        for stack in model.parts.stacks:
            streams = [recording.pre(stack.first).repeat(rows, 1, 1) for rows in counts]
            for index in range(stack.first, stack.stop):
                streams = [
                    recording.run_block(index, stream, rows, memory)
                    for stream, rows, memory in zip(streams, counts, memories, strict=True)
                ]
            if stack is not model.parts.stacks[-1]:
                memories = [recording.bridge(s, rows) for s, rows in zip(streams, counts, strict=True)]
        ends = [recording.hidden(s) if model.parts.head is None else recording.head(s) for s in streams]
    return [
        largest_difference(mine, official.repeat(rows, 1, 1)) for mine, rows in zip(ends, counts, strict=True)
    ]


def _official(recording: Recording) -> Tensor:
    """The model's own logits, or its last hidden states where it has no output matrix."""
    model = recording.model
    inputs = {**recording.inputs, **without_cache(model.hf)}
    if model.parts.head is not None:
        return capture(model.hf, model.parts, inputs, whole=True).result.logits
    if model.parts.final_norm is None:
        return recording.post(len(model.blocks) - 1)
    with torch.no_grad():
        return output_of(model.parts.final_norm, lambda: model.hf(**inputs))


def _is_causal(model: Model, recording: Recording, ids: list[int], limit: float) -> bool:
    other = [*ids[:-1], ids[-1] - 1]
    changed = (
        record(model, [ids], [other], attention_mask="all") if model.two_stacks else _record(model, other)
    )
    last = model.main_blocks[-1].index
    return gap(changed.post(last)[:, :-1], recording.post(last)[:, :-1]) <= limit


def _check_block(model: Model, recording: Recording, block: Block, found: SelfCheck, limit: float) -> None:
    if not block.branches:
        return
    pre, post = recording.pre(block.index), recording.post(block.index)
    outs = [recording[f"{block.address}.{branch.kind}_out"] for branch in block.branches]
    with torch.no_grad():
        closed = close(block.branches, pre, outs, pre.shape)
    assert closed is not None
    open_by = gap(closed, post)
    found.closure = max(found.closure, open_by)
    if not open_by <= limit:
        reason = (
            f"its block does not close: resid + branches differs from the block's output by {open_by:.1e}"
        )
        for name in ("attn_out", "cross_out", "mixer_out", "mlp_out", "resid_mid"):
            _strike(model, block, name, reason, found)
    _check_mlp_input(model, recording, block, found, limit)
    for branch in block.branches:
        name = {"attn": "z", "mlp": "mlp_act"}.get(branch.kind)
        if name and model.taps.exists(block.index, name):
            off = _projection_gap(recording, block, branch)
            found.projections = max(found.projections, off)
            if not off <= limit:
                _strike(
                    model,
                    block,
                    name,
                    f"its projection does not give {branch.kind}_out (differs by {off:.1e})",
                    found,
                )


def _check_mlp_input(
    model: Model, recording: Recording, block: Block, found: SelfCheck, limit: float
) -> None:
    """The MLP, called alone with what it was given, adds what it added."""
    branch = block.branch("mlp")
    if branch is None or not model.taps.exists(block.index, "mlp_in"):
        return
    tap = model.tap(f"{block.address}.mlp_in")
    try:
        with torch.no_grad():
            out = main_tensor(tap.module(recording.read(block.index, tap)))
            assert out is not None
            wanted = recording[f"{block.address}.mlp_out"]
            out = branch.out_norm(out) if branch.out_norm is not None else out
            off = gap(branch.factor * out.reshape(wanted.shape), wanted)
    except CANNOT as error:
        reason = f"the MLP cannot be called alone ({type(error).__name__})"
        _strike(model, block, "mlp_in", reason, found)
        return
    if not off <= limit:
        _strike(
            model,
            block,
            "mlp_in",
            f"the MLP called alone does not give mlp_out (differs by {off:.1e})",
            found,
        )


def _projection_gap(recording: Recording, block: Block, branch: Branch) -> float:
    assert branch.projection is not None
    given = recording.read(block.index, Tap(branch.projection, "input"))
    with torch.no_grad():
        out = branch.projection(given)
        out = branch.out_norm(out) if branch.out_norm is not None else out
    return gap(branch.factor * out, recording[f"{block.address}.{branch.kind}_out"])


def _check_values(model: Model, single: Recording, block: Block, found: SelfCheck, limit: float) -> None:
    """The first token of a causal stack sees itself alone, so a head's `z` is its `v`, or a share of it
    beside a sink."""
    if not model.taps.exists(block.index, "v") or not model.taps.exists(block.index, "z"):
        return
    if _value_gap(single, block) <= limit:
        return
    attn = block.branch("attn")
    tap = model.tap(f"{block.address}.v")
    assert attn is not None
    assert attn.projection is not None
    if tap.features is not None:
        heads = head_count(attn, model.hf.config, in_width(attn.projection))
        width = in_width(attn.projection) // heads
        model.taps.table[block.index] |= packed_taps(tap.module, heads, width, interleaved=True)
        if model.taps.exists(block.index, "v") and _value_gap(single, block) <= limit:
            return
    for name, reason in roles_refused(single, block).items():
        _strike(model, block, name, reason, found)


def _value_gap(single: Recording, block: Block) -> float:
    single._cache.pop(f"{block.address}.v", None)
    v, z = single[f"{block.address}.v"], single[f"{block.address}.z"]
    v, z = v[:, :1], z[:, :1]
    z = z.reshape(*z.shape[:2], -1, v.shape[-1])
    v = v.repeat_interleave(z.shape[2] // v.shape[2], dim=2)
    factor = (z * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True).clamp_min(1e-30)
    return gap(v * factor.clamp(0.0, 1.0), z)


def _strike(model: Model, block: Block, name: str, reason: str, found: SelfCheck) -> None:
    if model.taps.exists(block.index, name):
        model.taps.refuse(block.index, name, reason)
        found.refused[f"{block.address}.{name}"] = reason
