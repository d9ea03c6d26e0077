"""One thread kept quiet: what it logs and prints vanishes, what other threads say comes through."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any, TextIO

_GUARD = Lock()
_QUIET: Counter[int] = Counter()
"""How deep each thread is in `silent`."""


class _OtherThreads(logging.Filter):
    """Lets pass what is logged by threads that are not kept quiet."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread not in _QUIET


class _Stream:
    """A stream that swallows what quiet threads write, and is the stream itself for all others."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text) if get_ident() in _QUIET else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_FILTER = _OtherThreads()
_OVER: dict[str, _Stream] = {}
"""Our streams while any thread is quiet, by the name that they have in `sys`."""


@contextmanager
def silent() -> Iterator[None]:
    """While inside, nothing that this thread logs or prints reaches the user; entering again costs
    nothing."""
    me, filtered = get_ident(), _handlers()
    with _GUARD:
        if not _QUIET:
            for name in ("stdout", "stderr"):
                _OVER[name] = _Stream(getattr(sys, name))
                setattr(sys, name, _OVER[name])
        _QUIET[me] += 1
        for handler in filtered:
            handler.addFilter(_FILTER)
    try:
        yield
    finally:
        with _GUARD:
            _QUIET[me] -= 1
            if not _QUIET[me]:
                del _QUIET[me]
            if not _QUIET:
                for name, ours in _OVER.items():
                    if getattr(sys, name) is ours:
                        setattr(sys, name, ours.stream)
                _OVER.clear()
                for handler in _handlers():
                    handler.removeFilter(_FILTER)


def _handlers() -> list[logging.Handler]:
    """Every handler that there is, and the one that speaks where there is none."""
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    last = [logging.lastResort] if logging.lastResort is not None else []
    return [*logging.root.handlers, *last, *(handler for one in known for handler in one.handlers)]
