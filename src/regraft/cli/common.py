"""What stands in front of every command, wherever it is written on the line: how much is said, a log, options
from a file, no cache, and where a saved model goes.

`regraft knockout --quiet` means `regraft --quiet knockout`. Nothing heavy is imported.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any

import typer

from regraft.core.caching import without_cache
from regraft.core.files import expanded

FLAGS = ("--quiet", "--verbose", "--no-cache")
VALUED = ("--log-file", "--config", "--push-to-hub")
COMMAND = "command"
"""The key of a file of options that names the command."""


@dataclass(frozen=True)
class Common:
    """What was said in front of the command."""

    quiet: bool = False
    verbose: bool = False
    push_to: str = ""


_common: ContextVar[Common | None] = ContextVar("regraft_common", default=None)


def common() -> Common:
    """What was said in front of the command that runs."""
    return _common.get() or Common()


def hoisted(words: Sequence[str]) -> list[str]:
    """The command line with the common options in front, and the command of a file of options where none is
    written.

    Raises:
        ValueError: an option without its value, or a file of options for another command.
    """
    front: list[str] = []
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name = word.partition("=")[0]
        if word == "--":
            rest += [word, *waiting]
        elif word in FLAGS or (name in VALUED and "=" in word):
            front.append(word)
        elif name in VALUED:
            value = next(waiting, None)
            if value is None:
                raise ValueError(f"{name} needs a value behind it")
            front += [name, value]
        else:
            rest.append(word)
    file = _value(front, "--config")
    if file:
        rest = _with_command(rest, file)
        written = " ".join(takewhile(lambda word: not word.startswith("-"), rest))
        front += ["--config-for", str(read_options(file).get(COMMAND, written))]
    return [*front, *rest]


def _value(front: Sequence[str], name: str) -> str:
    for place, word in enumerate(front):
        if word == name:
            return front[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def _with_command(rest: list[str], file: str) -> list[str]:
    named = str(read_options(file).get(COMMAND, "")).split()
    if not named:
        return rest
    if not rest or rest[0].startswith("-"):
        return [*named, *rest]
    written = rest[: len(named)]
    if written != named:
        raise ValueError(
            f"{file} holds the options of `regraft {' '.join(named)}`, not of `regraft {' '.join(written)}`"
        )
    return rest


def read_options(file: str) -> dict[str, Any]:
    """The options of a YAML file: names as on the command line, without the hyphens in front.

    Raises:
        ValueError: it cannot be read, or is no table of options.
    """
    import yaml

    try:
        found = yaml.safe_load(expanded(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the options of {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{file} is no table of options: write lines such as `count: 20`")
    return {name.replace("-", "_"): value for name, value in found.items()}


def defaults_of(context: typer.Context, file: str, written: str) -> dict[str, Any]:
    """A file's options for the command that it names or that is written on the line (its words, and what may
    follow them), as click takes them: one table in another for a command in a group."""
    command: Any = context.command
    words: list[str] = []
    for word in written.split():
        inside = getattr(command, "commands", {})
        if not inside:
            break
        if word not in inside:
            near = get_close_matches(word, inside, 1)
            raise ValueError(
                f"there is no command {' '.join([*words, word])!r} for the options of {file}: write one of"
                f" {', '.join([*near, *(name for name in sorted(inside) if name not in near)])}"
            )
        command, words = inside[word], [*words, word]
    found = default_map(file, {p.name: bool(getattr(p, "multiple", False)) for p in command.params})
    for word in reversed(words):
        found = {word: found}
    return found


def default_map(file: str, known: Mapping[str, bool]) -> dict[str, Any]:
    """What a file of options says of its command, as click takes it.

    Args:
        file: the file.
        known: names of the command's options, and whether each takes several values.

    Raises:
        ValueError: an option that the command does not have.
    """
    options = {name: value for name, value in read_options(file).items() if name != COMMAND}
    unknown = [name for name in options if name not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, 1)
        meant = f" (nearest: {near[0]})" if near else ""
        raise ValueError(
            f"{file} says {unknown[0]!r}, which is no option of this command{meant}: it has"
            f" {', '.join(sorted(known))}"
        )
    return {
        name: [value] if known[name] and not isinstance(value, list) else value
        for name, value in options.items()
    }


def settings_of(context: typer.Context, name: str) -> dict[str, Any]:
    """The options that a command was called with, as a file that calls it again."""
    kept = {COMMAND: name}
    for option in [parameter.name or "" for parameter in context.command.params]:
        if option not in ("out", "as_json", "debug", "force", "dry_run") and is_written(context, option):
            value = context.params[option]
            kept[option] = str(value) if isinstance(value, Path) else value
    return kept


def is_written(context: typer.Context, name: str) -> bool:
    """Whether the user wrote an option, on the line or in a file, rather than that it has its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")


def push_saved(folder: Path | str) -> None:
    """Send what a command has saved to the hub, where that was asked for."""
    if common().push_to:
        from regraft.export.hub_upload import push_folder

        address = push_folder(expanded(folder), common().push_to)
        print(f"sent to {address}")


@contextmanager
def applied(said: Common, log_file: str, no_cache: bool) -> Iterator[None]:
    """While inside, a command runs as was said in front of it."""
    token = _common.set(said)
    with ExitStack() as stack:
        if no_cache:
            stack.enter_context(without_cache())
        stack.enter_context(_logging(said.verbose, log_file))
        try:
            yield
        finally:
            _common.reset(token)


@contextmanager
def _logging(verbose: bool, log_file: str) -> Iterator[None]:
    """While inside, what goes on is told line by line: on the terminal, and to a file."""
    logger = logging.getLogger("regraft")
    handlers: list[logging.Handler] = []
    if log_file:
        try:
            handlers.append(logging.FileHandler(expanded(log_file), encoding="utf-8"))
        except OSError as error:
            raise ValueError(
                f"--log-file {log_file} cannot be written ({error.strerror}): name another file"
            ) from error
    if verbose:
        shown = logging.StreamHandler(sys.stderr)
        shown.addFilter(lambda record: record.levelno < logging.ERROR)
        handlers.append(shown)
    before = logger.level
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    if handlers:
        logger.setLevel(logging.INFO)
    logger.info("regraft %s", " ".join(sys.argv[1:]))
    try:
        yield
    finally:
        logger.info("done")
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before)
