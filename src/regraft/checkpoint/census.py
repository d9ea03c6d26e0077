"""The census of a checkpoint: for every stack with what belongs to it, and for every kind of part, how many
tensors, parameters and bytes. Every tensor stands in one line, so the lines sum to the headers' bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from regraft.checkpoint.headers import Entry
from regraft.checkpoint.roles import ROLES, role_of, side_of
from regraft.checkpoint.shapes import EXPERTS, MODULATION, NORM, RECURRENT

PartKind = Literal[
    "attention", "MLP", "mixer", "embedding", "norm", "head", "modulation", "time embedding", "convolution",
    "codebook", "other",
]  # fmt: skip
TIME = re.compile(r"(^|\.)t(ime)?(step)?s?(_in)?_?(emb|proj)", re.IGNORECASE)
CODES = re.compile(r"quantiz|codebook|(^|\.)r?vq(\.|$)", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|feed_?forward|experts?\b|(^|\.)ff\.", re.IGNORECASE)
MIXER = re.compile(r"(^|\.)(mixer|mamba|ssm)\.", re.IGNORECASE)
READS_OUT = re.compile(r"(^|\.)pooler(\.|$)|(^|\.)cls\.|logits", re.IGNORECASE)
"""What stands between the last block and the scores, or the pooled state."""
EMBEDDING = re.compile(r"emb|wte|wpe", re.IGNORECASE)
CONVOLUTION = 3
"""Dimensions that the weight of a convolution has at least: outputs, inputs, and a size of the kernel."""


@dataclass(frozen=True)
class CensusLine:
    """All tensors of one kind in one stack and what belongs to it; the share is that of the component's
    values."""

    part: str
    kind: PartKind
    tensors: int
    parameters: int
    bytes: int
    share: float


def census(
    entries: Sequence[Entry], inside: Mapping[str, str], owners: Mapping[str, str], uses: Mapping[str, str]
) -> tuple[CensusLine, ...]:
    """The lines, largest part and kind first.

    Args:
        entries: every tensor of the component.
        inside: its name inside the block, of every tensor of a stack.
        owners: path of the stack that each tensor belongs to, by name.
        uses: what each tensor outside the stacks is taken for.
    """
    groups: dict[tuple[str, PartKind], list[Entry]] = {}
    for entry in entries:
        if entry.name in inside:
            kind = kind_in_block(inside[entry.name], entry.shape)
        else:
            kind = kind_outside(entry.name, entry.shape, uses[entry.name])
        groups.setdefault((owners[entry.name], kind), []).append(entry)
    total = sum(entry.count for entry in entries)
    lines = [
        CensusLine(
            part, kind, len(some), count := sum(e.count for e in some), sum(e.bytes for e in some),
            count / total if total else 0.0,
        )
        for (part, kind), some in groups.items()
    ]  # fmt: skip
    sizes: dict[str, int] = {}
    for line in lines:
        sizes[line.part] = sizes.get(line.part, 0) + line.parameters
    return tuple(sorted(lines, key=lambda one: (-sizes[one.part], one.part, -one.parameters, one.kind)))


def kind_in_block(name: str, shape: tuple[int, ...]) -> PartKind:
    """What a tensor inside a block is, by its name there and its dimensions."""
    plain = name.removesuffix(".weight").removesuffix(".bias")
    if MODULATION.search(plain):
        return "modulation"
    if NORM.search(plain) and len(shape) < 2:
        return "norm"
    if MIXER.search(plain) or RECURRENT.search(plain):
        return "mixer"
    if side_of(plain) != "mlp":
        return "attention"
    role = role_of(plain)
    if role in (*ROLES, "gate_up", "router") or MLP.search(plain):
        return "MLP"
    if len(shape) >= CONVOLUTION and not EXPERTS.search(plain):
        return "convolution"
    return "embedding" if EMBEDDING.search(plain) else "other"


def kind_outside(name: str, shape: tuple[int, ...], use: str) -> PartKind:
    """What a tensor outside the stacks is; its use tells tables, norms and heads."""
    plain = name.removesuffix(".weight").removesuffix(".bias")
    if TIME.search(plain):
        return "time embedding"
    if MODULATION.search(plain):
        return "modulation"
    if CODES.search(plain):
        return "codebook"
    if use == "norm":
        return "norm"
    if len(shape) >= CONVOLUTION and not is_vector(shape):
        return "convolution"
    if use == "head" or READS_OUT.search(plain):
        return "head"
    return "embedding" if use.endswith("table") else "other"


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether there is but one dimension that is not 1: a vector, whatever it is kept as."""
    return sum(size != 1 for size in shape) <= 1


def owner(name: str, paths: Sequence[str], largest: str) -> str:
    """The stack whose path a tensor's name shares most words with, beyond what all stacks share; else the
    largest."""
    words = name.replace("_", ".").split(".")

    def shared(path: str) -> int:
        count = 0
        for ours, theirs in zip(words, path.replace("_", ".").split("."), strict=False):
            if ours != theirs:
                break
            count += 1
        return count

    best = max(paths, key=shared, default=largest)
    return best if paths and shared(best) > min(shared(path) for path in paths) else largest
