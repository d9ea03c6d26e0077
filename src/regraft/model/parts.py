"""Find the parts of a transformer by structure: stacks, blocks, branches, projections, norms, embedding,
head.

Nothing here asks what a model is called. A stack is a `ModuleList` whose elements hand the residual stream on
to each other; a branch is what a block adds to the stream, found at the output of the projection that bears
one of the names of the tables below. What is found here is a claim; `selfcheck` proves or refuses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from regraft.checkpoint.roles import BranchKind

HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_v_heads", "n_local_heads")
MLP_MODULES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "DenseReluDense", "ff")
LINEAR_ATTENTION = re.compile(r"linear_?attn|delta_?net", re.IGNORECASE)
NORM = re.compile(r"norm", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Branch:
    """What one sublayer adds to the residual stream.

    `module` returns the addition before any norm of its own; `projection` is the same module where it is a
    plain linear map; `out_norm` normalises the addition (sandwich and post-norm blocks); `sum_norm`
    normalises the stream after the addition (the original transformer, BERT). `attention` is the module that
    mixes positions. `factor` is a constant by which the block multiplies what `last` returns before it is
    added.
    """

    kind: BranchKind
    module: nn.Module
    projection: nn.Module | None
    out_norm: nn.Module | None = None
    sum_norm: nn.Module | None = None
    attention: nn.Module | None = None
    recurrent: bool = False
    factor: float = 1.0

    @property
    def last(self) -> nn.Module:
        """The module whose output is added to the stream."""
        return self.out_norm or self.module


@dataclass(frozen=True, eq=False)
class Block:
    """One layer: where it stands, its module, its branches, and whether they read the stream side by side."""

    index: int
    address: str
    path: str
    module: nn.Module
    branches: tuple[Branch, ...]
    parallel: bool
    reason: str = ""

    def branch(self, kind: str) -> Branch | None:
        """The branch of that kind, or None."""
        return next((branch for branch in self.branches if branch.kind == kind), None)

    @property
    def sum_norms(self) -> bool:
        """Whether the stream itself is normalised after each addition."""
        return any(branch.sum_norm is not None for branch in self.branches)


@dataclass(frozen=True, eq=False)
class Stack:
    """A list of blocks that hand the residual stream on, and the module that loops over them."""

    name: str
    path: str
    owner: nn.Module
    attribute: str
    first: int
    blocks: tuple[Block, ...]

    @property
    def stop(self) -> int:
        """Index after the last block, counted over the whole model."""
        return self.first + len(self.blocks)


@dataclass(frozen=True, eq=False)
class Parts:
    """All that was found; `None` where there is nothing of the kind.

    `labels` is the number of labels that the head scores at every token, 0 where it scores the tokens of the
    vocabulary. `written` are the blocks whose incoming stream is written to in place, as the version counters
    of recorded streams told: those are given copies.
    """

    stacks: tuple[Stack, ...]
    embedding: nn.Embedding
    embedding_path: str
    final_norm: nn.Module | None
    final_norm_path: str
    head: nn.Module | None
    head_path: str
    tied: bool
    labels: int = 0
    why_no_head: str = "has no output matrix"
    written: set[int] = field(default_factory=set)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block of every stack, in the order in which a forward pass calls them."""
        return tuple(block for stack in self.stacks for block in stack.blocks)


def is_linear(module: nn.Module) -> bool:
    """Whether the module is one matrix product: `nn.Linear` or the transposed `Conv1D` of GPT-2."""
    return isinstance(module, (nn.Linear, Conv1D))


def acts_linear(module: nn.Module) -> bool:
    """Whether the module takes the place of a linear map: one itself, or another with its two widths (an
    adapter's layer)."""
    widths = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return is_linear(module) or all(isinstance(width, int) for width in widths)


def in_width(module: nn.Module) -> int:
    """Number of inputs of a linear map, whatever form its matrix is stored in."""
    return cast(Conv1D, module).nx if isinstance(module, Conv1D) else cast(nn.Linear, module).in_features


def out_width(module: nn.Module) -> int:
    """Number of outputs of a linear map."""
    return cast(Conv1D, module).nf if isinstance(module, Conv1D) else cast(nn.Linear, module).out_features


def has_matrix(module: nn.Module) -> bool:
    """Whether a linear map keeps its matrix as plain numbers, one for each output and input, and not as
    codes."""
    if not is_linear(module):
        return False
    weight: Any = module.weight
    shape = (out_width(module), in_width(module))
    plain = (
        type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.dtype.itemsize > 1
    )
    return plain and tuple(weight.shape) == (shape if isinstance(module, nn.Linear) else shape[::-1])


def matrix_OI(module: nn.Module) -> Tensor:
    """The weight of a linear map as (outputs, inputs); a view where it is stored the other way round.

    Raises:
        ValueError: it is stored as codes.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not has_matrix(module):
        raise ValueError(
            f"a {type(module).__name__} stores its matrix as {type(weight).__name__} of {weight.dtype}, not"
            " as plain numbers: open a copy of the model with plain floating weights"
        )
    return weight if isinstance(module, nn.Linear) else weight.t()


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalisation with a one-dimensional weight (or none), and not a module around
    one."""
    weight: Any = getattr(module, "weight", None)
    return (
        not any(True for _ in module.children())
        and bool(NORM.search(type(module).__name__))
        and (weight is None or weight.dim() == 1)
    )


def close(
    branches: tuple[Branch, ...], pre: Tensor, outs: list[Tensor], shape: tuple[int, ...]
) -> Tensor | None:
    """The stream that leaves the block when its branches add `outs` to `pre`; None where shapes forbid it."""
    stream = pre
    for branch, out in zip(branches, outs, strict=True):
        if out.numel() != pre.numel():
            return None
        stream = stream + out.reshape(shape)
        if branch.sum_norm is not None:
            stream = branch.sum_norm(stream)
            if not isinstance(stream, Tensor):
                return None
    return stream
