"""Parts of a model compiled by PyTorch: what the first call costs, and after how many calls it has paid.

Shapes: U units, W ways to compile, n lengths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.machine import measured_on
from regraft.core.memory import peak_bytes
from regraft.core.near_names import nearest
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.core.signatures import TextFile
from regraft.core.structure import largest_difference
from regraft.core.tolerance import gap
from regraft.data.corpus import text_rows
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.model.selfcheck import sample_ids
from regraft.systems.compiled import (
    EAGER,
    GRAPH,
    Traced,
    WayError,
    breaks_json,
    check_compiler,
    check_way,
    compile_unit,
    compiler_start_s,
    compiling,
    graphs_over,
    operators,
    traced,
)
from regraft.systems.timing import NOTHING, Timed, take_turns
from regraft.systems.units import PARTS, UNITS, UnitCall, UnitError, units_of

EIGHTHS = (8, 6, 5, 4, 3, 2)
"""Lengths at which it is asked whether a unit is compiled anew, in eighths of the text, longest first."""
AGAIN = "eager again"
"""The unit timed a second time beside itself: what differs there is noise."""
SOURCE = "PyTorch's compiler (Ansel et al., 2024); measured side by side, units in turns"


def compile(
    model: Model,
    units: list[str] | None = None,
    ways: list[str] | None = None,
    text: TextFile = "",
    length: int = 64,
    texts: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Compile parts of a model: what the first call costs, what later ones save, and where graphs break.

    Source: PyTorch 2 (Ansel et al., 2024). Every part is called alone on what a text really gives it; eager
    and compiled take turns, so that a noisy machine troubles both. Most of the time is the compiler's.

    Args:
        units: norm, sum and norm, rotation, attention, recurrence, mlp, block, stack or model; without them,
            the parts of one block of each kind.
        ways: default, reduce-overhead or max-autotune, with :dynamic or :static behind it, or cuda-graph;
            without them, default.
        text: a text file; without it, the specimen's almanac or general prompts.
        length: tokens of each text.
        texts: how many texts go through together.
        seed: of the general passages, where no text is given.

    Raises:
        ValueError: an unknown unit or way, a unit that the model does not have, no compiler, or a text that
            is too short.

    Examples:
        >>> data = regraft.compile(model, units=["norm"], length=16)
        >>> float(data["warm"].sel(unit="norm 0 (grouped)", way="default")) > 0
        True
    """
    asked = _checked(units)
    kinds = [check_way(way) for way in ways or ["default"]]
    if length < len(EIGHTHS) + 2 or texts < 1:
        raise ValueError("give texts of 8 tokens or more, and one text or more")
    longest = longest_input(model.hf.config)
    if longest and length > longest:
        raise ValueError(f"{model.name} reads {longest} tokens at most: give a smaller length")
    check_compiler(model.device)
    rows = _rows(model, text, seed, length, texts)
    lengths = [length * part // 8 for part in EIGHTHS]
    found, missing = units_of(model, rows, lengths, asked)
    if not found:
        raise UnitError("; ".join(f"{name}: {why}" for name, why in missing.items()))
    told = [_Told(unit) for unit in found]
    with model.held(), compiling():
        start_s = compiler_start_s(model.device)
        for number, one in enumerate(told):
            _measure(one, kinds, lengths, missing)
            advance("units", number + 1, len(told))
    return _dataset(model, told, kinds, lengths, missing).assign_attrs(
        tokens=length, texts=texts, compiler_start_s=start_s
    )


def _rows(model: Model, text: str, seed: int, length: int, texts: int) -> list[list[int]]:
    if model.tokenizer is None and not text:  # what is computed does not depend on what is said
        return [sample_ids(model.table_rows, length, seed=seed + n) for n in range(texts)]
    return text_rows(model, text, seed, length, texts)


def _checked(units: Sequence[str] | None) -> list[str]:
    """Names of units.

    Raises:
        UnitError: there is none of that name.
    """
    for name in units or ():
        if name not in UNITS:
            raise UnitError(f"{name!r} is no unit{nearest(name, UNITS)}")
    return list(dict.fromkeys(units or PARTS))


@dataclass
class _Told:
    """What was measured of one unit; by way, eager first."""

    unit: UnitCall
    trace: Traced | None = None
    first_s: dict[str, float] = field(default_factory=dict)
    times: dict[str, Timed] = field(default_factory=dict)
    difference: dict[str, tuple[float, float]] = field(default_factory=dict)
    same_tokens: dict[str, float] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    graphs: dict[str, list[int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the unit, with its place."""
        return f"{self.unit.name} {self.unit.where}"


def _measure(told: _Told, ways: Sequence[str], lengths: Sequence[int], missing: dict[str, str]) -> None:
    unit, at = told.unit, lengths[0]
    told.trace = traced(unit, at)
    for way in ways:
        if way != GRAPH:
            told.graphs[way] = graphs_over(unit, way, lengths)
    wanted = unit.call(at)
    device = wanted.device
    calls: dict[str, Callable[[], Any]] = {NOTHING: lambda: None}
    for name in (EAGER, AGAIN):
        calls[name] = lambda: unit.call(at)
    for way in ways:
        try:
            run, told.first_s[way] = compile_unit(unit, way, at)
        except WayError as error:
            missing[way] = str(error)
            continue
        calls[way] = lambda run=run: unit.call(at, run)
        made = unit.call(at, run)
        told.difference[way] = (largest_difference(made, wanted), gap(made, wanted))
        if unit.name == "model":
            told.same_tokens[way] = float((made.argmax(-1) == wanted.argmax(-1)).float().mean())
    told.times = take_turns(calls, device)
    for name, call in calls.items():
        if name not in (NOTHING, AGAIN):
            told.operators[name], told.peak[name] = operators(call, device), peak_bytes(call, device)


# the result
# ----------------------------------------------------------------------------------------------------


def _dataset(
    model: Model, told: list[_Told], ways: list[str], lengths: list[int], missing: dict[str, str]
) -> xr.Dataset:
    names = [EAGER, *ways]

    def table(read: Callable[[_Told, str], float]) -> np.ndarray:
        return np.array([[read(one, way) for way in names] for one in told], float)

    def timed(read: Callable[[Timed], float]) -> np.ndarray:
        return table(lambda t, way: read(t.times[way]) * 1e3 if way in t.times else none)

    none = float("nan")
    warm = timed(lambda times: times.median_s)
    first = table(lambda t, way: t.first_s.get(way, none))
    saved_s = (warm[:, :1] - warm) / 1e3
    noise = np.array([abs(t.times[AGAIN].median_s / t.times[EAGER].median_s - 1) for t in told])
    gains = saved_s * 1e3 > warm[:, :1] * noise[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        even = np.where(np.isnan(first), np.nan, np.where(gains, first / saved_s, np.inf))
    graphs = [[t.graphs.get(way, [none] * len(lengths)) for way in names] for t in told]
    by_way, whole = ("unit", "way"), ("unit", "way", "length")
    data: dict[str, Any] = {
        "warm": quantity(by_way, warm, "milliseconds of a call, median",
                         "When everything is compiled: only beside eager on the same machine.", SOURCE),
        "slow": quantity(by_way, timed(lambda times: times.percentile_s(0.99)),
                         "milliseconds of a call that one in a hundred exceeds", "What a busy moment costs."),
        "process": quantity(by_way, timed(lambda times: float(np.median(times.process_s))),
                            "milliseconds of the processor, median", "Of all threads together."),
        "first_call": quantity(by_way, first, "seconds of the first call, compiling and running",
                               "What is paid once, for each shape that is compiled."),
        "break_even": quantity(by_way, even, "calls after which compiling has paid",
                               "First call over what each later one saves; infinite: nothing is saved beyond"
                               " noise."),
        "difference": quantity(by_way, table(lambda t, way: t.difference.get(way, (none, none))[0]),
                               "largest difference from eager, in units of the output",
                               "Other orders of the same sums."),
        "relative": quantity(by_way, table(lambda t, way: t.difference.get(way, (none, none))[1]),
                             "largest difference as a share of the largest value",
                             "Held against the model's rounding."),
        "operators": quantity(by_way, table(lambda t, way: t.operators.get(way, none)),
                              _STARTED[model.device.type == "cuda"],
                              "What a compiler fuses is no longer started on its own."),
        "peak": quantity(by_way, table(lambda t, way: t.peak.get(way, none)),
                         "bytes at most beyond what is there, in one call", "Intermediate results."),
        "same_tokens": quantity(by_way, table(lambda t, way: t.same_tokens.get(way, none)),
                                "share of positions with the same likeliest token",
                                "Of the whole model only."),
        "graphs_so_far": quantity(whole, graphs, "graphs compiled, after texts of these lengths in turn",
                                  "What grows is compiled anew."),
        "graphs": quantity("unit", [t.trace.graphs if t.trace else none for t in told], "graphs",
                           "One, where nothing breaks."),
        "breaks": quantity("unit", [len(t.trace.breaks) if t.trace else none for t in told], "breaks",
                           "Where Python has to be asked in between."),
        "operations": quantity("unit", [t.trace.operations if t.trace else none for t in told],
                               "operations in the graphs", "What the compiler may fuse."),
        "noise": quantity("unit", noise,
                          "share by which eager differs from eager, timed beside itself",
                          "A gain smaller than this is none."),
        "floor": quantity("unit", [t.times[NOTHING].median_s * 1e3 for t in told],
                          "milliseconds of a call that does nothing", "Under every other figure."),
    }  # fmt: skip
    coords = {"unit": [t.name for t in told], "way": names, "length": lengths}
    attrs = {
        "breaks_at": breaks_json({t.name: t.trace for t in told if t.trace}),
        "missing": json.dumps(missing),
        "rounding": model.rounding,
        **measured_on(model.device),
    }
    return xr.Dataset(data, coords=coords, attrs=attrs)


_STARTED = ("operators that PyTorch starts, those within another one left out", "kernels that are launched")
