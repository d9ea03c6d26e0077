"""The anatomy of a checkpoint as lines of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from regraft.checkpoint.dissection import Component
from regraft.checkpoint.headers import is_pickle
from regraft.cli.columns import aligned

CONVERT = (
    "--pickle-shapes tells its tensors; where you trust it, torch.load and safetensors' save_file convert it"
)
"""What can be done about a pickle."""


def print_anatomy(source: str, components: Sequence[Component], console: Console) -> None:
    """Print facts with how sure they are, the census, other files, and what is odd, part by part."""
    for component in components:
        rows = [
            ["what", "value", "how sure", "why"],
            *([f.what, _as_text(f.value), f.how, f.why] for f in component.facts),
        ]
        for stack in component.stacks:
            rows += [[f"{stack.path}: {f.what}", _as_text(f.value), f.how, f.why] for f in stack.facts]
            for kind in stack.kinds:
                label = (
                    stack.path
                    if len(stack.kinds) == 1
                    else f"{stack.path} {len(kind.blocks)} x (first {kind.blocks[0]})"
                )
                rows += [[f"{label}: {f.what}", _as_text(f.value), f.how, f.why] for f in kind.facts]
        console.print(f"{component.name or source}: {component.bytes:,} bytes", style="bold", highlight=False)
        print("\n".join(aligned(rows)))
        _print_census(component)
        for note in component.odd:
            console.print(f"odd: {note}", highlight=False, style="yellow")


def _print_census(component: Component) -> None:
    """Every kind of part of every stack, and the files beside the weights."""
    rows = [["part", "kind", "tensors", "parameters", "bytes", "share", "of the part"]]
    for line in component.census:
        part = sum(one.share for one in component.census if one.part == line.part)
        shares = [f"{100 * value:.1f}%" for value in (line.share, line.share / part if part else 0.0)]
        counts = (line.tensors, line.parameters, line.bytes)
        rows.append([line.part or "all", line.kind, *(f"{n:,}" for n in counts), *shares])
    total = sum(line.tensors for line in component.census)
    held = sum(line.parameters for line in component.census)
    rows.append(["sum", "", f"{total:,}", f"{held:,}", f"{component.bytes:,}", "100.0%", ""])
    print("\n" + "\n".join(aligned(rows)))
    if component.others:
        rows = [["other file", "bytes", ""], *map(_file_row, component.others.items())]
        print("\n" + "\n".join(aligned(rows)))


def _file_row(file: tuple[str, int]) -> list[str]:
    name, size = file
    note = f"a pickle, not read; {CONVERT}" if is_pickle(name) else ""
    return [name, f"{size:,}", note]


def _as_text(value: Any) -> str:
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
