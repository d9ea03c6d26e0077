"""What a studio is made of, whoever looks at it: models on benches, jobs, folders, and how many pages are
open."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from nicegui import Event

from regraft.studio.bench import Bench
from regraft.studio.job_queue import Jobs
from regraft.studio.limits import Limits, RefusedError
from regraft.studio.opening import check_source
from regraft.studio.places import Places

LOOKED_AWAY = 5.0
"""Seconds without any page after which everything stops: as long as a page needs that is loaded again."""


class Studio:
    """The state that all pages share."""

    def __init__(self, runs: Path, folders: Sequence[Path] = (), limits: Limits | None = None):
        self.limits = limits or Limits()
        self.places = Places(runs, folders)
        self.read, self.written, self.worked = Event(), Event(), Event()
        """Told when a reading, a continuation, or a job has changed."""
        self.benches: dict[str, Bench] = {}
        self.jobs = Jobs(self.places, self.limits, self.worked.emit)
        self.pages = 0
        self._opening = asyncio.Lock()
        self._leaving: asyncio.Task[None] | None = None

    async def open(self, name: str) -> Bench:
        """The bench of a model, opened where it is not yet.

        Raises:
            RefusedError: as many models are open as may be, or the folder lies outside.
            ValueError: it cannot be opened, with the reason.
        """
        source = self.places.model(name)
        async with self._opening:
            if source in self.benches:
                return self.benches[source]
            if len(self.benches) >= self.limits.models:
                raise RefusedError(
                    f"{len(self.benches)} models are open, as many as may be: close one under Models"
                )
            await asyncio.to_thread(check_source, source, self.places)
            bench = await asyncio.to_thread(Bench, source, self.limits, self.read.emit, self.written.emit)
            self.benches[source] = bench
        await bench.ask(lambda asked: asked)
        return bench

    async def close(self, source: str) -> None:
        """Close a model.

        Raises:
            RefusedError: it is the only one.
        """
        if len(self.benches) < 2:
            raise RefusedError("this is the only model that is open: open another one first")
        bench = self.benches.pop(source, None)
        if bench is not None:
            await bench.close()
        self.read.emit()

    def came(self) -> None:
        """A page was opened.

        Raises:
            RefusedError: as many are open as may be.
        """
        if self.pages >= self.limits.pages:
            raise RefusedError(f"{self.pages} pages are open, as many as may be: close one")
        self.pages += 1

    def went(self) -> None:
        """A page was closed; behind the last one nothing goes on."""
        self.pages -= 1
        if not self.pages:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        await asyncio.sleep(LOOKED_AWAY)
        if self.pages:
            return
        for bench in self.benches.values():
            bench.number += 1  # what is written is not wanted any more
        await self.jobs.leave()

    async def end(self) -> None:
        """The studio ends: nothing is left running, and models are as they were opened."""
        for bench in self.benches.values():
            await bench.close()
        await self.jobs.leave()
