"""Routes: the sequence of blocks that a run passes through, any of them left out, exchanged, repeated, or
with another module in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import Any

MOST_STOPS = 10_000
"""Calls on a route, more than any model has blocks: an iterator that goes on beyond them does not end."""


@dataclass(frozen=True, eq=False)
class Stop:
    """One call on a route: a block, or `module` in that block's place, called with that block's arguments."""

    block: int
    module: Callable[..., Any] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Two stops with one key compute the same."""
        return (self.block, None if self.module is None else id(self.module))


@dataclass(frozen=True, eq=False)
class Route:
    """The sequence of blocks that a run passes through.

    Examples:
        >>> short = regraft.Route.skip(12, {4, 5})
        >>> [stop.block for stop in short.stops]
        [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    """

    stops: tuple[Stop, ...]
    count: int | None = None
    """Number of blocks of the models that it was made for, where it was made for a number."""

    @classmethod
    def order(cls, blocks: Iterable[int]) -> Route:
        """Blocks in the given order; any may be missing or come again.

        Raises:
            ValueError: it does not end.
        """
        stops = tuple(Stop(block) for block in islice(blocks, MOST_STOPS + 1))
        if len(stops) > MOST_STOPS:
            raise ValueError(
                f"this route goes on behind {MOST_STOPS:,} blocks and may never end: give a list of blocks"
            )
        return cls(stops)

    @classmethod
    def skip(cls, count: int, skipped: Iterable[int]) -> Route:
        """All of `count` blocks but some."""
        left_out = set(skipped)
        _within(count, left_out)
        return cls(tuple(Stop(block) for block in range(count) if block not in left_out), count)

    @classmethod
    def swap(cls, count: int, first: int, second: int) -> Route:
        """All of `count` blocks with two exchanged."""
        _within(count, (first, second))
        order = list(range(count))
        order[first], order[second] = order[second], order[first]
        return cls(tuple(Stop(block) for block in order), count)

    @classmethod
    def repeat(cls, count: int, block: int, times: int) -> Route:
        """All of `count` blocks, one of them `times` times in place (0: left out)."""
        _within(count, (block,))
        if whole_number(times, "number of times") < 0:
            raise ValueError(f"a block cannot be run {times} times: write 0 or more")
        return cls(tuple(Stop(b) for b in range(count) for _ in range(times if b == block else 1)), count)

    @classmethod
    def replace(cls, count: int, modules: Mapping[int, Callable[..., Any]]) -> Route:
        """All of `count` blocks, with other modules in some blocks' places."""
        _within(count, modules)
        return cls(tuple(Stop(block, modules.get(block)) for block in range(count)), count)


def _within(count: int, blocks: Iterable[int]) -> None:
    blocks = [whole_number(block, "block") for block in blocks]
    wrong = next((block for block in blocks if not 0 <= block < count), None)
    if wrong is not None:
        raise ValueError(f"there is no block {wrong}: there are {count} blocks, 0 to {count - 1}")


def whole_number(value: Any, noun: str) -> int:
    """A whole number that counts something.

    Raises:
        ValueError: a boolean, a fraction, or no number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{value!r} is no {noun}: write a whole number")
    return int(value)
