"""Where a fault of one token can be planted in a file of Python: its syntax tree walked over, positions in
bytes."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"),
}  # fmt: skip
PAIRS = [
    ("min", "max"),
    ("all", "any"),
    ("argmin", "argmax"),
    ("amin", "amax"),
    ("floor", "ceil"),
    ("zeros", "ones"),
]
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
UNSEEN = ("strict", "indent", "show_progress")
MEASURED = ("gap",)
SEEDED = ("manual_seed", "default_rng", "Random")
ASIDE = {"advance", "print", "echo", "warn", "say"}
"""Functions that only say something."""


@dataclass(frozen=True, order=True)
class Mutant:
    """One fault: the bytes from `begin` to `end` of a file become `new`."""

    path: str
    line: int
    begin: int
    end: int
    old: str
    new: str
    text: str
    statement: int

    @property
    def change(self) -> str:
        """What becomes what, on one line."""
        return " ".join(f"{self.old} -> {self.new}".split())


class Finder(ast.NodeVisitor):
    """Walks over a file's syntax tree and notes every place where a fault can be planted."""

    def __init__(self, path: str, source: bytes):
        self.path, self.source, self.found = path, source, []
        self.lines = source.decode().split("\n")
        self.offsets = [0]
        for line in source.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.numbers = not path.startswith("reporting/")
        self.statement = 1

    def visit(self, node: ast.AST) -> None:
        """Walk on, with the line that the statement begins on."""
        before = self.statement
        self.statement = node.lineno if isinstance(node, ast.stmt) else before
        super().visit(node)
        self.statement = before

    def at(self, node: ast.AST, end: bool = False) -> int:
        """The offset in bytes at which a node begins, or ends."""
        line, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)
        return self.offsets[line - 1] + column

    def note(self, begin: int, end: int, new: str) -> None:
        """Keep one mutant."""
        line = self.source.count(b"\n", 0, begin) + 1
        old = self.source[begin:end].decode()
        self.found.append(
            Mutant(self.path, line, begin, end, old, new, self.lines[line - 1].strip(), self.statement)
        )

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """The operator between two operands."""
        begin, end = self.at(left, end=True), self.at(right)
        pattern = rb"\s+".join(re.escape(word.encode()) for word in old.split())
        if found := re.search(pattern, self.source[begin:end]):
            self.note(begin + found.start(), begin + found.end(), new)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, right, operator in zip(operands, operands[1:], node.ops, strict=False):
            measured = any(
                isinstance(side, ast.Call) and _name(side.func) in MEASURED for side in (left, right)
            )
            if measured and isinstance(operator, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)):
                continue
            self.between(left, right, *COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(isinstance(n, ast.JoinedStr) or _is(n, str, bytes) for n in ast.walk(node))
        if type(node.op) in ARITHMETIC and self.numbers and not texts:
            self.between(node.left, node.right, *ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in ARITHMETIC and self.numbers and not _is(node.value, str):
            old, new = ARITHMETIC[type(node.op)]
            self.between(node.target, node.value, f"{old}=", f"{new}=")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not) or (isinstance(node.op, ast.USub) and self.numbers):
            self.note(self.at(node), self.at(node.operand), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if self.numbers and type(value) in (int, float):
            assert isinstance(value, (int, float))
            new = value + 1 if isinstance(value, int) else value * 2 or 1.0
            self.note(self.at(node), self.at(node, end=True), repr(new))

    def visit_Slice(self, node: ast.Slice) -> None:
        if isinstance(node.upper, (ast.Name, ast.Attribute)) and self.numbers:
            self.note(self.at(node.upper, end=True), self.at(node.upper, end=True), " + 1")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.body[-1], ast.Raise):
            begin, end = self.at(node.test), self.at(node.test, end=True)
            self.note(begin, end, f"False and ({self.source[begin:end].decode()})")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and _is(node.value, bool):
            self.flip(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if _name(node.func) in ASIDE or _name(getattr(node.func, "value", node.func)) == "bar":
            return
        if _name(node.func) in NAMES:
            end = self.at(node.func, end=True)
            self.note(end - len(_name(node.func)), end, NAMES[_name(node.func)])
        if len(node.args) > 1 and _name(node.func) not in ("min", "max", "isinstance"):
            first, second = node.args[:2]
            texts = [ast.unparse(argument) for argument in (first, second)]
            plain = (
                all(isinstance(a, (ast.Name, ast.Attribute)) for a in (first, second))
                and first.lineno == second.lineno
            )
            if plain and texts[0] != texts[1]:
                self.note(self.at(first), self.at(second, end=True), f"{texts[1]}, {texts[0]}")
        for keyword in node.keywords:
            if _is(keyword.value, bool) and keyword.arg not in UNSEEN:
                self.flip(keyword.value)
        node.keywords = [
            k for k in node.keywords if k.arg not in UNSEEN and not (k.arg == "seed" and _is(k.value, int))
        ]
        if _name(node.func) in SEEDED:
            node.args = [a for a in node.args if not _is(a, int)]
        self.generic_visit(node)

    def flip(self, node: ast.AST) -> None:
        """True becomes False, and the other way round."""
        begin, end = self.at(node), self.at(node, end=True)
        self.note(begin, end, "False" if self.source[begin:end] == b"True" else "True")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
                self.visit(statement)

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
                self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.body)

    def skip(self, node: ast.AST) -> None:
        """Nothing is planted here."""

    visit_Raise = visit_JoinedStr = visit_Import = visit_ImportFrom = visit_Assert = visit_arguments = skip


def _is(node: ast.AST, *kinds: type) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in kinds


def _name(node: ast.AST) -> str:
    return getattr(node, "id", None) or getattr(node, "attr", None) or ""


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """All mutants of one file, from its first line to its last."""
    finder = Finder(path, source)
    finder.visit(ast.parse(source))
    return sorted(finder.found, key=lambda mutant: (mutant.begin, mutant.end, mutant.new))
