"""The examples in the docstrings of public names, run as they stand.

They begin with `import regraft` and `model = regraft.load()`; `numpy`, `torch` and `pathlib` are imported.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pathlib
import tempfile
from typing import Any

import numpy
import torch

import regraft

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE


class _Runner(doctest.DocTestRunner):
    """Keeps what differs, as sentences."""

    def __init__(self) -> None:
        super().__init__(optionflags=FLAGS, verbose=False)
        self.wrong: list[str] = []

    def report_failure(self, out: Any, test: Any, example: Any, got: str) -> None:
        self.wrong.append(f"{example.source.strip()}\ngives\n{got.strip()}\nand not\n{example.want.strip()}")

    def report_unexpected_exception(self, out: Any, test: Any, example: Any, exc_info: Any) -> None:
        self.wrong.append(f"{example.source.strip()}\nends in {exc_info[0].__name__}: {exc_info[1]}")


def docstring_of(name: str) -> str:
    """A public name's docstring; of an experiment, that of its function."""
    return inspect.getdoc(inspect.unwrap(getattr(regraft, name))) or ""


def run_example(name: str, model: Any) -> tuple[list[str], dict[str, Any]]:
    """Run a name's example in an empty folder.

    Args:
        name: a public name.
        model: what `model` is in the example.

    Returns:
        What differs from what the docstring says, and the variables that the example leaves.

    Raises:
        ValueError: the docstring shows nothing that runs.
    """
    shown = docstring_of(name).partition("Examples:")[2]
    if ">>>" not in shown:
        raise ValueError(
            f"the docstring of regraft.{name} has no example that runs: write one below Examples:"
        )
    variables = {"regraft": regraft, "model": model, "pathlib": pathlib, "numpy": numpy, "torch": torch}
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(shown) + "\n", variables, name, None, 0)
    runner, here = _Runner(), pathlib.Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            runner.run(test, out=lambda text: None, clear_globs=False)
        finally:
            os.chdir(here)
    return runner.wrong, test.globs


def home_of(name: str) -> str:
    """The dotted path of a public name where it is defined, for the reference."""
    found = inspect.unwrap(getattr(regraft, name))
    module = importlib.import_module(found.__module__)
    return f"{module.__name__}.{name}"
