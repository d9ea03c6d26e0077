"""What the chapters of a report read, where the user has a say in it: prompts, a text, pairs, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regraft.data.given import given_prompts
from regraft.experiment import experiments
from regraft.model.opened import Model

LEAST = 12
"""Passages of a text that are read where no number of prompts is asked for."""


@dataclass(frozen=True)
class Reading:
    """The user's prompts (or the file that holds them), running text, pairs for patching, and how many prompts to measure."""

    prompts: tuple[str, ...] = ()
    prompts_file: str = ""
    text: str = ""
    pairs: str = ""
    count: int = 0

    def options(self, name: str, model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
        """What one chapter is run with because of it, and what the command that makes it again says instead.

        A count larger than the number of the user's prompts is that number.
        """
        known = {parameter.name for parameter in experiments()[name].parameters}
        run: dict[str, Any] = {}
        said: dict[str, Any] = {}
        own = given_prompts(model, self.prompts, self.prompts_file, self.text, self.count or LEAST)
        if own and "prompts" in known:
            kept = own[: self.count] if self.count else own
            run["prompts"] = kept
            said |= {"prompts_file": self.prompts_file} if self.prompts_file and kept == own else {}
            said |= {"text": self.text} if self.text else {}
            said |= {} if said else {"prompts": kept}
        if own and "prompt" in known:
            run["prompt"] = said["prompt"] = own[0]
        if self.count and "count" in known:
            run["count"] = said["count"] = min(self.count, len(own)) if own else self.count
        if self.text and "corpus" in known:
            run["corpus"] = said["corpus"] = self.text
        if self.pairs and "pairs" in known:
            run["pairs"] = said["pairs"] = self.pairs
        return run, said
