"""Find the parts of a transformer by structure: stacks, blocks, branches, projections, norms, embedding, head.

Nothing here asks what a model is called. A stack is a `ModuleList` whose elements hand the residual stream on to each
other; a branch is what a block adds to the stream, found at the output of the projection that bears one of the names of
the tables below. What is found here is a claim; `selfcheck` proves or refuses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from regraft.model.structure import largest_difference, same_memory
from regraft.model.trace import Call, Trace

OUTPUT_PROJECTIONS = (
    "o_proj", "out_proj", "c_proj", "dense", "Wo", "wo", "o", "fc_out", "dense_4h_to_h", "fc2", "down_proj", "w2",
    "proj_out", "out_lin", "lin2", "output_proj", "to_out", "proj",
)  # fmt: skip
QUERY_NAMES = ("q_proj", "query", "q", "wq", "to_q", "q_lin")
KEY_NAMES = ("k_proj", "key", "k", "wk", "to_k", "k_lin")
VALUE_NAMES = ("v_proj", "value", "v", "wv", "to_v", "v_lin")
PACKED_NAMES = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "wqkv", "qkv", "in_proj_weight", "att_proj")
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_v_heads", "n_local_heads")
MLP_MODULES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "DenseReluDense", "ff")
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
CROSS_ATTENTION = re.compile(r"encoder_?attn|EncDec|cross_?att", re.IGNORECASE)
LINEAR_ATTENTION = re.compile(r"linear_?attn|delta_?net", re.IGNORECASE)
NORM = re.compile(r"norm", re.IGNORECASE)

BranchKind = Literal["attn", "cross", "mixer", "mlp"]


@dataclass(frozen=True, eq=False)
class Branch:
    """What one sublayer adds to the residual stream.

    `module` returns the addition before any norm of its own; `projection` is the same module where it is a plain linear
    map; `out_norm` normalises the addition (sandwich and post-norm blocks); `sum_norm` normalises the stream after the
    addition (the original transformer, BERT). `attention` is the module that mixes positions.
    """

    kind: BranchKind
    module: nn.Module
    projection: nn.Module | None
    out_norm: nn.Module | None = None
    sum_norm: nn.Module | None = None
    attention: nn.Module | None = None
    recurrent: bool = False

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

    `labels` is the number of labels that the head scores at every token, 0 where it scores the tokens of the vocabulary.
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

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block of every stack, in the order in which a forward pass calls them."""
        return tuple(block for stack in self.stacks for block in stack.blocks)


def find_parts(hf: nn.Module, heard: Trace) -> Parts:
    """Read the parts off one traced forward pass.

    Raises:
        ValueError: no list of blocks carries a residual stream through this model, or there are more than two.
    """
    lists = _find_stacks(hf, heard)
    if not lists:
        raise ValueError("no list of blocks that hand a residual stream on was found in this model: it cannot be opened")
    if len(lists) > 2:
        raise ValueError(f"{len(lists)} stacks of blocks were found ({', '.join(lists)}): one or two can be opened")
    names = ("",) if len(lists) == 1 else ("encoder", "decoder")
    stacks, first = [], 0
    for name, (path, modules) in zip(names, lists.items(), strict=True):
        stacks.append(_stack(hf, heard, name, path, modules, first))
        first += len(modules)
    embedding = _embedding(heard)
    table = embedding.module
    assert isinstance(table, nn.Embedding)
    final_norm, head, why = _after_last_block(heard, stacks[-1])
    return Parts(
        stacks=tuple(stacks),
        embedding=table,
        embedding_path=embedding.name,
        final_norm=final_norm.module if final_norm else None,
        final_norm_path=final_norm.name if final_norm else "",
        head=head.module if head else None,
        head_path=head.name if head else "",
        tied=head is not None and head.module.weight is table.weight,
        labels=_labels(hf, head, table),
        why_no_head=why,
    )


def stream_in(call: Call) -> Tensor | None:
    """The residual stream given to a block: its first three-dimensional floating tensor argument."""
    return next((t for t in call.inputs if t.dim() == 3 and t.is_floating_point()), None)


def _stream_in(call: Call) -> Tensor:
    stream = stream_in(call)
    assert stream is not None
    return stream


