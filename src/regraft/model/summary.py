"""The parts of an opened model as tables: parameters and bytes per part, shapes, and which sites exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from regraft.model.model import Model
from regraft.model.parts import Block, in_width
from regraft.model.sites import BLOCK_SITES


@dataclass(frozen=True)
class PartRow:
    """One part: its kind, where it is in the Hugging Face model, its shape in words, parameters, bytes."""

    part: str
    path: str
    shape: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class SiteRow:
    """One kind of site: in how many blocks it exists, and why it does not in the others."""

    site: str
    blocks: int
    total: int
    reason: str


def weigh(module: nn.Module | None) -> tuple[int, int]:
    """Number of parameters and of bytes of a module, a shared tensor counted once."""
    if module is None:
        return 0, 0
    tensors = {id(p): p for p in module.parameters()}
    return sum(p.numel() for p in tensors.values()), sum(
        p.numel() * p.element_size() for p in tensors.values()
    )


def part_rows(model: Model) -> list[PartRow]:
    """The parts of a model from the embedding to the head, blocks of one make together, and the whole."""
    parts = model.parts
    rows = [_row("embedding", parts.embedding_path, _shape(parts.embedding), parts.embedding)]
    for stack in parts.stacks:
        for first, last in _alike(stack.blocks):
            module = stack.blocks[first].module
            count, size = weigh(module)
            number = last - first + 1
            label = f"{stack.name + ' ' if stack.name else ''}block{'s' if number > 1 else ''} {first}"
            label += f" to {last}" if number > 1 else ""
            rows.append(
                PartRow(
                    label,
                    f"{stack.path}.*",
                    _block_shape(model, stack.blocks[first]),
                    count * number,
                    size * number,
                )
            )
    if parts.final_norm is not None:
        rows.append(_row("final norm", parts.final_norm_path, _shape(parts.final_norm), parts.final_norm))
    if parts.head is not None:
        tied = "tied to the embedding, counted there" if parts.tied else _shape(parts.head)
        count, size = (0, 0) if parts.tied else weigh(parts.head)
        rows.append(PartRow("head", parts.head_path, tied, count, size))
    total, size = weigh(model.hf)
    rest = total - sum(row.parameters for row in rows)
    if rest:
        rows.append(
            PartRow(
                "other",
                "",
                "positions, pooling and norms outside the blocks",
                rest,
                size - sum(r.bytes for r in rows),
            )
        )
    rows.append(PartRow("whole model", "", "", total, size))
    return rows


def _row(part: str, path: str, shape: str, module: nn.Module) -> PartRow:
    return PartRow(part, path, shape, *weigh(module))


def _shape(module: nn.Module | None) -> str:
    weight = getattr(module, "weight", None)
    return " x ".join(str(n) for n in weight.shape) if weight is not None else type(module).__name__


def _alike(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Runs of neighbouring blocks with the same class, branches and parameter count."""
    runs: list[tuple[int, int]] = []
    kinds = [
        (type(b.module), weigh(b.module)[0], tuple((x.kind, x.recurrent) for x in b.branches), b.parallel)
        for b in blocks
    ]
    for index, kind in enumerate(kinds):
        if runs and kinds[runs[-1][0]] == kind:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _block_shape(model: Model, block: Block) -> str:
    words = []
    for branch in block.branches:
        name = {
            "attn": "linear attention" if branch.recurrent else "attention",
            "cross": "cross-attention",
        }.get(branch.kind, branch.kind.upper() if branch.kind == "mlp" else branch.kind)
        if branch.kind == "attn" and model.taps.exists(block.index, "z"):
            heads = model.tap(f"{block.address}.z").heads
            name += f" ({heads} heads)" if heads else ""
        if branch.kind == "mlp" and branch.projection is not None:
            name += f" ({in_width(branch.projection)} neurons)"
        if branch.kind == "mlp" and branch.projection is None:
            name += " (mixture of experts)"
        words.append(name)
    joined = (" beside " if block.parallel else ", then ").join(words) or "no branch was found"
    return joined + ("; norm after each addition" if block.sum_norms else "")


def site_rows(model: Model) -> list[SiteRow]:
    """Which sites exist in how many blocks; the reason of the first block that lacks one."""
    total = len(model.blocks)
    rows = []
    for site in BLOCK_SITES:
        lacking = [table[site] for table in model.taps.table if isinstance(table[site], str)]
        rows.append(SiteRow(site, total - len(lacking), total, str(lacking[0]) if lacking else ""))
    return rows
