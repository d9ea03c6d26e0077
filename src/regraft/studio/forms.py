"""What a form of an experiment says, as options of its command: kinds, bounds, and folders that a page may
name."""

from __future__ import annotations

import ast
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.core.registry import Experiment
from regraft.core.signatures import Parameter, unfit
from regraft.jobs.checks import check_parameters
from regraft.reporting.shell_commands import option_words
from regraft.studio.limits import Limits, RefusedError, check_text
from regraft.studio.places import Places

FILES = ("TextFile", "KeptFolder", "NewFolder", "ModelName")


def plain_kind(parameter: Parameter) -> str:
    """A parameter's annotation without its None."""
    return parameter.annotation.removesuffix(" | None")


def choices(parameter: Parameter) -> list[str]:
    """What a parameter may be, where that is a short list."""
    kind = plain_kind(parameter)
    return (
        list(map(str, ast.literal_eval(kind.removeprefix("Literal")))) if kind.startswith("Literal[") else []
    )


def options_of(
    experiment: Experiment, given: Mapping[str, Any], places: Places, limits: Limits
) -> dict[str, Any]:
    """An experiment's options as its form says them; what is left empty has its default.

    Args:
        experiment: whose form it is.
        given: what stands in each field: text, number or switch; a list as lines of text.
        places: folders that may be named.
        limits: of the studio.

    Raises:
        RefusedError: a field holds what its parameter cannot be, or names a place outside.
    """
    return {one.name: _value(one, given.get(one.name), places, limits) for one in experiment.parameters}


def _value(parameter: Parameter, given: Any, places: Places, limits: Limits) -> Any:
    kind = plain_kind(parameter)
    if given is None or given == "" or (isinstance(given, str) and not given.strip()):
        return parameter.default
    if isinstance(given, str):
        check_text(given, parameter.name, limits)
    if kind == "ModelName":
        return places.model(str(given))
    if kind in FILES:
        return str(places.inside(str(given)))
    if kind.startswith("list["):
        found: Any = [_plain(line, kind[5:-1], parameter) for line in str(given).splitlines() if line.strip()]
    else:
        found = _plain(given, kind, parameter)
    wanted = unfit(parameter.annotation, found)
    if wanted:
        raise RefusedError(f"{parameter.name} is {found!r}, and should be {wanted}")
    return found


def _plain(given: Any, kind: str, parameter: Parameter) -> Any:
    """One value of a kind, from text or a number.

    Raises:
        RefusedError: it is none.
    """
    if kind not in ("int", "float") or isinstance(given, bool):
        return given
    try:
        number = float(given)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{parameter.name} is {given!r}, which is no number: write one") from error
    if not math.isfinite(number):
        raise RefusedError(f"{parameter.name} is {given!r}, which is no finite number: write one")
    return int(number) if kind == "int" and number == int(number) else number


def check_form(experiment: Experiment, options: Mapping[str, Any], out: Path) -> None:
    """Make sure that files can be read and folders written, before anything waits for it.

    Raises:
        ValueError: one cannot.
    """
    check_parameters(experiment, options, out)


def settings_of(experiment: Experiment, source: str, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The options that make a run again, as a file that `--config` reads: those that are not as they would be
    anyway."""
    usual = {one.name: one.default for one in experiment.parameters}
    chosen = {name: value for name, value in options.items() if value != usual[name]}
    return {"command": experiment.name, "model": source, **chosen, **({"seed": seed} if seed else {})}


def command_line(settings: Mapping[str, Any], out: Path) -> str:
    """The command that makes a run, ready to be pasted."""
    rest = {name: value for name, value in settings.items() if name != "command"}
    return shlex.join(["regraft", str(settings["command"]), *option_words({**rest, "out": str(out)})])
