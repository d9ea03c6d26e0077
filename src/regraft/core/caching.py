"""Whether completions are kept between runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_kept: ContextVar[bool] = ContextVar("regraft_cache", default=True)


def cache_is_kept() -> bool:
    """Whether something may be read from and written to the cache."""
    return _kept.get()


@contextmanager
def without_cache() -> Iterator[None]:
    """While inside, nothing is read from the cache or written to it."""
    token = _kept.set(False)
    try:
        yield
    finally:
        _kept.reset(token)
