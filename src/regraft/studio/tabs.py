"""The page: its head, and the four parts in tabs."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import Client, ui

from regraft.studio.looks import STYLE, Look
from regraft.studio.page_experiments import ExperimentsPage
from regraft.studio.page_models import ModelsPage
from regraft.studio.page_prompt import PromptPage
from regraft.studio.page_runs import RunsPage
from regraft.studio.studio_state import Studio

BEFORE = """
const { Plotly } = await import("nicegui-plotly");
const { resize } = Plotly.Plots;
Plotly.Plots.resize = plot => plot.offsetParent ? resize(plot).catch(() => plot) : Promise.resolve(plot);
return window.matchMedia("(prefers-color-scheme: dark)").matches;
"""
"""Asks for the browser's theme; and a figure in a tab or on a page that goes is not drawn to its new size, of
nothing, which plotly calls an error. This has to stand before the first figure does."""
LOADED = 30.0
"""Seconds in which a browser loads what draws figures."""


def build(studio: Studio, failed: Sequence[str]) -> None:
    """Register the page of a studio; `failed` is why the first model could not be opened."""

    @ui.page("/")
    async def index(client: Client, model: str = "") -> None:
        await client.connected()
        try:
            studio.came()
        except ValueError as error:
            ui.label(str(error))
            return
        client.on_delete(studio.went)
        look = Look(await _is_dark())
        await Tabs(studio, look, model).build(failed)


async def _is_dark() -> bool:
    try:
        return bool(await ui.run_javascript(BEFORE, timeout=LOADED))
    except TimeoutError:  # a page that went while it came
        return False


class Tabs:
    """All that one browser page shows."""

    def __init__(self, studio: Studio, look: Look, source: str):
        self.studio, self.look = studio, look
        self.bench = studio.benches.get(source) or next(iter(studio.benches.values()), None)

    async def build(self, failed: Sequence[str]) -> None:
        """Put the page together, and let it hear of what changes."""
        ui.add_css(STYLE)
        self.mode = ui.dark_mode(self.look.dark)
        studio, bench, look = self.studio, self.bench, self.look
        with ui.row().classes("w-full items-center justify-between"):
            ui.label("regraft studio").classes("text-h6")
            ui.label(bench.plain.name if bench else "no model").classes("rg-soft").props("data-testid=model")
            ui.button(icon="contrast", on_click=self._turn).props(
                "flat dense aria-label=theme data-testid=theme"
            )
        with ui.tabs().props("dense no-caps") as tabs:
            names = ("Prompt", "Experiments", "Runs", "Models")
            for name in names:
                ui.tab(name).props(f"data-testid=tab-{name.lower()}")
        self.models = ModelsPage(studio, bench, look, self._go_to)
        self.experiments = ExperimentsPage(studio, bench, look)
        self.runs = RunsPage(studio, look)
        self.prompt = PromptPage(bench, look, studio.places) if bench else None
        with ui.tab_panels(tabs, value="Prompt" if bench else "Models", keep_alive=False).classes("w-full"):
            with ui.tab_panel("Prompt"):
                if self.prompt is not None:
                    self.prompt.build()
                else:
                    ui.label("Open a model under Models.")
            with ui.tab_panel("Experiments"):
                self.experiments.build()
            with ui.tab_panel("Runs"):
                self.runs.build()
            with ui.tab_panel("Models"):
                for why in failed if bench is None else ():
                    ui.label(why).props("data-testid=failed")
                self.models.build()
        self._listen()

    def _listen(self) -> None:
        """Hear of readings, texts and jobs, whoever asked for them."""
        self.studio.read.subscribe(self._read)
        if self.prompt is not None:
            self.studio.written.subscribe(self.prompt.continuations.refresh)
        self.studio.worked.subscribe(self.experiments.show)

    async def _read(self) -> None:
        if self.bench is not None and self.bench not in self.studio.benches.values():
            ui.navigate.to("?")  # somebody has closed this page's model
            return
        if self.prompt is not None:
            await self.prompt.show()
        self.models.show()
        self.experiments.told.refresh()

    async def _turn(self) -> None:
        self.look.dark = not self.look.dark
        self.mode.value = self.look.dark
        if self.prompt is not None:
            await self.prompt.draw()
        self.experiments.show()
        self.runs.shown.refresh()

    async def _go_to(self, source: str) -> None:
        ui.navigate.to(f"?model={source}")
