"""What the chapters of a report read, where the user has a say in it: prompts, a text, pairs, and how
many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regraft.core.defaults import REPORT_COUNT
from regraft.core.registry import experiments
from regraft.data.own_texts import given_prompts
from regraft.model.model import Model

LEAST = REPORT_COUNT
"""Passages of a text that are read, and prompts that suit the model that a chapter measures at most, where no
number is asked for: a report of all chapters in the time in which one reads the first."""
SAMPLE = 6
"""Tokens that derivatives are taken at, fewer than linearity takes by itself: it is the longest chapter."""
HANDS_ON = ("correlations",)
"""Chapters that read no prompts themselves: what they gather must have been measured on as many."""


@dataclass(frozen=True)
class Reading:
    """The user's prompts (or the file that holds them), running text, pairs for patching, and how many
    prompts to measure."""

    prompts: tuple[str, ...] = ()
    prompts_file: str = ""
    text: str = ""
    pairs: str = ""
    count: int = 0

    def options(self, name: str, model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
        """What one chapter is run with because of it, and what the command that makes it again says instead.

        A count larger than the number of the user's prompts is that number.
        """
        known = {parameter.name: parameter.default for parameter in experiments()[name].parameters}
        run: dict[str, Any] = {}
        told: dict[str, Any] = {}
        if "sample" in known:
            run["sample"] = told["sample"] = SAMPLE
        kept = self._kept(model, self.count or LEAST) if known.keys() & {"prompts", "prompt"} else []
        if self.count and "count" in known:
            run["count"] = told["count"] = (
                min(self.count, len(kept)) if kept and "prompts" in known else self.count
            )
        elif not kept and (known.get("count", 0) > LEAST or name in HANDS_ON):
            run["count"] = told["count"] = LEAST
        if kept and "prompts" in known:
            run["prompts"] = kept
            told |= self._as_told(model, kept, "count" in known)
        elif kept:
            run["prompt"] = told["prompt"] = kept[0]
        if self.text and "corpus" in known:
            run["corpus"] = told["corpus"] = self.text
        if self.pairs and {"pairs", "clean"} <= known.keys():
            run["pairs"] = told["pairs"] = self.pairs
        return run, told

    def _kept(self, model: Model, count: int) -> list[str]:
        """The user's prompts, as many as are asked for."""
        own = given_prompts(model, self.prompts, self.prompts_file, self.text, count)
        return own[: self.count] if self.count else own

    def _as_told(self, model: Model, kept: list[str], counts: bool) -> dict[str, Any]:
        """The options that make a command read just these prompts: where they come from if that is enough,
        else themselves.

        A command that counts prompts is told how many: by itself it reads all of a file, and another number
        of passages.
        """
        way = (
            {"prompts_file": self.prompts_file}
            if self.prompts_file
            else {"text": self.text}
            if self.text
            else {}
        )
        if way and counts:
            return {**way, "count": len(kept)}
        return (
            way
            if way and kept == given_prompts(model, None, self.prompts_file, self.text, LEAST)
            else {"prompts": kept}
        )
