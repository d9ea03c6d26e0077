"""The house rules that a reader can count on: one-way imports, short files, no word of a model's name in the model room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "regraft"
ORDER = [
    "registering",
    "disk",
    "plain_json",
    "model",
    "engine",
    "specimens",
    "data",
    "runs",
    "experiment",
    "asked",
    "observe",
    "intervene",
    "rebuild",
    "graft",
    "tokens",
    "report",
    "commands",
    "graft_commands",
    "head_commands",
    "tokenizer_commands",
    "transplant_commands",
    "options",
    "graft_cli",
    "tokenizer_cli",
    "cli",
    "__main__",
]
FILES = sorted(p for p in SOURCE.rglob("*.py") if p.name != "__init__.py")
FAMILIES = """llama qwen gpt2 gpt_neox gemma mistral mixtral bloom mamba olmo phi3 bert bart cohere smollm gpt_oss
model_type""".split()


def room(parts):
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(file):
    own = room(file.relative_to(SOURCE).parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("regraft."):
                other = room(name.split(".")[1:])
                assert other == own or ORDER.index(other) < ORDER.index(own), f"{own} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 80, node.name


def branches_on(tree):
    """Short words that a condition compares with or asks for."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Compare, ast.Match, ast.If, ast.IfExp)):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and len(inner.value) < 40:
                    yield node.lineno, inner.value.lower()
                if isinstance(inner, ast.Attribute):
                    yield node.lineno, inner.attr.lower()


@pytest.mark.parametrize("file", [f for r in ("model", "engine") for f in (SOURCE / r).glob("*.py")], ids=lambda p: p.name)
def test_no_branch_on_a_models_name(file):
    found = [(n, w) for n, w in branches_on(ast.parse(file.read_text(encoding="utf-8"))) if any(f in w for f in FAMILIES)]
    assert not found


def test_the_name_check_sees_a_branch():
    planted = ast.parse("if config.model_type == 'llama':\n    pass")
    assert {w for _, w in branches_on(planted)} >= {"llama", "model_type"}


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("*.py")), ids=lambda p: p.name)
def test_files_of_tests_stay_short_too(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
