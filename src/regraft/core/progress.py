"""Say how far along a long piece of work is, to whoever listens.

The rooms that work call `advance`; the command line listens and draws a bar. Without a listener nothing
happens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from regraft.core.scoped import scoped

_log = logging.getLogger("regraft.progress")
Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("regraft_progress", default=None)
_teller: ContextVar[Callable[[str], None] | None] = ContextVar("regraft_teller", default=None)


def advance(work: str, done: int, total: int) -> None:
    """Tell the listener that `done` of `total` parts of `work` are done; every tenth goes to the log.

    What tells of the part at hand alone stands behind a colon: `steps: loss 1.2`.
    """
    if total and (done >= total or 10 * done // total > 10 * (done - 1) // total):
        _log.info("%s: %s of %s", work, done, total)
    listener = _listener.get()
    if listener is not None:
        listener(work, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While inside, `listener` hears of all progress."""
    with scoped(_listener, listener):
        yield


def tell(sentence: str) -> None:
    """Say what work is about to begin, to the log and to whoever listens to sentences."""
    _log.info("%s", sentence)
    teller = _teller.get()
    if teller is not None:
        teller(sentence)


@contextmanager
def telling(teller: Callable[[str], None]) -> Iterator[None]:
    """While inside, `teller` is given what is told."""
    with scoped(_teller, teller):
        yield
