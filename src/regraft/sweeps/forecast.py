"""What a sweep will run and hold, told before it does: rows, counted work, memory.

Shapes: n rows, B prompts, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from regraft.core.progress import tell
from regraft.core.scoped import scoped
from regraft.core.sizes import in_words
from regraft.model.parts import is_linear, out_width
from regraft.model.recording import Recording
from regraft.streaming.residency import free_now
from regraft.sweeps.plan import Work
from regraft.sweeps.recorded_layout import batch_rows, live_rows

SCORES = 4
"""Copies of the scores that are there at once while they become a metric, in float32."""


@dataclass(frozen=True)
class Forecast:
    """What one sweep will run: variants, prompts, positions, counted work, and bytes beside the model."""

    variants: int
    prompts: int
    positions: int
    work: Work
    bytes: int

    def __str__(self) -> str:
        most = self.work.planned + self.work.preparation
        return (
            f"{self.variants:,} variants of {self.prompts:,} prompts of {self.positions:,} positions:"
            f" {most:,} of {self.work.naive:,} positions through a block ({self.work.saved:.1f} times less"
            f" than one forward pass for each), about {in_words(self.bytes)} beside the model"
        )


class PlannedError(Exception):
    """A plan was asked for, and here it is: nothing is measured."""

    def __init__(self, forecast: Forecast):
        super().__init__(str(forecast))
        self.forecast = forecast


_PLANNING: ContextVar[bool] = ContextVar("regraft_planning", default=False)


@contextmanager
def planning() -> Iterator[None]:
    """While inside, the first sweep raises `PlannedError` where it would begin to measure."""
    with scoped(_PLANNING, True):
        yield


def bytes_beside(recording: Recording, variants: int, logits_at_once: int) -> int:
    """About how much a sweep holds at its highest beside the model: streams of the rows under way, what a
    block makes of the rows that go through it together, and scores.

    An estimate from shapes: the activations of a block are counted as eight times the stream and its widest
    matrix's output once more.
    """
    model = recording.model
    stream = recording.pre(0).numel()
    block = model.blocks[-1].module
    widest = max((out_width(m) for m in block.modules() if is_linear(m)), default=model.width)
    size = model.dtype.itemsize
    under_way = min(variants, live_rows(recording)) * stream * size
    together = min(variants, batch_rows(recording)) * recording.prompts * recording.positions
    return under_way + together * (8 * model.width + widest) * size + SCORES * 4 * logits_at_once


def announce(recording: Recording, variants: int, works: Sequence[Work], logits_at_once: int) -> None:
    """Tell what comes; stop there where a plan was all that was asked for.

    Raises:
        PlannedError: it was.
        ValueError: it does not fit into what is free; the sentence says by how much.
    """
    needed = bytes_beside(recording, variants, logits_at_once)
    forecast = Forecast(variants, recording.prompts, recording.positions, Work.joined(works), needed)
    if _PLANNING.get():
        raise PlannedError(forecast)
    if recording.model.streamed is not None:
        recording.model.streamed.make_room(needed)
    free = free_now(recording.model.device)
    if needed > free:
        raise ValueError(
            f"this sweep holds about {in_words(needed)} beside the model and {in_words(free)} are free,"
            f" {in_words(needed - free)} too few: give fewer or shorter prompts, or stream the model"
            " (--stream)"
        )
    tell(f"sweep: {forecast}")
