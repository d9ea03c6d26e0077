"""The command line's reference, made from the commands themselves: help, usage, and every option."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from regraft.cli.main import app
from regraft.core.registry import experiments

GROUPS = {
    "Observing": ("lens", "attention", "compile", "disaggregate", "contributions", "geometry", "spectra",
                  "linearity", "trajectories", "neurons", "correlations", "completions", "tuned-lens"),
    "Pages and runs": ("report", "reproduce", "inspect", "runs", "show", "compare", "studio"),
    "Building": ("graft", "tokenizer", "rebuild", "pack", "unpack"),
}  # fmt: skip
"""Commands by the page that they stand on; experiments that are not named here intervene."""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with the words that call it, groups opened."""

    def below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", {})
        if not children:
            yield words, command
        for name, child in children.items():
            yield from below(f"{words} {name}".strip(), child)

    yield from below("", typer.main.get_command(app))


def page_of(words: str) -> str:
    """The title of the page that a command stands on.

    Raises:
        ValueError: it is no experiment and stands in no group.
    """
    first = words.split()[0]
    for title, names in GROUPS.items():
        if first in names:
            return title
    if first not in experiments():
        raise ValueError(
            f"the command {words} has no page: name it in GROUPS of tools/docs_site/command_pages.py"
        )
    return "Intervening"


def plain(text: str) -> str:
    """A text inside a cell of a table."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def option_row(parameter: Any, context: Any) -> str:
    """A row of the table of options: its names and what it takes, and what `--help` says of it."""
    names, said = parameter.get_help_record(context)
    return f"| `{plain_code(names)}` | {plain(said)} |"


def plain_code(text: str) -> str:
    """A text inside code inside a cell of a table: bars part the cells there, too."""
    return " ".join(text.split()).replace("|", "\\|")


def options_of(command: Any, context: Any) -> list[str]:
    """The table of a command's options."""
    shown = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    return ["| option | |", "|---|---|", *(option_row(parameter, context) for parameter in shown)]


def entry(words: str, command: Any) -> str:
    """A command's place on its page."""
    context = typer.Context(command, info_name=f"regraft {words}")
    given = [p for p in command.params if p.param_type_name == "argument"]
    usage = ["regraft", words, *(piece for p in given for piece in p.get_usage_pieces(context)), "[OPTIONS]"]
    lines = [f"## {words} {{ #{words.replace(' ', '-')} }}", "", plain(command.help or ""), ""]
    lines += ["```text", " ".join(usage), "```", ""]
    for name, said in (p.get_help_record(context) for p in given):
        lines.append(f"- `{name}`: {plain(said or 'what it names')}")
    return "\n".join([*lines, "", *options_of(command, context)]) + "\n"


def shared() -> list[str]:
    """What stands in front of every command."""
    command: Any = typer.main.get_command(app)
    return options_of(command, typer.Context(command, info_name="regraft"))


def write_pages(folder: Path) -> None:
    """Write the pages."""
    folder.mkdir(parents=True)
    pages: dict[str, list[tuple[str, Any]]] = {}
    for words, command in commands():
        pages.setdefault(page_of(words), []).append((words, command))
    index = [
        "# Command line",
        "",
        "Made from the commands themselves.",
        "",
        "## Before or behind any command",
        "",
    ]
    index += [*shared(), ""]
    for title, members in pages.items():
        file = title.lower().replace(" ", "-") + ".md"
        parts = [f"# {title}: commands", "", *(entry(words, command) for words, command in members)]
        (folder / file).write_text("\n".join(parts), encoding="utf-8")
        index += [f"## [{title}]({file})", "", "| command | |", "|---|---|"]
        for words, command in members:
            first = plain((command.help or "").partition(".")[0])
            index.append(f"| [`regraft {words}`]({file}#{words.replace(' ', '-')}) | {first} |")
        index.append("")
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")
