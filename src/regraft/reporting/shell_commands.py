"""Commands as a reader can paste them into a shell: quoted, with the options that the model was opened
with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.core.registry import experiments
from regraft.model.model import Model

DEFAULTS = {
    "device": "cpu",
    "dtype": "",
    "attention": "",
    "tokenizer": "",
    "target_tokenizer": "",
    "seed": 0,
    "remote_code": False,
    "stream": False,
    "memory": "",
}
OPENING = ("dtype", "attention", "tokenizer", "target_tokenizer", "remote_code", "stream", "memory")
"""Options that say how a model is opened; a command that reads matrices alone has none of them."""


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options as words, without those that are what they would be anyway; a value that begins with a hyphen
    stays a value."""
    words: list[str] = []
    for key, value in options.items():
        option = f"--{key.replace('_', '-')}"
        if DEFAULTS.get(key) == value:
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += (
                [option]
                if one is True
                else [f"{option}={one}"]
                if str(one).startswith("-")
                else [option, str(one)]
            )
    return words


def source_words(model: Model, options: Mapping[str, Any]) -> list[str]:
    """The words that open a model again: where it came from, and how it was opened."""
    return ["--model", model.source or model.name, *option_words(options)]


def settings_for(name: str, model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a file of options."""
    kept = {key: value for key, value in _own(name, options).items() if DEFAULTS.get(key) != value}
    return {"command": name, "model": model.source or model.name, **kept}


def command_line(name: str, model: Model, options: Mapping[str, Any]) -> str:
    """The command that makes a result again, options that are not the default included."""
    return shlex.join(["regraft", name, *source_words(model, _own(name, options))])


def _own(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that a command has: one that reads matrices alone opens no model."""
    if name in experiments() and experiments()[name].needs == "weights":
        return {key: value for key, value in options.items() if key not in OPENING}
    return options


def next_step(words: list[str], model: Model, folder: tuple[str, Path], options: Mapping[str, Any]) -> str:
    """The command to go on with, as the end of what another command says: `words`, a folder behind its
    option, the model."""
    option, path = folder
    return (
        "Next:"
        f" `{shlex.join(['regraft', *words, *option_words({option: path}), *source_words(model, options)])}`"
    )
