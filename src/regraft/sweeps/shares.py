"""A sweep measured in shares of its variants: kept as they are measured, or given to others to measure.

A share is a sweep of its own, with a control row of its own; what several of them measured is put together
in their order, whoever measured them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Protocol

import torch

from regraft.core.scoped import scoped
from regraft.model.recording import Recording
from regraft.sweeps.kept_sweeps import KeptSweep, divided, kept_run, told_apart
from regraft.sweeps.metrics import AnyMetric
from regraft.sweeps.plan import Work
from regraft.sweeps.read_pairs import named_metrics
from regraft.sweeps.recorded_layout import batch_rows, live_rows
from regraft.sweeps.so_far import kept_alone, measures_nothing, share_was_kept
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant

LEAST, BATCHES = 32, 4
"""Variants of a share at least, and how many full batches it makes: fewer would go through blocks in smaller
batches than all of them together."""
Measure = Callable[[Sequence[Variant], tuple[int, int]], SweepResult]
"""Measures some variants here; told which share of how many they are."""


class Helpers(Protocol):
    """Others who measure shares: cards, or the machines of a cluster."""

    def serves(self, recording: Recording) -> bool:
        """Whether they hold the recording's model as it is."""
        ...

    def measured(
        self,
        recording: Recording,
        shares: Sequence[tuple[int, Sequence[Variant]]],
        metrics: Sequence[AnyMetric],
        exact: bool,
    ) -> Iterator[tuple[int, SweepResult]]:
        """Each share's number and result, in whatever order they come."""
        ...

    def close(self) -> None:
        """Let them go."""
        ...


_HELPERS: ContextVar[Helpers | None] = ContextVar("regraft_helpers", default=None)


@contextmanager
def helped_by(helpers: Helpers | None) -> Iterator[None]:
    """While inside, shares of sweeps are measured by others."""
    with scoped(_HELPERS, helpers):
        yield


def in_shares() -> bool:
    """Whether sweeps are divided: they are kept, or others help."""
    return kept_run() is not None or _HELPERS.get() is not None


def measured_in_shares(
    recording: Recording,
    variants: Sequence[Variant],
    metrics: Sequence[AnyMetric],
    exact: bool,
    here: Measure,
) -> SweepResult:
    """Measure what is not kept already, and put all of it together."""
    run, helpers = kept_run(), _HELPERS.get()
    helpers = helpers if helpers is not None and helpers.serves(recording) else None
    at_once = variants_at_once(recording)
    kept: KeptSweep | None = None
    if run is not None:
        told = told_apart(recording, named_metrics(metrics, recording), variants, exact)
        if measures_nothing():
            return stacked(kept_alone(run, told))
        kept = run.next_sweep(told, len(variants), at_once)
    ranges = kept.ranges if kept is not None else divided(len(variants), at_once)
    if not ranges:
        return here(variants, (0, 1))
    found = {number: one for number in range(len(ranges)) if kept and (one := kept.read(number))}
    left = [(n, [variants[i] for i in rows]) for n, rows in enumerate(ranges) if n not in found]
    own = [job for job in left if helpers is None or any(map(_has_modules, job[1]))]
    given = [job for job in left if job not in own]
    ways = [_measured_here(own, here, len(ranges))]
    if helpers is not None and given:
        ways.append(helpers.measured(recording, given, metrics, exact))
    for number, result in chain.from_iterable(ways):
        if kept is not None:
            kept.write(number, result)
            share_was_kept()
        found[number] = result
    return stacked([found[number] for number in range(len(ranges))])


def _has_modules(variant: Variant) -> bool:
    """Whether a route passes modules that only this process has: a donor's block, a rounded one."""
    return variant.route is not None and any(stop.module is not None for stop in variant.route.stops)


def _measured_here(
    left: Sequence[tuple[int, Sequence[Variant]]], here: Measure, count: int
) -> Iterator[tuple[int, SweepResult]]:
    for number, some in left:
        yield number, here(some, (number, count))


def variants_at_once(recording: Recording) -> int:
    """Variants of a share: several full batches; of a streamed model as many as may be under way, since each
    share passes the whole file."""
    streamed = recording.model.streamed
    most = live_rows(recording)
    if streamed is not None and not streamed.store.all_stay:
        return most
    return min(most, max(LEAST, BATCHES * batch_rows(recording)))


def stacked(parts: Sequence[SweepResult]) -> SweepResult:
    """What several groups of variants of one recording gave, as one result."""
    first = parts[0]
    return SweepResult(
        {name: torch.cat([part.values[name] for part in parts]) for name in first.values},
        first.clean,
        first.control,
        first.weights,
        first.units,
        Work.joined([part.work for part in parts]),
        max(part.deviation for part in parts),
        list(dict.fromkeys(note for part in parts for note in part.notes)),
    )
