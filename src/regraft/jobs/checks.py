"""What people ask for, refused where it cannot be had before anything heavy is imported: models, devices,
texts, targets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft.checkpoint.locate import located, model_files
from regraft.core.files import check_empty, check_folder_there, expanded, place_of, read_text, reading
from regraft.core.registry import Experiment
from regraft.core.runs import check_writable
from regraft.core.sizes import bytes_of
from regraft.data.exchanges import exchanges_in, is_chat_file
from regraft.data.text_files import read_prompts, text_files, texts_in

TYPES = ("float32", "float64", "bfloat16", "float16")
DEVICES = (
    "auto",
    "cpu",
    "cuda",
    "hip",
    "hpu",
    "ipu",
    "maia",
    "meta",
    "mps",
    "mtia",
    "privateuseone",
    "vulkan",
    "xla",
    "xpu",
)
"""Names that PyTorch may know a device by; whether it is here, opening a model tells."""


def check_opening(
    model: str,
    device: str = "",
    dtype: str = "",
    tokenizer: str = "",
    memory: str = "",
    config: bool = True,
) -> None:
    """Make sure that a model may be opened as the common options say, as far as names and folders tell; with
    `config=False` its weights alone.

    Raises:
        ValueError: no model, tokenizer, device or type is called so, or the folder is no model's.
    """
    check_model(model, config)
    if memory:
        bytes_of(memory)
    if tokenizer:
        located(tokenizer)
    check_devices(device)
    if dtype and dtype not in TYPES:
        raise ValueError(f"dtype {dtype!r} is not known: choose one of {', '.join(TYPES)}")


def check_devices(devices: str) -> None:
    """Make sure that a list of devices names such as there may be.

    Raises:
        ValueError: one of them is none.
    """
    for device in devices.split(","):
        if device.strip() and re.sub(r":(\d+|\*)$", "", device.strip()) not in DEVICES:
            raise ValueError(f"device {device.strip()!r} is not known: write cpu, cuda, cuda:1 or cuda:*")


def check_model(name: str, config: bool = True) -> None:
    """Make sure that a name may be a model's: a specimen, a folder with weights (and, unless `config=False`,
    their configuration), or what a hub may know.

    Raises:
        ValueError: it cannot.
    """
    folder, _ = located(name)
    if folder is not None:
        with reading(folder, "give a model folder whose files you may read"):
            model_files(folder, config)


def check_beside(model: str, target: Path, option: str) -> None:
    """Make sure that a model may be written to a folder, which is not the one that it is read from.

    Raises:
        ValueError: it is, or holds something, or is closed.
    """
    folder, _ = located(model)
    if folder is not None and place_of(folder) == place_of(target):
        raise ValueError(f"{target} is the source model itself: choose another folder with {option}")
    check_empty(target, option)


def check_parameters(
    experiment: Experiment, given: Mapping[str, Any], out: Path | None, force: bool = False
) -> None:
    """Make sure that an experiment's files can be read, its models may be had, and its folders can be
    written.

    Raises:
        ValueError: one of them cannot.
    """
    for parameter in experiment.parameters:
        value, option = given.get(parameter.name), f"--{parameter.name.replace('_', '-')}"
        if not value:
            continue
        if parameter.annotation == "TextFile":
            read_text(value, f"give {option} {parameter.help.rstrip('.')}")
        elif parameter.annotation == "KeptFolder":
            check_folder_there(value, option)
        elif parameter.annotation == "NewFolder":
            check_empty(value, option)
        elif parameter.annotation == "ModelName":
            check_model(value)
    if force and out is None:
        raise ValueError("--force replaces the run in a folder: name it with --out")
    check_run(out, experiment.name, force)


def check_prompts(prompts: Sequence[str] | None, file: str, text: str) -> None:
    """Make sure that there is one source of prompts, and that it can be read.

    Raises:
        ValueError: there are several, or one holds none.
    """
    ways = [
        name for name, given in (("--prompts", prompts), ("--prompts-file", file), ("--text", text)) if given
    ]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} both say what is read: give one of them")
    if file:
        read_prompts(file)
    if text:
        read_text(text, "give running text")


def check_least(least: int, **given: float) -> None:
    """Make sure that numbers are large enough, before anything is opened.

    Raises:
        ValueError: one is smaller than `least`, or no number.
    """
    for name, value in given.items():
        if not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: write {least} or more")


def check_run(out: Path | None, experiment: str, force: bool = False) -> None:
    """Make sure that a run may be written where it is asked for, as far as can be told without its model.

    Raises:
        RunFolderError: it may not.
    """
    if out is not None:
        check_writable(out, experiment, None, version("regraft"), force)


def check_texts(sources: Sequence[str]) -> list[str]:
    """Files and folders to read text from, with `~` written out; folders are searched, and files that are
    named begun.

    Raises:
        ValueError: one is not there, closed, empty, or no text.
    """
    found = [str(expanded(source)) for source in sources]
    for source in found:
        with reading(source, "name text that you may read"):
            _check_open(Path(source))
            files = text_files([source])
            if not any([_begins(file) for file in files]):
                raise ValueError(f"{source} is empty: name some text")
            if not Path(source).is_dir():
                next(iter(exchanges_in(files[0]) if is_chat_file(files[0]) else texts_in(files[0])), None)
    return found


def _check_open(source: Path) -> None:
    """Look into every folder of a source: a closed one would be passed over in silence."""

    def closed(error: OSError) -> None:
        raise error

    for _ in os.walk(source, onerror=closed) if source.is_dir() else ():
        pass


def _begins(file: Path) -> bool:
    with file.open("rb") as stream:
        return bool(stream.read(1))


def named_texts(texts: Sequence[str], each: str = "") -> dict[str, list[str]]:
    """Sources by domain: NAME=PATH, and every file of a folder under its own name.

    Raises:
        ValueError: a text without a name, or two with one name.
    """
    found: dict[str, list[str]] = {}
    pairs = [(name, path) for name, _, path in (text.partition("=") for text in texts)]
    pairs += [(file.stem, str(file)) for file in (text_files([expanded(each)]) if each else [])]
    for name, path in pairs:
        if not name or not path:
            raise ValueError(
                f"{name or path!r} names no domain: write NAME=PATH, for example books=./held-out"
            )
        if name in found:
            raise ValueError(f"two texts are called {name}: give each a name of its own")
        found[name] = [str(expanded(path))]
    return found


def check_domains(texts: Sequence[str], each: str = "") -> None:
    """Make sure that texts have names, each its own, and can be read.

    Raises:
        ValueError: they do not, or cannot.
    """
    if each:
        check_texts([each])
    for paths in named_texts(texts, each).values():
        check_texts(paths)
