"""What stands outside the blocks, told by names and shapes: projectors, quantizers, time embeddings, patch
convolutions, learned vectors, pairs of equal modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from regraft.checkpoint.census import CODES, CONVOLUTION, TIME, is_vector
from regraft.checkpoint.headers import Entry
from regraft.checkpoint.shapes import Fact

NARROW = 32
"""Channels that a scalar quantizer passes through at most: more is a projection like any other."""
FEWEST = 2
"""Tensors that a module has at least to be called equal to another: with one it would be any matrix."""
STRIDES = ("patch_stride", "stride", "patch_size", "temporal_patch_size")


def outside_facts(
    outside: Sequence[Entry], widths: Iterable[int], config: Mapping[str, Any] | None
) -> tuple[Fact, ...]:
    """Every statement about tensors outside the stacks; `widths` are those of the stacks."""
    codes = [e for e in outside if CODES.search(e.name)]
    times = [e for e in outside if TIME.search(e.name)]
    rest = [e for e in outside if e not in codes and e not in times]
    return (
        *_times(times),
        *_quantizers(codes),
        *_convolutions(rest, config),
        *_projectors(rest, set(widths)),
        *_vectors(rest),
        *_equal(outside),
    )


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _times(times: list[Entry]) -> Iterable[Fact]:
    """The sizes that each embedding of time goes through."""
    modules: dict[str, list[Entry]] = {}
    for entry in times:
        found = TIME.search(entry.name)
        assert found is not None
        end = entry.name.find(".", found.end())
        modules.setdefault(entry.name[:end] if end >= 0 else entry.name, []).append(entry)
    for path, some in modules.items():
        matrices = [e for e in some if len(e.shape) == 2]
        if matrices:
            sizes = ", ".join(f"{e.shape[1]:,} → {e.shape[0]:,}" for e in matrices)
            yield Fact(f"time embedding {path}", sizes, "inferred", f"by its name; {len(some)} tensors")


def _quantizers(codes: list[Entry]) -> Iterable[Fact]:
    """Pairs of matrices into few channels and out of them again."""
    modules: dict[str, list[Entry]] = {}
    for entry in codes:
        if len(entry.shape) == 2:
            modules.setdefault(_module(_module(entry.name)), []).append(entry)
    for path, some in modules.items():
        for first, second in combinations(some, 2):
            into, out = sorted((first, second), key=lambda e: e.shape[0])
            if into.shape == out.shape[::-1] and into.shape[0] <= NARROW < into.shape[1]:
                wide, narrow = into.shape[1], into.shape[0]
                way = f"{wide:,} → {narrow:,} → {wide:,}"
                why = f"{into.name} and {out.name}: so few channels are rounded one by one"
                yield Fact(f"scalar quantizer {path}", way, "inferred", why)


def _convolutions(rest: list[Entry], config: Mapping[str, Any] | None) -> Iterable[Fact]:
    """Kernels outside the blocks; how far they step is nowhere but in a configuration."""
    stated = [f"{name} {config[name]}" for name in STRIDES if name in config] if config else []
    why = f"stride: config.json says {', '.join(stated)}" if stated else "stride: unknown, no shape tells"
    for entry in rest:
        if len(entry.shape) >= CONVOLUTION and not is_vector(entry.shape):
            kernel = " x ".join(map(str, entry.shape[2:]))
            sides = f"{entry.shape[0]:,} and {entry.shape[1]:,} channels"
            yield Fact(f"convolution {_module(entry.name)}", f"kernel {kernel}, {sides}", "certain", why)


def _projectors(rest: list[Entry], widths: set[int]) -> Iterable[Fact]:
    """Matrices that lead from another size to the width of a stack, tables and heads left out."""
    for entry in rest:
        if len(entry.shape) != 2 or entry.shape[0] not in widths or not entry.name.endswith("weight"):
            continue
        if re.search(r"proj|embedder|connector|adapter|merger", entry.name, re.IGNORECASE):
            way = f"{entry.shape[1]:,} → {entry.shape[0]:,}"
            yield Fact(f"projector {_module(entry.name)}", way, "inferred", "its rows are a stack's width")


def _vectors(rest: list[Entry]) -> Iterable[Fact]:
    """Learned vectors: one dimension beyond those of size one, kept with more than one dimension."""
    for entry in rest:
        if len(entry.shape) > 1 and is_vector(entry.shape) and entry.count > 1:
            yield Fact(f"learned vector {entry.name}", entry.count, "certain", "one vector, not a table")


def _equal(outside: Sequence[Entry]) -> Iterable[Fact]:
    """Modules side by side with the same tensors of the same shapes, the outermost of such pairs alone."""
    modules: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for entry in outside:
        words = entry.name.split(".")
        for end in range(1, len(words)):
            modules.setdefault(".".join(words[:end]), set()).add((".".join(words[end:]), entry.shape))
    told: set[str] = set()
    for first, second in combinations(sorted(modules), 2):
        beside = _module(first) == _module(second)
        within = any(first.startswith(f"{path}.") for path in told)
        if beside and not within and len(modules[first]) >= FEWEST and modules[first] == modules[second]:
            told |= {first, second}
            why = f"{len(modules[first])} tensors of the same names and shapes, which may hold other numbers"
            yield Fact("equal modules", f"{first} and {second}", "certain", why)
