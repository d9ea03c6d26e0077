"""Parameters of functions and fields of dataclasses, read from their source: the command line needs them
before PyTorch.

Annotation and default are as written; explanations come from `Args:` of a function's docstring and from the
text below a field. A default may be the name of one of `core/defaults.py`, an annotation that of a `Literal`
in the same file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

from regraft.core import defaults

TextFile: TypeAlias = str
"""A parameter that names a text file to read, looked at before a model is opened."""
KeptFolder: TypeAlias = str
"""A parameter that names a folder that is there, looked at before a model is opened."""
NewFolder: TypeAlias = str
"""A parameter that names a folder to write, which must be empty or not there."""
ModelName: TypeAlias = str
"""A parameter that names a model: a folder, a hub id or a specimen."""


@dataclass(frozen=True)
class Parameter:
    """One option of an experiment: its annotation as written, its default, and one line of help."""

    name: str
    annotation: str
    default: Any
    help: str


def parameters_of_function(node: ast.FunctionDef, where: str) -> tuple[Parameter, ...]:
    """All parameters of a function but the first."""
    explained = _explanations(ast.get_docstring(node) or "")
    given = node.args.args[1:] + node.args.kwonlyargs
    written = [*node.args.defaults, *node.args.kw_defaults]
    assert len(written) == len(given), f"{where}.{node.name}: every parameter after the first needs a default"
    return tuple(
        Parameter(
            a.arg, ast.unparse(a.annotation) if a.annotation else "str", _literal(d), explained.get(a.arg, "")
        )
        for a, d in zip(given, written, strict=True)
    )


def fields_of(place: str) -> tuple[Parameter, ...]:
    """The explained fields of a dataclass of this package.

    Args:
        place: module and class, as in `training.trainer:Plan`.
    """
    module, _, name = place.partition(":")
    file = Path(__file__).parent.parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    aliases = {
        target.id: ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = []
    for node, below in zip(found.body, found.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(below, ast.Expr)
        ):
            written = ast.unparse(node.annotation)
            text = re.sub(r"\s+", " ", ast.literal_eval(below.value))
            fields.append(
                Parameter(node.target.id, aliases.get(written, written), _literal(node.value), text)
            )
    return tuple(fields)


def _literal(node: ast.expr | None) -> Any:
    """A default as written: a plain value, or the name of one that many commands share."""
    if isinstance(node, ast.Name):
        return getattr(defaults, node.id)
    return None if node is None else ast.literal_eval(node)


def _explanations(docstring: str) -> dict[str, str]:
    """The lines under `Args:` of a docstring, by parameter."""
    _, _, rest = docstring.partition("Args:\n")
    block = re.split(r"\n\S|\n\n", rest)[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", block, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((Integral,), "a whole number"),
    "float": ((Real,), "a number"),
    "bool": ((bool,), "True or False"),
    "str": ((str,), "a text"),
}


def unfit(annotation: str, value: Any) -> str:
    """What a value of a parameter should be, "" where it is that; annotations of other kinds are not looked
    at."""
    plain = annotation.removesuffix(" | None")
    if value is None:
        return "" if plain != annotation else "to be left out"
    if plain in ("TextFile", "KeptFolder", "NewFolder", "ModelName"):
        return "" if isinstance(value, (str, Path)) else "the name of a file or folder: write it to one"
    if plain.startswith("list["):
        kinds, what = _KINDS.get(plain[5:-1], ((object,), ""))
        fits = (
            not isinstance(value, (str, bytes))
            and isinstance(value, Iterable)
            and all(_is(one, kinds) for one in value)
        )
        return "" if fits else f"a list, each {what}"
    if plain.startswith("Literal["):
        allowed = ast.literal_eval(plain.removeprefix("Literal"))
        return "" if value in allowed else f"one of {', '.join(map(str, allowed))}"
    kinds, what = _KINDS.get(plain, ((object,), ""))
    return "" if _is(value, kinds) else what


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or object in kinds or not isinstance(value, bool))
