"""What a run that is under way found so far: the same experiment again, over what is kept of its sweeps.

Whoever watches a run is called after each share that is kept, and may let the experiment run once more inside
`only_kept`: nothing is measured there, and a variant that is still to come has no value (NaN). So the figure
that grows is the experiment's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch

from regraft.core.scoped import scoped
from regraft.sweeps.kept_sweeps import KeptRun
from regraft.sweeps.sweep_result import SweepResult


class NotMeasuredError(ValueError):
    """Nothing of a sweep is kept yet, so that no result can be told so far."""


_ONLY_KEPT: ContextVar[bool] = ContextVar("regraft_only_kept", default=False)
_WATCHING: ContextVar[Callable[[], None] | None] = ContextVar("regraft_watching", default=None)


@contextmanager
def only_kept() -> Iterator[None]:
    """While inside, sweeps measure nothing: what is kept of them is their result, NaN elsewhere."""
    with scoped(_ONLY_KEPT, True), scoped(_WATCHING, None):
        yield


@contextmanager
def watching(heard: Callable[[], None]) -> Iterator[None]:
    """While inside, `heard` is called whenever a share of a sweep was kept."""
    with scoped(_WATCHING, heard):
        yield


def measures_nothing() -> bool:
    """Whether sweeps are answered from what is kept alone."""
    return _ONLY_KEPT.get()


def check_tellable(kept: bool) -> None:
    """Make sure that a sweep is kept, where nothing is to be measured.

    Raises:
        NotMeasuredError: it is not.
    """
    if measures_nothing() and not kept:
        raise NotMeasuredError("this sweep is not kept, so nothing of it can be told so far")


def share_was_kept() -> None:
    """Tell whoever watches."""
    heard = _WATCHING.get()
    if heard is not None:
        heard()


def kept_alone(run: KeptRun, told: str) -> list[SweepResult]:
    """The shares of the sweep that a run comes to next, NaN where they are still to be measured.

    Raises:
        NotMeasuredError: none of this sweep is there yet.
    """
    sweep = run.there(told)
    found = [] if sweep is None else [sweep.read(share) for share in range(len(sweep.ranges))]
    first = next((one for one in found if one is not None), None)
    if sweep is None or first is None:
        raise NotMeasuredError("nothing of this sweep is measured yet")
    return [
        _unknown(first, len(rows)) if one is None else one
        for one, rows in zip(found, sweep.ranges, strict=True)
    ]


def _unknown(like: SweepResult, count: int) -> SweepResult:
    """A share of so many variants that nothing is known of."""
    values = {
        name: torch.full((count, *value.shape[1:]), torch.nan, dtype=value.dtype)
        for name, value in like.values.items()
    }
    return replace(like, values=values)
