"""Ctrl-C in the middle of long work: a step is finished first, and who stops says what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StoppedError(KeyboardInterrupt):
    """Ctrl-C, with a sentence that says what is kept and how to go on."""


@contextmanager
def finishing_steps(alone: bool = True) -> Iterator[Callable[[], bool]]:
    """While inside, the first Ctrl-C is noted, for whoever asks between two steps; a second one stops at
    once.

    In a thread other than the main one, which hears of no Ctrl-C, nothing is noted; nor by one of several
    processes (not `alone`), since they would not stop behind the same step.
    """
    asked: list[int] = []
    if not alone or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def kept_when_stopped(sentence: Callable[[], str]) -> Iterator[None]:
    """Say what is kept where Ctrl-C comes while inside; who stopped further in has said it already."""
    try:
        yield
    except StoppedError:
        raise
    except KeyboardInterrupt as error:
        raise StoppedError(sentence()) from error