def _find_stacks(hf: nn.Module, heard: Trace) -> dict[str, nn.ModuleList]:
    found: dict[str, nn.ModuleList] = {}
    order = {id(call.module): position for position, call in reversed(list(enumerate(heard.calls)))}
    lists = [(name, module) for name, module in hf.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    for name, modules in sorted(lists, key=lambda item: item[0].count(".")):
        inside = any(name.startswith(outer + ".") for outer in found)
        if not inside and _hands_stream_on([heard.of(module) for module in modules]):
            found[name] = modules
    return dict(sorted(found.items(), key=lambda item: order[id(item[1][0])]))


def _hands_stream_on(calls: list[list[Call]]) -> bool:
    if any(len(of_one) != 1 for of_one in calls):
        return False
    chain = [of_one[0] for of_one in calls]
    for call in chain:
        incoming = stream_in(call)
        if incoming is None or not call.has_output or incoming.shape != call.output.shape:
            return False
    return all(largest_difference(earlier.output, _stream_in(later)) == 0.0 for earlier, later in pairwise(chain))


def _stack(hf: nn.Module, heard: Trace, name: str, path: str, modules: nn.ModuleList, first: int) -> Stack:
    owner_path, _, attribute = path.rpartition(".")
    blocks = []
    for offset, module in enumerate(modules):
        address = f"{name}.{offset}" if name else str(offset)
        blocks.append(_block(heard, first + offset, address, f"{path}.{offset}", module))
    return Stack(name, path, hf.get_submodule(owner_path), attribute, first, tuple(blocks))


def _block(heard: Trace, index: int, address: str, path: str, module: nn.Module) -> Block:
    own = heard.of(module)[0]
    calls = heard.below(path)
    pre, post = _stream_in(own), own.output
    for branches in _branch_choices(path, calls, pre.shape[-1]):
        branches = _with_norms(branches, calls, post)
        outs = [_output_of(branch, calls) for branch in branches]
        if close(branches, pre, outs, post.shape) is not None and _closes(branches, pre, outs, post):
            return Block(index, address, path, module, branches, _is_parallel(branches, calls, pre, outs))
    reason = "no attention or MLP was found whose outputs add up to what the block adds to the residual stream"
    return Block(index, address, path, module, (), False, reason)


def close(branches: tuple[Branch, ...], pre: Tensor, outs: list[Tensor], shape) -> Tensor | None:
    """The stream that leaves the block when its branches add `outs` to `pre`; None where shapes forbid it."""
    stream = pre
    for branch, out in zip(branches, outs, strict=True):
        if out.numel() != pre.numel():
            return None
        stream = stream + out.reshape(shape)
        if branch.sum_norm is not None:
            stream = branch.sum_norm(stream)
    return stream


def _closes(branches: tuple[Branch, ...], pre: Tensor, outs: list[Tensor], post: Tensor) -> bool:
    if not branches:
        return False
    closed = close(branches, pre, outs, post.shape)
    scale = float((post - pre).abs().max()) + 1e-6 * float(post.abs().max())
    coarse = {2: 2e-2}.get(post.element_size(), 1e-4)
    return closed is not None and largest_difference(closed, post) <= coarse * max(scale, 1e-30)


def _branch_choices(path: str, calls: list[Call], width: int) -> list[tuple[Branch, ...]]:
    """Possible readings of a block, the most telling first; closure decides between them."""
    sides: dict[BranchKind, list[Branch]] = {"attn": [], "cross": [], "mixer": [], "mlp": []}
    convolved = {c.name for c in calls if any(isinstance(child, nn.Conv1d) for child in c.module.children())}
    for call in reversed(calls):
        name = call.name.removeprefix(path + ".")
        if not call.has_output or call.output.shape[-1] != width or not is_linear(call.module):
            continue
        if name.rpartition(".")[2] in OUTPUT_PROJECTIONS:
            kind = side_of(name)
            kind = "mixer" if kind == "mlp" and call.name.rpartition(".")[0] in convolved else kind
            attention = _attention_module(path, name, calls) if kind in ("attn", "cross") else None
            recurrent = bool(LINEAR_ATTENTION.search(name))
            sides[kind].append(Branch(kind, call.module, call.module, attention=attention, recurrent=recurrent))
    for call in calls:
        name = call.name.removeprefix(path + ".")
        if name.rpartition(".")[2] in MLP_MODULES and call.has_output and call.output.shape[-1] == width:
            sides["mlp"].append(Branch("mlp", call.module, None))
    order = _call_order(calls)
    choices = []
    for attention in sides["attn"][:2] or [None]:
        for mlp in sides["mlp"][:3] or [None]:
            others = [sides[kind][0] for kind in ("cross", "mixer") if sides[kind]]
            chosen = [branch for branch in (attention, *others, mlp) if branch is not None]
            choices.append(tuple(sorted(chosen, key=lambda branch: order[id(branch.module)])))
    return choices


def is_linear(module: nn.Module) -> bool:
    """Whether the module is one matrix product: `nn.Linear` or the transposed `Conv1D` of GPT-2."""
    return isinstance(module, (nn.Linear, Conv1D))


def in_width(module: nn.Module) -> int:
    """Number of inputs of a linear map, whatever form its matrix is stored in."""
    return module.in_features if isinstance(module, nn.Linear) else cast(Conv1D, module).nx


def out_width(module: nn.Module) -> int:
    """Number of outputs of a linear map."""
    return module.out_features if isinstance(module, nn.Linear) else cast(Conv1D, module).nf


def has_matrix(module: nn.Module) -> bool:
    """Whether a linear map keeps its matrix as plain numbers, one for each output and input, and not as codes."""
    weight: Any = module.weight
    shape = (out_width(module), in_width(module))
    plain = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.dtype.itemsize > 1
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
            f"a {type(module).__name__} stores its matrix as {type(weight).__name__} of {weight.dtype}, not as plain numbers: "
            "open a copy of the model with plain floating weights"
        )
    return weight if isinstance(module, nn.Linear) else weight.t()


