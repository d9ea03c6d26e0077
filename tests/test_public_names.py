"""The public surface: every name is what it should be, whatever was imported before, and the listings
agree."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import types
from pathlib import Path

import pytest

import regraft
from regraft.core.registry import EXPERIMENTS, experiments

ROOMS = {module.name for module in pkgutil.iter_modules(regraft.__path__)}
JOBS = """transplant_tokenizer train_tokenizer compare_tokenizers fit_embedding fit_head rebuild inspect
    report""".split()


ELSEWHERE = {"regraft.__main__", "regraft.serving.vllm_model"}
"""Files that do something when they are imported, or that only vLLM's environment can import."""


def modules():
    for found in pkgutil.walk_packages(regraft.__path__, "regraft."):
        if found.name not in ELSEWHERE:
            yield found.name


def test_no_room_takes_the_place_of_a_public_name():
    """Python puts a submodule in the place of a name of the package once it is imported: so every module is
    imported first."""
    for name in modules():
        importlib.import_module(name)
    for name in regraft.__all__:
        value = getattr(regraft, name)
        assert not isinstance(value, types.ModuleType), name
        assert getattr(value, "__name__", name) == name or name == "__version__"
    assert not ROOMS & set(regraft.__all__)


def test_the_whole_of_each_job_is_one_public_function():
    for name in JOBS:
        assert inspect.isfunction(getattr(regraft, name)), name
    assert set(EXPERIMENTS) <= set(regraft.__all__)
    assert set(dir(regraft)) == set(regraft.__all__) | set(experiments())
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = regraft.nothing


def test_type_checkers_are_told_the_same_names():
    tree = ast.parse(Path(regraft.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname: node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(told) | {"__version__"} == set(regraft.__all__)
    for name, module in told.items():
        assert (
            getattr(importlib.import_module(module), name).__name__ == getattr(regraft, name).__name__ == name
        )
    assert (Path(regraft.__file__).parent / "py.typed").is_file()


def test_no_two_files_or_classes_bear_one_name():
    stems = [name for name in modules() if not importlib.import_module(name).__file__.endswith("__init__.py")]
    assert len({name.rpartition(".")[2] for name in stems}) == len(stems)
    classes = {}
    for file in Path(regraft.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(file.name)
    assert {name: files for name, files in classes.items() if len(files) > 1} == {}
