"""The order in which a page tells: what was found first, then the chapters in groups."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from regraft.reporting.headlines import HEADLINES
from regraft.reporting.markup import Section

MOST = 8
"""Findings that stand on top of a page."""


class Group(NamedTuple):
    """Chapters that answer one kind of question."""

    anchor: str
    title: str
    names: tuple[str, ...]


GROUPS = (
    Group("published", "What was published, and what was found", ("landmarks",)),
    Group("made-of", "What it is made of", ("anatomy", "check", "spectra")),
    Group(
        "flows",
        "What flows through it",
        (
            "completions", "attention", "lens", "contributions", "geometry", "linearity", "trajectories",
            "neurons",
        ),
    ),
    Group(
        "does",
        "What each part does",
        (
            "knockout", "swap", "patch", "paths", "push", "ablate", "bottleneck", "repeat", "noise",
            "correlations",
        ),
    ),
    Group(
        "changed",
        "What can be changed",
        (
            "replacement", "shuffle", "quantize", "quantizers", "cache", "compile", "disaggregate",
            "transplant", "prune", "reorder", "steer",
        ),
    ),
)  # fmt: skip
"""Groups of a report, and the experiments of each in the order in which they are told."""
OTHERS = Group("more", "What else was measured", ())
FOOT = Group("not-here", "What is not here", ("",))
ENDS = ("left-out", "to-come")
"""Sections that tell what a page does not have."""


def told_order(sections: Sequence[Section]) -> list[tuple[Group, list[Section]]]:
    """Sections by group, each group in its own order; what no group names comes behind the groups, what is
    missing last."""
    found: list[tuple[Group, list[Section]]] = []
    for group in GROUPS:
        own = [one for name in group.names for one in sections if kind_of(one) == name]
        found.append((group, own))
    known = {name for group in GROUPS for name in group.names}
    ends = [one for one in sections if one.anchor in ENDS]
    found.append((OTHERS, [one for one in sections if kind_of(one) not in known and one not in ends]))
    found.append((FOOT, ends))
    return [(group, own) for group, own in found if own]


def kind_of(section: Section) -> str:
    """The experiment that a section is of, or its anchor: `patch-head` is a chapter of `patch`."""
    if section.experiment or section.anchor in ENDS:
        return section.experiment or section.anchor
    return section.anchor.split("-")[0]


def findings(sections: Sequence[Section]) -> list[tuple[str, Section]]:
    """The findings that stand on top, the most telling first, each with the section that it links to."""
    order = {name: place for place, name in enumerate(HEADLINES)}
    said = [one for one in sections if one.headline]
    return [(one.headline, one) for one in sorted(said, key=lambda s: order[s.experiment])[:MOST]]


def story_section(lead: str, sections: Sequence[Section]) -> Section:
    """What a model is and what was found: one paragraph, and the findings with links down."""
    title = "What this model is and what was found"
    rows = "".join(
        f'<li>{html.escape(said)} <a href="#{one.anchor}">{html.escape(one.title)}</a></li>'
        for said, one in findings(sections)
    )
    found = f'<ol class="found">{rows}</ol>' if rows else ""
    text = f'<section id="found"><h2>{title}</h2><p>{html.escape(lead)}</p>{found}</section>'
    return Section("found", title, text)
