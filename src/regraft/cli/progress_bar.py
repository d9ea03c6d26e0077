"""Bars that show how far along a long piece of work is; nothing but `rich` is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from regraft.cli.common import common
from regraft.core.progress import listening

Made = TypeVar("Made")


def progress_bar() -> Progress:
    """Bars on a terminal, nothing elsewhere: where somebody wants no colours (`NO_COLOR`), no line is written
    over either."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    to = Console(stderr=True)
    plain = not to.is_terminal or "NO_COLOR" in os.environ or common().quiet or common().verbose
    return Progress(*columns, console=to, transient=True, disable=plain)


def with_bar(work: Callable[[], Made]) -> Made:
    """Do some work while bars show how far along it is: one for each kind of step, so that blocks go on while
    the variants of each come and go."""
    with progress_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def heard(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"{name:<24}", total=total)
            bar.update(tasks[name], completed=done, total=total)

        with listening(heard):
            return work()
