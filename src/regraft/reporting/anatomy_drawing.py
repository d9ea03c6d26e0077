"""A checkpoint's anatomy as a drawing: one column for each stack, with the tables, norms and heads that
belong to it.

A full line stands for what is certain, a dashed one for what is inferred, a dotted one for what is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from regraft.checkpoint.census import owner
from regraft.checkpoint.dissection import Component, Kind, Outside, StackFound
from regraft.checkpoint.shapes import Fact

COLUMN, GAP, LINE, PAD, SHOWN = 400, 36, 17, 10, 22
"""Pixels of a column, between boxes, of a line, inside a box; and lines of a box."""
MARKS = {"certain": "●", "inferred": "◐", "claimed": "◔", "unknown": "○"}
DASHES = {"certain": "", "inferred": "6 4", "claimed": "6 4", "unknown": "2 3"}
FILLS = {"table": "#e8f0fb", "block": "#ffffff", "norm": "#f3f4f6", "head": "#fdf1e3", "title": "none"}
INK, MUTED, EDGE, BAR = "#1b2430", "#5c6672", "#3b7dd8", "#cfe0f7"
WIDEST = COLUMN - 2 * PAD + 8
"""Pixels of a bar that stands for the whole."""


@dataclass
class Box:
    """One box of a column: a heading, lines below it, how sure it is that it is what it is drawn as."""

    heading: str
    lines: list[str] = field(default_factory=list)
    fill: str = "block"
    how: str = "certain"
    shares: list[float] = field(default_factory=list)
    """A share for each line, drawn as a bar behind it."""

    @property
    def height(self) -> int:
        """In pixels."""
        return 2 * PAD + LINE * (1 + len(self.lines))


def columns(component: Component) -> list[list[Box]]:
    """The boxes of every stack, from the tables down to the head; what belongs to no stack stands with the
    largest."""
    if not component.stacks:
        return [[Box("no repeated blocks", [_outside(o) for o in component.outside[:SHOWN]], how="unknown")]]
    main = max(component.stacks, key=lambda stack: stack.parameters)
    owned: dict[str, list[Outside]] = {stack.path: [] for stack in component.stacks}
    for tensor in component.outside:
        owned[owner(tensor.name, [*owned], main.path)].append(tensor)
    order = sorted(
        component.stacks, key=lambda stack: (stack is not main, "decoder" in stack.path, stack.path)
    )
    found = [_column(stack, owned[stack.path]) for stack in order]
    if not component.census:
        return found
    return [[census_box(component, stack.path), *boxes] for stack, boxes in zip(order, found, strict=True)]


def _column(stack: StackFound, outside: list[Outside]) -> list[Box]:
    tables = [o for o in outside if o.use.endswith("table")]
    heads = [o for o in outside if o.use == "head"]
    rest = [o for o in outside if o not in tables and o not in heads]
    boxes = []
    if tables:
        boxes.append(Box("tables", [_outside(o) for o in tables], "table", "inferred"))
    boxes += [_kind(stack, kind) for kind in stack.kinds]
    if rest:
        boxes.append(Box("outside the blocks", _few([_outside(o) for o in rest]), "norm", "inferred"))
    if heads:
        boxes.append(Box("head", _few([_outside(o) for o in heads]), "head", "inferred"))
    return boxes


def census_box(component: Component, part: str) -> Box:
    """What a stack and all that belongs to it is made of, by kind: its parameters as shares of the stack."""
    lines = [line for line in component.census if line.part == part]
    total = sum(line.parameters for line in lines)
    shares = [line.parameters / total if total else 0.0 for line in lines]
    told = [
        f"{share:6.1%}  {line.kind}   {line.parameters:,} in {line.tensors:,}"
        for line, share in zip(lines, shares, strict=True)
    ]
    whole = f": {total / component.parameters:.0%} of all" if component.parameters else ""
    return Box(f"{part}, by kind of part{whole}", told, "title", shares=shares)


def _kind(stack: StackFound, kind: Kind) -> Box:
    """A box for the blocks of one kind: facts, then matrices, then a line for all vectors."""
    matrices = [t for t in kind.tensors if len(t.shape) > 1]
    vectors = sum(t.each for t in kind.tensors if len(t.shape) < 2)
    lines = [_fact(fact) for fact in kind.facts]
    lines += _few(
        [f"{t.name}{f'  ({t.each} of them)' if t.each > 1 else ''}   {_shape(t.shape)}" for t in matrices]
    )
    lines.append(f"{vectors} vectors (norms, biases)   {kind.parameters:,} numbers a block")
    which = "" if len(stack.kinds) == 1 else f": {_ranges(kind.blocks)}"
    return Box(f"{len(kind.blocks)} x {stack.path}{which}", lines, "block", "certain")


def _few(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[: SHOWN - 1], f"... and {len(lines) - SHOWN + 1} more"]


def _fact(fact: Fact) -> str:
    value = (
        "unknown" if fact.value is None else f"{fact.value:,}" if isinstance(fact.value, int) else fact.value
    )
    because = f" ({fact.why})" if fact.how == "unknown" else ""
    return f"{MARKS[fact.how]} {fact.what}: {value}{because}"


def _outside(tensor: Outside) -> str:
    return f"{tensor.name}   {_shape(tensor.shape)}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape) or "one number"


def _ranges(numbers: Sequence[int]) -> str:
    """0-3, 5, 7-9."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def svg(name: str, components: Sequence[Component]) -> str:
    """The whole drawing of a checkpoint."""
    groups = []
    for component in components:
        title = (
            f"{component.name or name}: {component.parameters:,} parameters, {component.bytes / 1e6:,.1f} MB"
        )
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(component.dtypes.items()))
        groups.append((title, kinds, columns(component)))
    return drawing(
        groups, "● certain    ◐ inferred from names and shapes    ○ unknown; full, dashed, dotted lines alike"
    )


