"""Bars that show how far along a long piece of work is; nothing but `rich` is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from regraft.core.progress import listening

Made = TypeVar("Made")


def progress_bar() -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    to = Console(stderr=True)
    return Progress(*columns, console=to, transient=True, disable=not to.is_terminal)


def with_bar(work: Callable[[], Made]) -> Made:
    """Do some work while a bar shows how far along it is."""
    with progress_bar() as bar:
        task = bar.add_task("", total=None)
        with listening(
            lambda name, done, total: bar.update(task, description=f"{name:<24}", completed=done, total=total)
        ):
            return work()
