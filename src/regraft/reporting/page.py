"""One self-contained page about one model: what was found, then chapters in groups, each with its figures.

The page opens offline: the drawing library, the figures and the data to download are inside it. Text is there
at once; figures are drawn when a reader comes to them, and stand as still pictures until then.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

import xarray as xr

from regraft.model.model import Model
from regraft.model.summary import part_rows, site_rows
from regraft.reporting.chapter_section import result_section
from regraft.reporting.markup import Section, chapter, in_script, table
from regraft.reporting.plotly_script import plotly_script
from regraft.reporting.shell_commands import command_line
from regraft.reporting.story import Group, findings, story_section, told_order
from regraft.reporting.theme import AWAY, CONFIG, HEIGHT, THEMES, scale_styles

CHECKS = (
    ("replay", "replayed blocks and head against the model's own output", "largest absolute difference"),
    ("batch", "the same with three copies of the prompt in one batch", "largest absolute difference"),
    ("closure", "stream + attention + MLP against what leaves the block", "relative to its largest value"),
    ("projections", "output projections applied to z and to the neurons", "relative to its largest value"),
)
SITES = ("site", "blocks", "why not in the others")


def page(
    model: Model,
    results: list[xr.Dataset],
    commands: list[str],
    seconds: float,
    options: Mapping[str, Any] | None = None,
) -> str:
    """The whole page about a model as HTML; `commands[i]` makes `results[i]`, `options` are what the model
    was opened with."""
    made = [
        result_section(d, c, f"result-{n}") for n, (d, c) in enumerate(zip(results, commands, strict=True))
    ]
    return sheet(heading(model), [*opening(model, options or {}), *made], footer(results, seconds))


def heading(model: Model) -> tuple[str, str, str]:
    """Title, heading and lead of the page about a model."""
    return f"{model.name} taken apart", f"{model.name}, taken apart", lead(model)


def opening(model: Model, options: Mapping[str, Any]) -> list[Section]:
    """What every page about a model begins with: its parts, and the proof that they are its parts."""
    return [anatomy_section(model, options), check_section(model.check.as_dict())]


def sheet(words: tuple[str, str, str], sections: Sequence[Section], foot: str) -> str:
    """A page as HTML from its title, heading and lead, its sections, and the HTML of its footer."""
    title, stated, beginning = words
    groups = told_order(sections)
    story = story_section(beginning, sections) if findings(sections) else None
    opened = story.text if story else f"<p>{html.escape(beginning)}</p>"
    figures = [
        f'<script type="application/json" id="{place}-data">{in_script(figure)}</script>'
        for section in sections
        for place, figure in section.figures.items()
    ]
    return Template(_part("page.html")).substitute(
        title=html.escape(title),
        heading=html.escape(stated),
        opening=opened,
        contents=contents(groups, story),
        sections="\n".join(grouped(group, own) for group, own in groups),
        footer=foot,
        style=f"{_part('page.css')}\n{scale_styles()}",
        script=Template(_part("page.js")).substitute(
            config=in_script(CONFIG), themes=in_script(THEMES), away=in_script(AWAY), height=HEIGHT
        ),
        plotly=plotly_script() if figures else "",
        figures="\n".join(figures),
    )


def _part(name: str) -> str:
    return resources.files("regraft.reporting").joinpath(name).read_text(encoding="utf-8")


def contents(groups: Sequence[tuple[Group, Sequence[Section]]], story: Section | None) -> str:
    """The list of what a page holds, group by group."""
    first = f'<a href="#{story.anchor}">What was found</a>' if story else ""
    return first + "".join(
        f'<p><a href="#{group.anchor}">{html.escape(group.title)}</a></p><ul>'
        + "".join(f'<li><a href="#{s.anchor}">{html.escape(s.title)}</a></li>' for s in own)
        + "</ul>"
        for group, own in groups
    )


def grouped(group: Group, sections: Sequence[Section]) -> str:
    """A group's heading and its sections."""
    inside = "\n".join(section.text for section in sections)
    return f'<h2 class="group" id="{group.anchor}">{html.escape(group.title)}</h2>\n{inside}'


def lead(model: Model) -> str:
    """What the model is, in one sentence from what was found."""
    total = part_rows(model)[-1].parameters
    stacks = " and ".join(
        f"{len(s.blocks)} {s.name + ' ' if s.name else ''}blocks" for s in model.parts.stacks
    )
    kind = "an encoder-decoder" if model.two_stacks else "a decoder" if model.causal else "an encoder"
    return (
        f"This is {kind} with {stacks}, a residual stream of width {model.width}, a vocabulary of"
        f" {model.vocabulary:,} and {total:,} parameters, measured in"
        f" {str(model.dtype).removeprefix('torch.')} on {model.device}."
    )


def anatomy_section(model: Model, options: Mapping[str, Any]) -> Section:
    """Parts with their shapes, parameters and bytes; which sites exist."""
    parts = [[r.part, r.path, r.shape, f"{r.parameters:,}", f"{r.bytes:,}"] for r in part_rows(model)]
    sites = [[r.site, f"{r.blocks} of {r.total}", r.reason] for r in site_rows(model)]
    command = command_line("inspect", model, {key: value for key, value in options.items() if key != "seed"})
    inside = (
        '<p class="soft">What is it made of, and where can it be touched?</p><p>Parts are found by structure'
        " in the live model, not by its name. A site is an activation that can be read and edited; where a"
        " block has none, the table says why.</p>"
        + table(["part", "module", "shape", "parameters", "bytes"], parts, (3, 4), minor=(1, 4))
        + f"<details><summary>Sites, and the blocks that have them</summary>{table(SITES, sites)}</details>"
        + f"<h4>Make it again</h4><pre><code>{html.escape(command)}</code></pre>"
    )
    return Section("anatomy", "Anatomy", chapter("anatomy", "Anatomy", inside))


def check_section(found: Mapping[str, Any]) -> Section:
    """The self-check's figures."""
    rows = [[name, what, f"{found[name]:.2g}", unit] for name, what, unit in CHECKS]
    rows.append(["causal", "no position sees a later one (measured)", "yes" if found["causal"] else "no", ""])
    refused = [f"{site}: {reason}" for site, reason in found["refused"].items()]
    listed = "".join(f"<li>{html.escape(text)}</li>" for text in refused)
    inside = (
        '<p class="soft">Are these really the model\'s own parts?</p><p>Before anything is measured, the'
        " parts are put together again on a short input and compared with the model itself. Zero means equal"
        " to the bit.</p>"
        + table(["check", "what is compared", "measured", "unit"], rows, (2,), minor=(1,))
        + (f"<p>Sites refused because their identity failed:</p><ul>{listed}</ul>" if refused else "")
    )
    return Section("check", "Self-check", chapter("check", "Self-check", inside))


def footer(results: list[xr.Dataset], seconds: float) -> str:
    """Where the numbers come from."""
    attrs = results[0].attrs if results else {}
    words = [
        f"{name} {attrs[name]}"
        for name in ("regraft", "torch", "transformers", "tokenizers")
        if name in attrs
    ]
    told = [
        f"{stated} {html.escape(str(attrs[name]))}"
        for name, stated in (
            ("attention", "attention:"),
            ("seed", "seed"),
            ("weights_sha256", "weights sha256"),
        )
        if name in attrs
    ]
    return (
        f"Made in {seconds:.0f} s by {html.escape(', '.join(words))};"
        f" {'; '.join([*told, str(attrs.get('time'))])}."
    )