def drawing(groups: Sequence[tuple[str, str, list[list[Box]]]], legend: str) -> str:
    """Columns of boxes side by side, with arrows downwards: (title, words below it, columns) for each
    group."""
    made, left, height = [], GAP, 0
    for title, below, stacks in groups:
        made.append(_text(left, 30, title, bold=True))
        made.append(_text(left, 30 + LINE, below, MUTED))
        for boxes in stacks:
            top = 70
            for place, box in enumerate(boxes):
                made += _drawn(box, left, top)
                top += box.height
                if place < len(boxes) - 1:
                    if not box.shares:
                        made.append(_arrow(left + COLUMN / 2, top, top + GAP - 8))
                    top += GAP
            height = max(height, top)
            left += COLUMN + GAP
    made.append(_text(GAP, height + 40, legend, MUTED))
    style = "font-family:system-ui,sans-serif;font-size:12px"
    size = f'width="{left}" height="{height + 64}" viewBox="0 0 {left} {height + 64}"'
    marker = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        f' orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{MUTED}"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}"><rect width="100%" height="100%"'
        ' fill="white"/>'
        f"{marker}{''.join(made)}</svg>"
    )


def _drawn(box: Box, left: float, top: float) -> list[str]:
    dash = f' stroke-dasharray="{DASHES[box.how]}"' if DASHES[box.how] else ""
    frame = (
        f'<rect x="{left}" y="{top}" width="{COLUMN}" height="{box.height}" rx="6" fill="{FILLS[box.fill]}" '
        f'stroke="{EDGE}"{dash}/>'
    )
    bars = [
        f'<rect x="{left + PAD - 4}" y="{top + PAD + 1 + LINE * number}" width="{share * WIDEST:.1f}"'
        f' height="{LINE - 3}" fill="{BAR}"/>'
        for number, share in enumerate(box.shares, 1)
    ]
    texts = [*bars, _text(left + PAD, top + PAD + 12, _cut(box.heading, 56), bold=True)]
    for number, line in enumerate(box.lines, 1):
        texts.append(_text(left + PAD, top + PAD + 12 + LINE * number, _cut(line, 59)))
    return [frame, *texts]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _text(x: float, y: float, text: str, colour: str = INK, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" fill="{colour}"{weight} xml:space="preserve">{escape(text)}</text>'


def _arrow(x: float, top: float, bottom: float) -> str:
    return f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom + 6}" stroke="{MUTED}" marker-end="url(#tip)"/>'
