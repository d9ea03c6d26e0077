"""One opened model, and what all pages ask of it: they see one state, whoever changed it.

Questions are answered one at a time, in the order in which they come, each as a change of what stands then:
none is lost, whoever else asks. One that cannot be answered leaves what was there before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from regraft.core.registry import REFUSALS
from regraft.export.graft_folder import attach
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.modules.graft_kinds import Graft
from regraft.modules.transcoder import Transcoders
from regraft.studio.code import code
from regraft.studio.limits import Limits, sentence
from regraft.studio.maps import PartMap, feature_map, head_map, neuron_map
from regraft.studio.opening import open_grafted, open_plain
from regraft.studio.readings import (
    Asked,
    PromptReading,
    StaleError,
    check_plays,
    read,
    recorded,
    variant_of,
    write,
)
from regraft.studio.touches import Touch, check_touch

PROMPT = "The capital of France is"
"""What a page shows first."""
KEPT = 8
"""Recordings that are kept: prompts come and go."""


class Bench:
    """A model on the bench."""

    def __init__(self, source: str, limits: Limits, changed: Callable[[], None], written: Callable[[], None]):
        self.source, self.limits = source, limits
        self.changed, self.was_written = changed, written
        opened = open_plain(source)
        self.plain = opened.model
        self.model: Model = self.plain
        self.grafts: dict[Path, Graft] = dict(opened.grafts)
        self.on: tuple[Path, ...] = ()
        self.asked = Asked(PROMPT)
        self.reading: PromptReading | None = None
        self.program = ""
        """The Python lines that do what is shown."""
        self.texts: dict[str, str] = {"clean": "", "changed": ""}
        self.number = self.busy = 0
        self.why_not = ""
        self._lock, self._placed = asyncio.Lock(), ExitStack()
        self._recordings: dict[str, Recording] = {}
        self._writing: asyncio.Task[None] | None = None
        try:
            check_plays(self.model)
        except ValueError as error:
            self.why_not = str(error)
        if opened.grafts and not self.why_not:
            self.on = tuple(opened.grafts)
            self._place(self.on)

    async def ask(self, change: Callable[[Asked], Asked]) -> str:
        """Ask for something else than now; returns why not, "" where it was answered."""
        if self.why_not:
            return self.why_not
        if self.busy >= self.limits.asked:
            return f"the model has {self.busy} questions to answer: wait a moment"
        self.number += 1
        number = self.number
        self.busy += 1
        try:
            async with self._lock:
                try:
                    await asyncio.to_thread(self._answer, change(self.asked))
                except REFUSALS as error:
                    return sentence(error)
        finally:
            self.busy -= 1
            self.changed()
        self._write_on(number)
        return ""

    def _answer(self, asked: Asked) -> None:
        reading = read(self.model, asked, self.limits, self.recording)
        source = (self.source, self.on)
        clean, other = self._recorded(asked)
        program = code(source, asked, clean, other, reading.target, self.limits.written)
        self.asked, self.reading, self.program = asked, reading, program

    def _recorded(self, asked: Asked) -> tuple[Recording, Recording | None]:
        clean = self.recording(asked.prompt, "the prompt")
        return clean, self.recording(asked.second, "the second prompt") if asked.second else None

    async def touch(self, touch: Touch) -> str:
        """Add a touch; one of the same site and token that does the same takes its place."""

        def added(asked: Asked) -> Asked:
            others = [one for one in asked.touches if one.target != touch.target]
            return replace(asked, touches=(*others, touch))

        try:
            check_touch(touch, self.model, len(self.reading.tokens) if self.reading else 1)
        except ValueError as error:
            return str(error)
        return await self.ask(added)

    def recording(self, text: str, what: str) -> Recording:
        """A prompt's clean run, kept while the model is what it is."""
        if text not in self._recordings:
            while len(self._recordings) >= KEPT:
                self._recordings.pop(next(iter(self._recordings)))
            self._recordings[text] = recorded(self.model, text, self.limits, what)
        return self._recordings[text]

    async def parts(self, kind: str, position: int) -> PartMap:
        """A map of heads, neurons or features at a token.

        Raises:
            ValueError: there are none here.
        """
        async with self._lock:
            return await asyncio.to_thread(self._parts, kind, position)

    def _parts(self, kind: str, position: int) -> PartMap:
        clean = self.recording(self.asked.prompt, "the prompt")
        position = min(position, clean.positions - 1)
        if kind == "heads":
            return head_map(clean, position)
        if kind == "neurons":
            return neuron_map(clean, position)
        on = [self.grafts[folder] for folder in self.on]
        adapters = next((graft for graft in on if isinstance(graft, Transcoders)), None)
        if adapters is None:
            raise ValueError(
                "no transcoder adapters are switched on: switch a folder of them on under Models"
            )
        return feature_map(clean, adapters, position)

    def _write_on(self, number: int) -> None:
        self.texts = {"clean": "", "changed": ""}
        self._writing = asyncio.get_running_loop().create_task(self._write(number))

    async def _write(self, number: int) -> None:
        """Both continuations, told token by token; given up where something else is asked for."""
        loop, asked = asyncio.get_running_loop(), self.asked

        def heard_of(which: str) -> Callable[[int], None]:
            def heard(token: int) -> None:
                if number != self.number:
                    raise StaleError
                loop.call_soon_threadsafe(self._wrote, number, which, self.model.token_text(token))

            return heard

        def written(which: str) -> str:
            clean, other = self._recorded(asked)
            variant = variant_of(asked, clean, other) if which == "changed" else None
            return write(clean, variant, self.limits.written, heard_of(which))

        for which in ("clean", "changed") if asked.changes else ("clean",):
            async with self._lock:
                if number != self.number:
                    return
                try:
                    text = await asyncio.to_thread(written, which)
                except StaleError:
                    return
                except REFUSALS as error:
                    text = f"({sentence(error)})"
            if number == self.number:
                self.texts[which] = text
                self.was_written()

    def _wrote(self, number: int, which: str, piece: str) -> None:
        if number == self.number:
            self.texts[which] += piece
            self.was_written()

    async def switch(self, folder: Path, on: bool) -> str:
        """Put a graft's parts in their places, or the model's own back; returns why not."""
        wanted = [*(f for f in self.on if f != folder), *([folder] if on else [])]
        async with self._lock:
            self.number += 1
            try:
                await asyncio.to_thread(self._place, wanted)
            except REFUSALS as error:
                await asyncio.to_thread(self._place, list(self.on))
                self.changed()
                return sentence(error)
            self.on = tuple(wanted)
        return await self.ask(self._still_there)

    def _still_there(self, asked: Asked) -> Asked:
        """What is asked, without touches of features that went with their adapters."""
        length = len(self.reading.tokens) if self.reading else 1
        kept = []
        for touch in asked.touches:
            with suppress(ValueError):
                check_touch(touch, self.model, length)
                kept.append(touch)
        return replace(asked, touches=tuple(kept))

    def _place(self, folders: Sequence[Path]) -> None:
        """Open the live model again with these grafts in it: what was proved of it without them need not hold
        with them."""
        with self.plain.held():
            self._placed.close()
        # A recording belongs to the model that it was made of, and each opening makes another.
        self.model, self._recordings = self.plain, {}
        for folder in folders:
            if folder not in self.grafts:
                self.grafts[folder] = attach(folder, self.plain)
        grafts = [self.grafts[folder] for folder in folders]
        if grafts:
            self.model, take_out = open_grafted(self.plain, grafts)
            self._placed.callback(take_out)

    async def settled(self) -> None:
        """Wait until nothing is written any more."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def close(self) -> None:
        """Leave the model as it was opened, and stop what is written."""
        self.number += 1
        await self.settled()
        async with self._lock:
            with self.plain.held():
                self._placed.close()
