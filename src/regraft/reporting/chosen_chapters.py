"""Which chapters a report has: those that suit a model by themselves, or those that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from regraft.core.registry import experiments
from regraft.reporting.chapter_inputs import Reading

Chapter = tuple[str, dict[str, Any]]
READS = ("prompts", "prompt", "corpus")
"""Parameters of an experiment that take the user's texts."""


def anchor_of(name: str, chosen: Mapping[str, Any]) -> str:
    """What a chapter's folder and its place on the page are called."""
    return "-".join([name, *map(str, chosen.values())])


def chosen_chapters(names: Sequence[str], whole: Sequence[Chapter]) -> list[Chapter]:
    """The chapters that are named: one of the report's by its folder, all of an experiment, or an experiment
    that a report does not have by itself; without names the whole report.

    Raises:
        ValueError: there is no such chapter; the nearest name is told.
    """
    known = {anchor_of(*chapter): [chapter] for chapter in whole}
    for name in experiments():
        known[name] = [one for one in whole if one[0] == name] or [(name, {})]
    found: list[Chapter] = []
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f" (nearest: {near[0]})" if near else ""
            raise ValueError(f"there is no chapter {name!r}{meant}: choose of {', '.join(sorted(known))}")
        found += [one for one in known[name] if one not in found]
    return found or list(whole)


def check_read(chapters: Sequence[Chapter], reading: Reading) -> None:
    """Make sure that one of the chapters can read what the user wants read.

    Raises:
        ValueError: none of them does.
    """
    for given, what, takes in (
        (reading.prompts or reading.prompts_file or reading.text, "prompts or a text", READS),
        (reading.pairs, "pairs", ("pairs",)),
    ):
        named = [{parameter.name for parameter in experiments()[name].parameters} for name, _ in chapters]
        if given and not any(parameters.intersection(takes) for parameters in named):
            names = ", ".join(dict.fromkeys(name for name, _ in chapters))
            raise ValueError(f"none of the chapters {names} reads {what}: leave them out, or choose others")