def side_of(name: str) -> BranchKind:
    """The side of a block that a module's name speaks of: attention, cross-attention or, failing both, the MLP."""
    components = name.split(".")
    if any(CROSS_ATTENTION.search(component) for component in components):
        return "cross"
    return "attn" if any(ATTENTION.search(component) for component in components[:-1]) else "mlp"


def _attention_module(path: str, name: str, calls: list[Call]) -> nn.Module | None:
    """The innermost module around the projections whose name says attention."""
    modules = {call.name.removeprefix(path + "."): call.module for call in calls}
    components = name.split(".")
    while components := components[:-1]:
        if ATTENTION.search(components[-1]) and ".".join(components) in modules:
            return modules[".".join(components)]
    return None


def _call_order(calls: list[Call]) -> dict[int, int]:
    return {id(call.module): position for position, call in enumerate(calls)}


def _output_of(branch: Branch, calls: list[Call]) -> Tensor:
    return next(call.output for call in calls if call.module is branch.last)


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalisation with a one-dimensional weight (or none)."""
    weight: Any = getattr(module, "weight", None)
    return bool(NORM.search(type(module).__name__)) and (weight is None or weight.dim() == 1)


def _with_norms(branches: tuple[Branch, ...], calls: list[Call], post: Tensor) -> tuple[Branch, ...]:
    norms = [call for call in calls if is_norm(call.module) and call.inputs and call.has_output]
    order = _call_order(calls)
    stream_is_normed = any(same_memory(call.output, post) for call in norms)
    found = []
    for branch in branches:
        raw = next(call.output for call in calls if call.module is branch.module)
        out_norm = next((call.module for call in norms if same_memory(call.inputs[0], raw)), None)
        sum_norm = None
        if out_norm is None and stream_is_normed:
            after = [call for call in norms if order[id(call.module)] > order[id(branch.module)]]
            sum_norm = after[0].module if after else None
        found.append(
            Branch(branch.kind, branch.module, branch.projection, out_norm, sum_norm, branch.attention, branch.recurrent)
        )
    return tuple(found)


def _is_parallel(branches: tuple[Branch, ...], calls: list[Call], pre: Tensor, outs: list[Tensor]) -> bool:
    """Whether no module reads the stream after the first branch: then the branches stand side by side."""
    if len(branches) < 2 or branches[0].sum_norm is not None:
        return False
    middle = pre + outs[0].reshape(pre.shape)
    readers = [t.reshape(pre.shape) for call in calls for t in call.inputs if t.numel() == pre.numel()]
    return not any(largest_difference(t, middle) < 0.1 * largest_difference(t, pre) for t in readers)


def _embedding(heard: Trace) -> Call:
    """The table that the token ids were looked up in: the embedding with the most rows of those called with ids."""
    lookups = [
        call
        for call in heard.calls
        if isinstance(call.module, nn.Embedding) and call.inputs and not call.inputs[0].is_floating_point()
    ]
    if not lookups:
        raise ValueError("no token embedding was called in this model's forward pass: it cannot be opened")
    return lookups[0]


def _labels(hf: nn.Module, head: Call | None, table: nn.Embedding) -> int:
    """How many labels a head scores that is no output matrix over the tokens."""
    if head is None or out_width(head.module) == table.num_embeddings:
        return 0
    output_matrix = getattr(hf, "get_output_embeddings", lambda: None)()
    return 0 if output_matrix is head.module else out_width(head.module)


def _after_last_block(heard: Trace, stack: Stack) -> tuple[Call | None, Call | None, str]:
    """The final norm and the head, and why there is no head that scores each position by itself."""
    last = next(i for i, call in enumerate(heard.calls) if call.module is stack.blocks[-1].module)
    after = heard.calls[last + 1 :]
    stream = heard.calls[last].output
    norm = next((c for c in after if is_norm(c.module) and c.inputs and same_memory(c.inputs[0], stream)), None)
    logits = getattr(heard.result, "logits", None)
    if logits is None:
        return norm, None, "has no output matrix"
    if logits.dim() != 3 or logits.shape[:2] != stream.shape[:2]:
        what = "gives each token one score" if logits.shape == stream.shape[:2] else "scores a text as a whole"
        return norm, None, f"{what} (logits of shape {tuple(logits.shape)} for {stream.shape[1]} tokens)"
    vocabulary = logits.shape[-1]
    heads = [c for c in after if is_linear(c.module) and c.has_output and c.output.shape[-1] == vocabulary]
    return norm, heads[-1] if heads else None, "has no output matrix"
