"""What a model, a recording or a result says of itself in a few lines.

Shapes: B prompts, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from regraft.model.sites import BLOCK_SITES

if TYPE_CHECKING:
    from regraft.model.model import Model
    from regraft.model.recording import Recording

LINES, TOKENS = 6, 12
"""Prompts that are shown, and tokens of each: a screen's worth."""


def model_in_words(model: Model) -> str:
    """Kind, size, blocks, sites and what the self-check found: at most ten lines."""
    hf, stacks = model.hf, model.parts.stacks
    parameters = sum(p.numel() for p in hf.parameters())
    size = sum(p.numel() * p.element_size() for p in hf.parameters())
    blocks = " and ".join(f"{len(s.blocks)} {s.name + ' ' if s.name else ''}blocks" for s in stacks)
    head = f"{model.vocabulary:,} tokens" if model.parts.head is not None else model.parts.why_no_head
    kind = str(model.dtype).removeprefix("torch.")
    lines = [
        f"Model {model.name}: {type(hf).__name__}, {kind} on {model.device}",
        f"  {blocks} of width {model.width:,}, {head}",
        f"  {parameters:,} parameters, {size:,} bytes",
        *_sites(model),
        f"  {'causal' if model.causal else 'sees both ways'}; replayed within {model.check.replay:.0e}",
    ]
    return "\n".join([*lines, *(f"  {note}" for note in model.notes[:2])])


def _sites(model: Model) -> list[str]:
    """Which sites there are, and in how many blocks those that are not in all."""
    total = len(model.blocks)
    count = {name: sum(model.taps.exists(b.index, name) for b in model.blocks) for name in BLOCK_SITES}
    everywhere = [name for name, number in count.items() if number == total]
    some = [f"{name} ({number} of {total})" for name, number in count.items() if 0 < number < total]
    lines = [f"  sites of every block: {', '.join(everywhere)}"]
    return [*lines, f"  of some: {', '.join(some)}"] if some else lines


def recording_in_words(recording: Recording) -> str:
    """How many prompts and tokens, and the prompts' beginnings."""
    lengths = recording.lengths_B.tolist()
    scored = int(recording.scored_BT.sum())
    noun = "prompt" if recording.prompts == 1 else "prompts"
    tokens = f"{min(lengths)} to {max(lengths)}" if len(set(lengths)) > 1 else f"{lengths[0]}"
    lines = [
        f"Recording of {recording.prompts} {noun} of {tokens} tokens by {recording.model.name},"
        f" {scored} tokens scored"
    ]
    for row, length in enumerate(lengths[:LINES]):
        lines.append(f"  {row}: {_tokens(recording, row, length)}")
    more = recording.prompts - LINES
    return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])


def _tokens(recording: Recording, row: int, length: int) -> str:
    shown: Sequence[int] = recording.ids_BT[row, : min(length, TOKENS)].tolist()
    text = "|".join(recording.model.token_text(token).replace("\n", "\\n") for token in shown)
    return text + (f"| ... {length - TOKENS} more" if length > TOKENS else "")
