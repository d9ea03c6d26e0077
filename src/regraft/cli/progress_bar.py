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
from regraft.core.progress import listening, telling

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


class StepBars:
    """A bar for each kind of step, so that blocks go on while the variants of each come and go.

    What stands behind a colon tells of the step at hand, and is none of its kind: `steps: loss 1.2`.
    """

    def __init__(self, bar: Progress):
        self.bar = bar
        self.tasks: dict[str, TaskID] = {}

    def heard(self, name: str, done: int, total: int) -> None:
        """Show that so many of so many steps are done."""
        kind = name.partition(": ")[0]
        if kind not in self.tasks:
            self.tasks[kind] = self.bar.add_task(kind, total=total)
        self.bar.update(self.tasks[kind], description=f"{name:<24}", completed=done, total=total)

    def clear(self) -> None:
        """Take all of them away: other work begins."""
        for task in self.tasks.values():
            self.bar.remove_task(task)
        self.tasks.clear()


def with_bar(work: Callable[[], Made]) -> Made:
    """Do some work while bars show how far along it is."""
    with progress_bar() as bar, listening(StepBars(bar).heard), telling(_told_above(bar)):
        return work()


def _told_above(bar: Progress) -> Callable[[str], None]:
    """Writes each sentence once above the bars; nothing where there are none."""
    told: set[str] = set()

    def tell(sentence: str) -> None:
        if not bar.disable and sentence not in told:
            told.add(sentence)
            bar.console.print(sentence, style="dim", highlight=False)

    return tell
