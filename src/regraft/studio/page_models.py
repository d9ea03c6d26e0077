"""The page of models: those that are open, another one, grafts switched on and off, pages of features."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import ui

from regraft.core.registry import REFUSALS
from regraft.export.graft_description import ABOUT, read_about
from regraft.modules.graft_kinds import TRANSCODER
from regraft.studio.bench import Bench
from regraft.studio.limits import sentence
from regraft.studio.looks import Look
from regraft.studio.studio_state import Studio

DEEP = 4
"""Folders inside folders in which grafts are looked for."""


class ModelsPage:
    """One browser's view of the models."""

    def __init__(
        self, studio: Studio, bench: Bench | None, look: Look, show: Callable[[str], Awaitable[None]]
    ):
        self.studio, self.bench, self.look, self.show_model = studio, bench, look, show
        self._shown: tuple[Any, ...] = ()

    def build(self) -> None:
        """Put the page together."""
        self.listed()
        with ui.row().classes("w-full items-center gap-2"):
            name = ui.input("Folder, hub id or specimen:qwen3").props("outlined dense data-testid=model-name")
            name.classes("grow")

            async def open_it() -> None:
                await self._open(name.value or "")

            ui.button("Open", on_click=open_it).props("data-testid=open-model")
        self.grafts()
        self._shown = self._open_now()

    async def _open(self, name: str) -> None:
        try:
            bench = await self.studio.open(name)
        except REFUSALS as error:
            self.look.say(sentence(error))
            return
        await self.show_model(bench.source)

    @ui.refreshable_method
    def listed(self) -> None:
        """The models that are open."""
        for source, bench in self.studio.benches.items():
            here = self.bench is not None and source == self.bench.source
            with ui.row().classes("w-full items-center gap-2"):
                ui.button(bench.plain.name, on_click=partial(self.show_model, source)).props(
                    f"no-caps dense {'' if here else 'outline'}"
                )
                dtype = str(bench.plain.dtype).removeprefix("torch.")
                told = f"{len(bench.plain.blocks)} blocks, width {bench.plain.width}, {dtype}"
                ui.label(told).classes("rg-soft")
                if not here:
                    closes = ui.button(icon="close", on_click=partial(self._close, source))
                    closes.props("flat dense size=sm aria-label=close")
                    closes.props["data-testid"] = f"close-{bench.plain.name}"  # a name may hold spaces

    async def _close(self, source: str) -> None:
        try:
            await self.studio.close(source)
        except ValueError as error:
            self.look.say(sentence(error))

    @ui.refreshable_method
    def grafts(self) -> None:
        """Grafts in the folders of the studio, each with its switch."""
        if self.bench is None:
            return
        found = graft_folders(self.studio.places.folders)
        ui.label("Grafts in the folders of this studio" if found else
                 "There is no graft in the folders of this studio.").classes("rg-soft")  # fmt: skip
        for folder in found:
            with ui.row().classes("w-full items-center gap-2"):
                switch = ui.switch(_within(folder, self.studio.places.folders), value=folder in self.bench.on)
                switch.on_value_change(partial(self._switch, folder)).props("data-testid=graft")
                if read_about(folder)["kind"] == TRANSCODER and str(folder) not in self.studio.benches:
                    # Adapters stand in a model of their own: one model with the MLPs of another.
                    opens = ui.button("Open the model that they were trained in")
                    opens.props("flat dense no-caps data-testid=open-adapters")
                    opens.on_click(partial(self._open, str(folder)))

    async def _switch(self, folder: Path, event: Any) -> None:
        assert self.bench is not None
        if event.value == (folder in self.bench.on):
            return
        why = await self.bench.switch(folder, bool(event.value))
        if why:
            self.look.say(why)
        self.grafts.refresh()

    def show(self) -> None:
        """Show what is open now, and which grafts are on; where that is another than before, since a click on
        a button that is made anew would be lost."""
        now = self._open_now()
        if now != self._shown:
            self._shown = now
            self.listed.refresh()
            self.grafts.refresh()

    def _open_now(self) -> tuple[Any, ...]:
        on = () if self.bench is None else tuple(self.bench.on)
        return (tuple(self.studio.benches), self.bench, on, *graft_folders(self.studio.places.folders))


def graft_folders(roots: list[Path]) -> list[Path]:
    """Every folder of a graft below some folders."""
    found: list[Path] = []
    for root in roots:
        for depth in range(DEEP + 1):
            found += [file.parent for file in root.glob("*/" * depth + ABOUT)]
    return sorted({folder.resolve() for folder in found if not folder.is_symlink()})


def _within(folder: Path, roots: list[Path]) -> str:
    root = next(root for root in roots if folder.is_relative_to(root))
    return str(folder.relative_to(root.parent))
