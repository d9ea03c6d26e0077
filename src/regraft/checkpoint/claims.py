"""What a configuration alone says of a checkpoint, which no shape can bear out: certain only as its claim.
Where a product of two claims is the number of rows of a table, the table bears it out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from regraft.checkpoint.shapes import Fact

NUMBERS = {
    "rope_theta": "rotary base", "max_position_embeddings": "positions",
    "sliding_window": "window of attention", "sample_rate": "sample rate, Hz",
    "sampling_rate": "sample rate, Hz", "fps": "rate, Hz",
}  # fmt: skip
"""Names of settings, and what they set."""
PATTERNS = ("layer_types", "layers_block_type")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
CODEBOOKS, CODES = ("num_codebooks", "n_codebooks"), ("codebook_size", "vocab_size_per_codebook", "bins")
LEVELS = ("fsq_input_levels", "levels", "fsq_levels")
STEPS = ("downsampling_ratios", "downsample_rates", "encoder_rates", "strides", "upsampling_ratios")
RATES = ("sample_rate", "sampling_rate")
WHY = "config.json says so; no shape tells"
MOST = 6
"""Sections inside sections that are looked into: deeper ones hold no settings of a model."""


def claims(config: Mapping[str, Any] | None, tables: Mapping[str, int], experts: bool) -> tuple[Fact, ...]:
    """Every claim of a configuration and its sections.

    Args:
        config: the settings, or nothing.
        tables: rows of every table, by name.
        experts: whether the blocks hold any.
    """
    if config is None:
        return ()
    found: list[Fact] = []
    for path, section in _sections(config, "", 0):
        found += [
            Fact(f"{path}{what}", section[name], "claimed", WHY)
            for name, what in NUMBERS.items()
            if _number(section.get(name))
        ]
        found += [*_patterns(path, section), *_experts(path, section, experts)]
        found += [*_codebooks(path, section, tables), *_products(path, section)]
    return tuple(found)


def _sections(config: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, config
    for name, value in config.items():
        if isinstance(value, dict) and depth < MOST:
            yield from _sections(value, f"{path}{name}: ", depth + 1)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _first(section: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((section[name] for name in names if name in section), None)


def _patterns(path: str, section: Mapping[str, Any]) -> Iterator[Fact]:
    kinds = _first(section, PATTERNS)
    if isinstance(kinds, list) and kinds:
        counted = ", ".join(f"{count} x {kind}" for kind, count in Counter(map(str, kinds)).items())
        yield Fact(f"{path}kinds of blocks in order", counted, "claimed", WHY)


def _experts(path: str, section: Mapping[str, Any], there: bool) -> Iterator[Fact]:
    count = _first(section, EXPERTS)
    if _number(count) and count > 1 and not there:
        yield Fact(f"{path}experts", f"{count} configured, absent", "claimed", "no tensor is an expert's")


def _codebooks(path: str, section: Mapping[str, Any], tables: Mapping[str, int]) -> Iterator[Fact]:
    books, codes = _first(section, CODEBOOKS), _first(section, CODES)
    if not (isinstance(books, int) and isinstance(codes, int)):
        return
    table = next((name for name, rows in tables.items() if rows == books * codes), "")
    value = f"{books:,} of {codes:,} codes"
    if table:
        why = f"config.json says so, and {table} has {books * codes:,} rows"
        yield Fact(f"{path}codebooks", value, "certain", why)
    else:
        yield Fact(f"{path}codebooks", value, "claimed", WHY)


def _products(path: str, section: Mapping[str, Any]) -> Iterator[Fact]:
    """Levels of a quantizer and how many codes they make; steps of an encoder and the rate behind them."""
    levels, steps, rate = (_first(section, names) for names in (LEVELS, STEPS, RATES))
    if _whole_numbers(levels):
        value = f"{' x '.join(map(str, levels))} = {math.prod(levels):,} codes"
        yield Fact(f"{path}levels of the quantizer", value, "claimed", WHY)
    if _whole_numbers(steps):
        product = math.prod(steps)
        behind = f": {rate:,} Hz / {product:,} = {rate / product:g} Hz" if _number(rate) else ""
        yield Fact(f"{path}down-sampling", f"{product:,}{behind}", "claimed", WHY)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, int) and n > 0 for n in value)
