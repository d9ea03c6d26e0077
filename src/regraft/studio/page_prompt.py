"""The prompt page: tokens, the live lens, what is touched, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from nicegui import ui

from regraft.studio.bench import Bench
from regraft.studio.looks import Look
from regraft.studio.maps import PartMap
from regraft.studio.places import Places
from regraft.studio.readings import Asked, Effect
from regraft.studio.themed import lens_figure, part_figure, themed
from regraft.studio.touches import WITH_AMOUNT, WORDS, Does, Touch

MAPS = {"lens": "Lens", "heads": "Heads", "neurons": "Neurons", "features": "Features"}
AROUND, COLUMN = 130, 58
"""Pixels beside a map, and of a column of it at least."""
SITES = ("resid_post", "attn_out", "mlp_out")
"""What of a block can be touched by its button."""


class PromptPage:
    """One browser's view of a bench: the state is the bench's, only what is chosen is its own."""

    def __init__(self, bench: Bench, look: Look, places: Places):
        self.bench, self.look, self.places = bench, look, places
        self.site, self.position = "", 0
        self.every = False
        self.map, self.shown_changed = "lens", True
        self.parts: PartMap | None = None
        self.no_map = ""
        self._dragged: int | None = None
        self._shown: dict[str, Any] = {}

    def build(self) -> None:
        """Put the page together."""
        with ui.row().classes("w-full items-start gap-4"):
            with ui.column().classes("rg-wide gap-2"):
                self._inputs()
                self.chips()
                self._map_choice()
                self.map_shown()
            with ui.column().classes("rg-side gap-2"):
                self.touching()
                self.changes()
                self.effects()
                self.next_tokens()
                self.continuations()
        self.blocks()
        self.program()
        self._shown = self._keys()

    async def ask(self, change: Callable[[Asked], Asked]) -> None:
        """Ask the bench, and say why not where it does not answer."""
        why = await self.bench.ask(change)
        if why:
            self.look.say(why)

    def _inputs(self) -> None:
        asked = self.bench.asked

        async def read() -> None:
            await self.ask(
                lambda now: replace(now, prompt=prompt.value, second=second.value, answer=answer.value)
            )

        prompt = ui.textarea("Prompt", value=asked.prompt).props("autogrow outlined dense data-testid=prompt")
        prompt.classes("w-full")
        with ui.row().classes("w-full no-wrap items-center gap-2"):
            second = ui.input("Second prompt", value=asked.second).props("outlined dense data-testid=second")
            second.classes("grow")
            answer = ui.input("Answer token", value=asked.answer).props("outlined dense data-testid=answer")
            answer.classes("w-32")
            ui.button("Read", on_click=read).props("data-testid=read")
        for field in (prompt, second, answer):
            field.on("keydown.enter.exact.prevent", read)
        self.fields, self._texts = (prompt, second, answer), _texts(asked)

    @ui.refreshable_method
    def chips(self) -> None:
        """The prompt's tokens: a click chooses one."""
        if self.bench.reading is None:
            ui.label(self.bench.why_not or "Reading …").props("data-testid=why")
            return
        with ui.row().classes("gap-1 rg-chips"):
            for at, token in enumerate(self.bench.reading.tokens):
                chosen = at == self.position
                chip = ui.button(token or "∅", on_click=partial(self._choose, at))
                chip.props(f"no-caps dense size=sm unelevated data-testid=chip-{at}"
                           + (" color=primary" if chosen else " flat outline"))  # fmt: skip
                chip.tooltip(f"token {at}")

    async def _choose(self, position: int) -> None:
        self.position = position
        self._show_again()
        if self.map != "lens":
            await self.draw()

    def _map_choice(self) -> None:
        async def choose(event: Any) -> None:
            self.map = event.value
            await self.draw()

        async def changed(event: Any) -> None:
            self.shown_changed = event.value
            await self.draw()

        with ui.row().classes("items-center gap-2"):
            toggle = ui.toggle(MAPS, value=self.map, on_change=choose).props("dense no-caps data-testid=map")
            toggle.props("unelevated")
            ui.switch("under the change", value=True, on_change=changed).props("data-testid=under")

    async def draw(self) -> None:
        """Read the map that is chosen, and show it."""
        self.parts, self.no_map = None, ""
        if self.map != "lens" and self.bench.reading is not None:
            try:
                self.parts = await self.bench.parts(self.map, self.position)
            except ValueError as error:
                self.no_map = str(error)
        self.map_shown.refresh()

    @ui.refreshable_method
    def map_shown(self) -> None:
        """The lens, or a map of parts at the chosen token."""
        reading = self.bench.reading
        if reading is None:
            return
        if self.no_map:
            ui.label(self.no_map).props("data-testid=no-map")
            return
        if self.parts is not None:
            figure, sites = part_figure(self.parts), self.parts.sites
        else:
            changed = self.shown_changed and reading.lens_changed
            figure, sites = lens_figure(changed or reading.lens, reading.tokens), None
        columns = len(reading.tokens) if sites is None else len(sites[0])
        with ui.element("div").classes("rg-scroll"):
            shown = ui.plotly(themed(figure, self.look.dark)).props("data-testid=figure")
            # A word needs its room: a narrow page scrolls the map instead of writing small.
            shown.classes("w-full").style(f"min-width: {AROUND + COLUMN * columns}px")
        shown.on("plotly_click", partial(self._clicked, sites), ["points"])

    def _clicked(self, sites: list[list[str]] | None, event: Any) -> None:
        """A cell was clicked: it is what the next touch touches."""
        match event.args:
            case {"points": [{"pointIndex": [int(row), int(column)]}, *_]}:
                pass
            case {"points": [{"pointNumber": [int(row), int(column)]}, *_]}:
                pass
            case _:
                return
        order, reading = self._order(), self.bench.reading
        if sites is not None:
            if 0 <= row < len(sites) and 0 <= column < len(sites[row]):
                self.pick(sites[row][column])
        elif reading is not None and 0 <= row <= len(order) and 0 <= column < len(reading.tokens):
            self.position = column
            self.pick("0.resid_pre" if row == 0 else f"{order[row - 1]}.resid_post")

    def pick(self, site: str) -> None:
        """Choose what the next touch touches."""
        if site:
            self.site = site
            self._show_again()

    @ui.refreshable_method
    def touching(self) -> None:
        """What is done to the part that was clicked."""
        if self.bench.reading is None:
            return
        with ui.card().classes("w-full gap-2").props("flat bordered"):
            if not self.site:
                ui.label("Click a cell, a head, a neuron or a block to change it.").classes("rg-soft")
                return
            token = self.bench.reading.tokens[min(self.position, len(self.bench.reading.tokens) - 1)]
            ui.label(self.site).classes("rg-site").props("data-testid=site")
            where = {False: f"at token {self.position} {token!r}", True: "at every token"}
            ui.select(
                where, value=self.every, on_change=lambda event: setattr(self, "every", event.value)
            ).props("dense outlined data-testid=where").classes("w-full")
            does = ui.select(dict(WORDS), value="zero").props("dense outlined data-testid=does")
            does.classes("w-full")
            with ui.row().classes("w-full no-wrap gap-2"):
                amount = ui.number("times", value=2.0, format="%g").props("dense outlined data-testid=amount")
                amount.bind_visibility_from(does, "value", lambda value: value in WITH_AMOUNT)
                named = {"token": ui.input("token", value=" Paris"), "vector": ui.input("file")}
                for kind, entry in named.items():
                    entry.props(f"dense outlined data-testid={kind}")
                    entry.bind_visibility_from(does, "value", kind.__eq__)

            async def apply() -> None:
                given = named[does.value].value or "" if does.value in named else ""
                await self._touch(does.value or "zero", amount.value, given)

            ui.button("Change it", on_click=apply).props("data-testid=apply")

    async def _touch(self, does: Does, amount: float | None, given: str) -> None:
        """Change the chosen part; a file lies in the folders of the studio, or is not read."""
        try:
            named = str(self.places.inside(given)) if does == "vector" and given else given
        except ValueError as error:
            self.look.say(str(error))
            return
        position = None if self.every else self.position
        touch = Touch(self.site, does, position, 1.0 if amount is None else float(amount), named)
        why = await self.bench.touch(touch)
        if why:
            self.look.say(why)

    @ui.refreshable_method
    def changes(self) -> None:
        """Every change that stands, each of which can be taken back."""
        asked = self.bench.asked
        if not asked.changes:
            return
        with ui.column().classes("w-full gap-1").props("data-testid=changes"):
            for number, touch in enumerate(asked.touches):
                with ui.row().classes("w-full no-wrap items-center justify-between rg-change"):
                    ui.label(str(touch))
                    ui.button(icon="close", on_click=partial(self._drop, touch)).props(
                        f"flat dense size=sm aria-label=undo data-testid=drop-{number}"
                    )
            ui.button("Undo everything", on_click=self._undo).props("flat dense no-caps data-testid=undo")

    async def _drop(self, touch: Touch) -> None:
        await self.ask(
            lambda asked: replace(asked, touches=tuple(one for one in asked.touches if one != touch))
        )

    async def _undo(self) -> None:
        await self.ask(lambda asked: replace(asked, touches=(), order=None))

    @ui.refreshable_method
    def effects(self) -> None:
        """What the change does, in numbers with units."""
        reading = self.bench.reading
        if reading is None:
            return
        ui.label(f"Answer: {reading.answer!r}").classes("rg-soft").props("data-testid=target")
        with ui.element("table").classes("rg-numbers").props("data-testid=effects"):
            for effect in reading.effects:
                _row(effect)
        for note in reading.notes:
            ui.label(note).classes("rg-soft")

    @ui.refreshable_method
    def next_tokens(self) -> None:
        """The likeliest next tokens, clean and changed."""
        reading = self.bench.reading
        if reading is None:
            return
        with ui.row().classes("w-full no-wrap gap-4 items-start"):
            for title, listed in (("next", reading.next_clean), ("changed", reading.next_changed)):
                if not listed:
                    continue
                with ui.column().classes("gap-0 grow").props(f"data-testid=next-{title}"):
                    ui.label(title).classes("rg-soft")
                    for token, share in listed:
                        ui.label(f"{share:6.1%} {token!r}").classes("rg-mono")

    @ui.refreshable_method
    def continuations(self) -> None:
        """What the model writes on, token by token."""
        for which, title in (("clean", "It goes on"), ("changed", "Changed, it goes on")):
            if which == "changed" and not self.bench.asked.changes:
                continue
            ui.label(title).classes("rg-soft")
            ui.label(self.bench.texts[which] or "…").classes("rg-text").props(f"data-testid=text-{which}")

    @ui.refreshable_method
    def blocks(self) -> None:
        """The route: blocks in order, to be dragged, skipped and repeated."""
        if self.bench.reading is None:
            return
        order = self._order()
        ui.label("Blocks, in the order in which they run: drag one, or click it").classes("rg-soft")
        with ui.row().classes("gap-1").props("data-testid=blocks"):
            for place, block in enumerate(order):
                tile = ui.button(str(block)).props(
                    f"outline dense no-caps draggable=true data-testid=block-{place}"
                )
                tile.on("dragstart", partial(self._drag, place))
                tile.on("dragover.prevent", lambda: None)
                tile.on("drop.prevent", partial(self._drop_block, order, place))
                with tile, ui.menu():
                    self._block_menu(order, place)

    def _block_menu(self, order: list[int], place: int) -> None:
        """Of the order that is shown: the bench may have another one by now."""
        block = order[place]
        for name in SITES:
            ui.menu_item(f"Touch {block}.{name}", partial(self.pick, f"{block}.{name}")).props(
                f"data-testid=pick-{name}"
            )
        for text, other in (
            ("Skip it", _without(order, place)),
            ("Repeat it", _repeated(order, place)),
            ("Move it left", _moved(order, place, place - 1)),
            ("Move it right", _moved(order, place, place + 1)),
        ):
            named = text.lower().replace(" it", "").replace(" ", "-")
            ui.menu_item(text, partial(self._reorder, other)).props(f"data-testid={named}")

    def _order(self) -> list[int]:
        return list(self.bench.asked.order or range(len(self.bench.model.blocks)))

    def _drag(self, place: int) -> None:
        self._dragged = place

    async def _drop_block(self, order: list[int], place: int) -> None:
        dragged, self._dragged = self._dragged, None
        if dragged is not None and dragged != place and dragged < len(order):
            await self._reorder(_moved(order, dragged, place))

    async def _reorder(self, order: list[int]) -> None:
        plain = order == list(range(len(self.bench.model.blocks)))
        await self.ask(lambda asked: replace(asked, order=None if plain else tuple(order)))

    @ui.refreshable_method
    def program(self) -> None:
        """The same in Python."""
        if self.bench.reading is None:
            return
        with ui.expansion("The same in Python").classes("w-full").props("data-testid=python"):
            ui.code(self.bench.program, language="python").classes("w-full")

    async def show(self) -> None:
        """Show what the bench has now, whoever changed it."""
        texts = _texts(self.bench.asked)
        for field, text, before in zip(self.fields, texts, self._texts, strict=True):
            if text != before:  # what somebody types here stays, whatever else is changed elsewhere
                field.set_value(text)
        self._texts = texts
        count = len(self.bench.reading.tokens) if self.bench.reading else 1
        self.position = min(self.position, count - 1)
        for part in (self.effects, self.next_tokens, self.continuations):
            part.refresh()
        self._show_again()
        await self.draw()

    def _show_again(self) -> None:
        """Make what is clicked, typed into and opened anew where it would be another: a menu that is open, or
        a click that is under way, would be lost with what it belongs to."""
        now = self._keys()
        parts = {"chips": self.chips, "touching": self.touching, "changes": self.changes,
                 "blocks": self.blocks, "program": self.program}  # fmt: skip
        for name, what in now.items():
            if self._shown[name] != what:
                self._shown[name] = what
                parts[name].refresh()

    def _keys(self) -> dict[str, Any]:
        """What the parts that are clicked, typed into and opened show."""
        bench = self.bench
        tokens = None if bench.reading is None else bench.reading.tokens
        return {
            "chips": (tokens, bench.why_not, self.position),
            "touching": (tokens, self.site, self.position),
            "changes": (bench.asked.touches, bench.asked.changes),
            "blocks": (tokens is None, self._order()),
            "program": (tokens is None, bench.program),
        }


def _texts(asked: Asked) -> tuple[str, str, str]:
    return asked.prompt, asked.second, asked.answer


def _row(effect: Effect) -> None:
    with ui.element("tr"):
        for text in (effect.name, f"{effect.clean:.3g}"):
            with ui.element("td"):
                ui.label(text)
        with ui.element("td"):
            ui.label("" if effect.changed is None else f"→ {effect.changed:.3g}").classes("rg-changed")
        with ui.element("td"):
            ui.label(effect.unit).classes("rg-soft")


def _without(order: list[int], place: int) -> list[int]:
    return [*order[:place], *order[place + 1 :]]


def _repeated(order: list[int], place: int) -> list[int]:
    return [*order[: place + 1], *order[place:]]


def _moved(order: list[int], place: int, to: int) -> list[int]:
    rest = _without(order, place)
    to = max(0, min(to, len(rest)))
    return [*rest[:to], order[place], *rest[to:]]
