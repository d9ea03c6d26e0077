"""Whether something is kept between runs, and where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from regraft.core.files import place_of
from regraft.core.scoped import scoped

_kept: ContextVar[bool] = ContextVar("regraft_cache", default=True)


def cache_is_kept() -> bool:
    """Whether something may be read from and written to the cache."""
    return _kept.get()


@contextmanager
def without_cache() -> Iterator[None]:
    """While inside, nothing is read from the cache or written to it."""
    with scoped(_kept, False):
        yield


def cache_folder() -> Path:
    """Where it is kept: `$REGRAFT_CACHE`, or `~/.cache/regraft`.

    Raises:
        RunFolderError: the home that `$REGRAFT_CACHE` names is nobody's.
    """
    return place_of(os.environ.get("REGRAFT_CACHE") or "~/.cache/regraft")
