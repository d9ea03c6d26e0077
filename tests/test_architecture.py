"""The house rules that a reader can count on: one-way imports, short files, no word of a model's name in the
model room."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "regraft"
ORDER = [
    "core",
    "landmarks",
    "checkpoint",
    "streaming",
    "specimens",
    "model",
    "sweeps",
    "data",
    "systems",
    "modules",
    "serving",
    "training",
    "export",
    "tokenizers",
    "codecs",
    "experiments",
    "reference",
    "features",
    "reporting",
    "jobs",
    "studio",
    "cli",
    "__main__",
]
FILES = sorted(p for p in SOURCE.rglob("*.py") if p.name != "__init__.py")
FAMILIES = """llama qwen gpt2 gpt_neox gemma mistral mixtral bloom mamba olmo phi3 bert bart cohere smollm
    gpt_oss
model_type""".split()


TYPES_ONLY = {"core/registry.py": ["regraft.model.model", "regraft.model.weights"]}
"""Files that name what lies below them as types alone, under TYPE_CHECKING."""


def room(parts):
    return parts[0].removesuffix(".py")


def imported(tree, checking):
    """Names of modules that a file imports, those for type checkers alone or the others."""
    hidden = {id(n) for part in ast.walk(tree) if isinstance(part, ast.If) and "TYPE_CHECKING" in
    ast.unparse(part.test)
              for n in ast.walk(part)}  # fmt: skip
    for node in ast.walk(tree):
        if (id(node) in hidden) == checking:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module
            yield from (alias.name for alias in node.names) if isinstance(node, ast.Import) else ()


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(file):
    own, tree = room(file.relative_to(SOURCE).parts), ast.parse(file.read_text(encoding="utf-8"))
    types = [
        name for name in imported(tree, True) if name not in TYPES_ONLY.get(str(file.relative_to(SOURCE)), ())
    ]
    for name in [*imported(tree, False), *types]:
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


def unnamed_thresholds(tree):
    """Lines of comparisons with a fraction, or with a whole number above 8: less may count dimensions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for side in [node.left, *node.comparators]:
                value = side.value if isinstance(side, ast.Constant) else 0
                if isinstance(value, (int, float)) and value not in range(9):
                    yield node.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_thresholds_have_names(file):
    if file.name != "almanac.py":
        assert not list(unnamed_thresholds(ast.parse(file.read_text(encoding="utf-8"))))


def test_every_constant_says_why():
    """Numbers at the top of a file: a sentence behind them, or a comment in front."""
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        for node, behind in zip(tree.body, [*tree.body[1:], None], strict=True):
            if not isinstance(node, ast.Assign) or not ast.unparse(node.targets[0]).strip("()").isupper():
                continue
            if not isinstance(node.value, (ast.Constant, ast.Tuple, ast.BinOp)):
                continue
            numbers = [n for n in ast.walk(node.value) if type(getattr(n, "value", None)) in (int, float)]
            sentence = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
            comment = "#" in lines[node.lineno - 2] or "#" in lines[node.lineno - 1]
            if numbers and file.name != "almanac.py":
                assert sentence or comment, f"{file.name}:{node.lineno}"


def test_the_threshold_check_sees_one():
    assert list(unnamed_thresholds(ast.parse("if share > 0.5:\n    pass"))) == [1]


def branches_on(tree):
    """Short words that a condition compares with or asks for."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Compare, ast.Match, ast.If, ast.IfExp)):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and len(inner.value) < 40:
                    yield node.lineno, inner.value.lower()
                if isinstance(inner, ast.Attribute):
                    yield node.lineno, inner.attr.lower()


@pytest.mark.parametrize(
    "file",
    [f for r in ("checkpoint", "model", "sweeps") for f in (SOURCE / r).glob("*.py")],
    ids=lambda p: p.name,
)
def test_no_branch_on_a_models_name(file):
    found = [
        (n, w)
        for n, w in branches_on(ast.parse(file.read_text(encoding="utf-8")))
        if any(f in w for f in FAMILIES)
    ]
    assert not found


def test_the_name_check_sees_a_branch():
    planted = ast.parse("if config.model_type == 'llama':\n    pass")
    assert {w for _, w in branches_on(planted)} >= {"llama", "model_type"}


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("*.py")), ids=lambda p: p.name)
def test_files_of_tests_stay_short_too(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_page_on_architecture_names_every_file():
    """Each under its room: a file that moves or is new is written down there."""
    drawn = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for file in FILES:
        first, *between = file.relative_to(SOURCE).parts[:-1] or ("",)
        if not first:
            continue
        start = drawn.index(f"\n  {first}/")
        end = drawn.find("\n  ", start + 3 + len(first))
        while end != -1 and drawn[end + 3] == " ":
            end = drawn.find("\n  ", end + 3)
        assert re.search(rf"\b{file.stem}\b", drawn[start : end if end != -1 else None]), file
        assert all(f"{folder}/" in drawn[start:end] for folder in between), file


@pytest.mark.parametrize(
    "page",
    sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]),
    ids=lambda p: p.name,
)
def test_files_that_pages_name_are_there(page):
    there = [
        path
        for room in ("src", "tests", "tools", "benchmarks")
        for path in map(str, (ROOT / room).rglob("*.py"))
    ]
    for name in re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")):
        assert name == "check.py" or any(path.endswith("/" + name) for path in there), name


def test_the_table_of_places_is_true():
    """Every file is there and defines what it is said to."""
    rows = re.findall(
        r"^\| (.+) \| `([\w/]+\.py)` \| `(\w+)` \|$",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.M,
    )
    assert len(rows) >= 15
    for what, file, name in rows:
        defined = ast.parse((SOURCE / file).read_text(encoding="utf-8")).body
        names = {n.name for n in defined if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        names |= {
            t.id for n in defined if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
        }
        names |= {
            n.target.id for n in defined if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        }
        assert name in names, (what, file, name)
