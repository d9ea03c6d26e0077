"""How a block is read: which modules' outputs it adds to the residual stream, and what else it does to it.

The reading by names comes first: the projections that bear one of a table of names, on the attention's side
or the MLP's. Where their sum is not what the block adds, constant factors are tried, and then every pair of
modules whose outputs have the shape of the stream. A reading counts only when it adds up. Shapes: B prompts,
T positions, D width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from torch import Tensor, nn

from regraft.checkpoint.roles import ATTENTION, OUTPUT_PROJECTIONS, BranchKind, side_of
from regraft.core.structure import largest_difference, same_memory
from regraft.model.parts import LINEAR_ATTENTION, MLP_MODULES, Block, Branch, acts_linear, close, is_norm
from regraft.model.trace import Call, Trace, stream_in

COARSE = {2: 2e-2}
"""By bytes of a number: how far a reading may be from the block's output, as a share of what the block adds.
1e-4 else."""
SAME_FACTOR = 1e-5
"""How near a fitted factor comes to one that the configuration names: rounding in float32, no more."""
SAYS_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert", re.IGNORECASE)
MOST_SEARCHED = 24
"""So many modules of the stream's shape are tried in threes: two thousand sums."""
Branches = tuple[Branch, ...]


def read_block(traced: Trace, index: int, address: str, path: str, module: nn.Module) -> Block:
    """One block with its branches, or without any and with the reason."""
    own = traced.of(module)[0]
    calls = traced.below(path)
    pre, post = stream_in(own), own.output
    assert pre is not None
    factors = constants_of(module)
    named = [_with_norms(branches, calls, post) for branches in _branch_choices(path, calls, pre.shape[-1])]
    for readings in (named, _searched(path, calls, pre, post)):
        for branches in readings:
            if (found := _closed(branches, calls, pre, post, factors)) is not None:
                outs = [output_of(branch, calls) for branch in found]
                return Block(index, address, path, module, found, _is_parallel(found, calls, pre, outs))
    return Block(index, address, path, module, (), False, _why_not(path, calls, pre, post))


def output_of(branch: Branch, calls: list[Call]) -> Tensor:
    """What a branch added to the stream in a traced run."""
    out = next(call.output for call in calls if call.module is branch.last)
    return out if branch.factor == 1.0 else branch.factor * out


def constants_of(module: nn.Module) -> list[float]:
    """The constant numbers that a block and its parts keep as attributes, where a factor may come from."""
    numbers = [value for part in module.modules() for value in vars(part).values() if type(value) is float]
    return sorted(set(numbers) - {0.0, 1.0})


def _closed(
    branches: Branches, calls: list[Call], pre: Tensor, post: Tensor, factors: list[float]
) -> Branches | None:
    """The branches where they add up to what the block adds, with one constant factor for all where that is
    needed."""
    if not branches:
        return None
    outs = [output_of(branch, calls) for branch in branches]
    if any(out.numel() != pre.numel() for out in outs):
        return None
    if _closes(branches, pre, outs, post):
        return branches
    if any(branch.sum_norm is not None for branch in branches):
        return None
    factor = _constant(
        sum(out.double().reshape(-1) for out in outs), (post.double() - pre.double()).reshape(-1), factors
    )
    scaled = tuple(replace(branch, factor=factor) for branch in branches)
    return (
        scaled
        if factor and _closes(scaled, pre, [output_of(branch, calls) for branch in scaled], post)
        else None
    )


def _constant(sum_N: Tensor | int, wanted_N: Tensor, factors: list[float]) -> float:
    """The constant of the block that makes one vector of another, by least squares; 0 where no constant of it
    does."""
    assert isinstance(sum_N, Tensor)
    fitted = float(sum_N @ wanted_N / (sum_N @ sum_N).clamp_min(1e-300))
    return next((factor for factor in factors if abs(factor - fitted) <= SAME_FACTOR * abs(fitted)), 0.0)


def _closes(branches: Branches, pre: Tensor, outs: list[Tensor], post: Tensor) -> bool:
    closed = close(branches, pre, outs, post.shape)
    scale = float((post - pre).abs().max()) + 1e-6 * float(post.abs().max())
    return closed is not None and largest_difference(closed, post) <= COARSE.get(
        post.element_size(), 1e-4
    ) * max(scale, 1e-30)


def _of_stream_shape(calls: list[Call], pre: Tensor) -> list[Call]:
    """Calls that returned something of the shape of the stream which is no norm of it, each once, the
    outermost last."""
    fitting = [
        c
        for c in calls
        if c.has_output and c.output.numel() == pre.numel() and c.output.shape[-1] == pre.shape[-1]
    ]
    return [c for c in fitting if c.output.is_floating_point() and not is_norm(c.module)]


def _searched(path: str, calls: list[Call], pre: Tensor, post: Tensor) -> list[Branches]:
    """Every one module, or two, whose outputs add up to what the block adds, whatever they are called."""
    traced = _of_stream_shape(calls, pre)
    found = [
        tuple(_unnamed(path, call, calls) for call in chosen) for chosen in _sums(traced, pre, post, (1, 2))
    ]
    found.append(_between_norms(path, calls, pre, post))
    return [branches for branches in found if len({branch.kind for branch in branches}) == len(branches)]


def _sums(traced: list[Call], start: Tensor, end: Tensor, sizes: tuple[int, ...]) -> list[tuple[Call, ...]]:
    """The combinations of calls whose outputs make one stream of another when they are added to it."""
    added = end.reshape(-1) - start.reshape(-1)
    limit = COARSE.get(end.element_size(), 1e-4) * max(float(added.abs().max()), 1e-30)
    flat = {id(call): call.output.reshape(-1) for call in traced}
    chosen = [some for size in sizes for some in combinations(traced, size)]
    return [some for some in chosen if float((sum(flat[id(c)] for c in some) - added).abs().max()) <= limit]


def _between_norms(path: str, calls: list[Call], pre: Tensor, post: Tensor) -> Branches:
    """Branches of a block that normalises the stream after each addition: what each norm was given, less the
    stream before."""
    stream, found, traced = pre, [], _of_stream_shape(calls, pre)
    for norm in [
        c
        for c in calls
        if is_norm(c.module) and c.inputs and c.has_output and c.inputs[0].numel() == pre.numel()
    ]:
        if not (one := _sums(traced, stream, norm.inputs[0], (1,))):
            continue
        found.append(replace(_unnamed(path, one[0][0], calls), sum_norm=norm.module))
        stream = norm.output
    return tuple(found) if largest_difference(stream.reshape(post.shape), post) == 0.0 else ()


def _unnamed(path: str, call: Call, calls: list[Call]) -> Branch:
    """A branch that no table of names knows: its side by what its name and class say, its projection where it
    is one."""
    name = call.name.removeprefix(path + ".")
    kind = "attn" if _in_attention(call, calls) else side_of(f"{name}.{type(call.module).__name__}.out")
    inside = [c for c in calls if c.name.startswith((call.name + ".", call.name.rpartition(".")[0] + "."))]
    owners = {c.name.rpartition(".")[0] for c in inside if isinstance(c.module, nn.Conv1d)}
    if (
        kind == "mlp"
        and not SAYS_MLP.search(name)
        and owners & {call.name, call.name.rpartition(".")[0]} - {path}
    ):
        kind = "mixer"
    attention = (_attention_module(path, f"{name}.out", calls) or call.module) if kind == "attn" else None
    projection = call.module if acts_linear(call.module) else None
    return Branch(
        kind, call.module, projection, attention=attention, recurrent=bool(LINEAR_ATTENTION.search(name))
    )


def _why_not(path: str, calls: list[Call], pre: Tensor, post: Tensor) -> str:
    """What the block does to the stream instead of adding one or two parts to it, as far as it can be
    told."""
    plain = "no attention or MLP was found whose outputs add up to what the block adds to the residual stream"
    traced = _of_stream_shape(calls, pre)
    for norm in [c for c in calls if is_norm(c.module) and c.has_output and c.output.numel() == pre.numel()]:
        if sums := _sums(traced, norm.output.reshape(pre.shape), post, (1, 2)):
            onto = f"{_listed(path, (norm,))} ({_listed(path, sums[0])})"
            return f"{plain}: it lets go of the stream that came in and adds to {onto}"
    if len(traced) <= MOST_SEARCHED and (sums := _sums(traced, pre, post, (3,))):
        return (
            f"{plain}: it adds three at once ({_listed(path, sums[0])}), and nothing returns the sum of two"
            " of them"
        )
    if traced:
        return f"{plain} (the last of its shape are {_listed(path, traced[-4:])})"
    return f"{plain} (no part of it returns one of its shape)"


def _listed(path: str, calls: Sequence[Call]) -> str:
    return ", ".join(call.name.removeprefix(path + ".") for call in calls)


def _branch_choices(path: str, calls: list[Call], width: int) -> list[tuple[Branch, ...]]:
    """Possible readings of a block, the most telling first; closure decides between them."""
    sides: dict[BranchKind, list[Branch]] = {"attn": [], "cross": [], "mixer": [], "mlp": []}
    convolved = {c.name for c in calls if any(isinstance(child, nn.Conv1d) for child in c.module.children())}
    for call in reversed(calls):
        name = call.name.removeprefix(path + ".")
        if not call.has_output or call.output.shape[-1] != width or not acts_linear(call.module):
            continue
        if name.rpartition(".")[2] in OUTPUT_PROJECTIONS:
            kind = side_of(name) if not _in_attention(call, calls) else "attn"
            kind = "mixer" if kind == "mlp" and call.name.rpartition(".")[0] in convolved else kind
            attention = _attention_module(path, name, calls) if kind in ("attn", "cross") else None
            recurrent = bool(LINEAR_ATTENTION.search(name))
            sides[kind].append(
                Branch(kind, call.module, call.module, attention=attention, recurrent=recurrent)
            )
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


def _in_attention(call: Call, calls: list[Call]) -> bool:
    """Whether a projection that no name tells the side of belongs to a module whose class says attention."""
    owner = next((c.module for c in calls if c.name == call.name.rpartition(".")[0]), None)
    return side_of(call.name) == "mlp" and owner is not None and bool(ATTENTION.search(type(owner).__name__))


def _attention_module(path: str, name: str, calls: list[Call]) -> nn.Module | None:
    """The innermost module around the projections whose name says attention."""
    modules = {call.name.removeprefix(path + "."): call.module for call in calls}
    components = name.split(".")
    while components := components[:-1]:
        module = modules.get(".".join(components))
        if module is not None and ATTENTION.search(f"{components[-1]} {type(module).__name__}"):
            return module
    return None


def _call_order(calls: list[Call]) -> dict[int, int]:
    return {id(call.module): position for position, call in enumerate(calls)}


def _with_norms(branches: tuple[Branch, ...], calls: list[Call], post: Tensor) -> tuple[Branch, ...]:
    norms = [call for call in calls if is_norm(call.module) and call.inputs and call.has_output]
    order = _call_order(calls)
    stream_is_normed = any(same_memory(call.memory, post) for call in norms)
    found = []
    for branch in branches:
        raw = next(call.memory for call in calls if call.module is branch.module)
        out_norm = next((call.module for call in norms if same_memory(call.inputs[0], raw)), None)
        sum_norm = None
        if out_norm is None and stream_is_normed:
            after = [call for call in norms if order[id(call.module)] > order[id(branch.module)]]
            sum_norm = after[0].module if after else None
        found.append(replace(branch, out_norm=out_norm, sum_norm=sum_norm))
    return tuple(found)


def _is_parallel(branches: tuple[Branch, ...], calls: list[Call], pre: Tensor, outs: list[Tensor]) -> bool:
    """Whether no module reads the stream after the first branch: then the branches stand side by side."""
    if len(branches) < 2 or branches[0].sum_norm is not None:
        return False
    middle = pre + outs[0].reshape(pre.shape)
    readers = [t.reshape(pre.shape) for call in calls for t in call.inputs if t.numel() == pre.numel()]
    return not any(largest_difference(t, middle) < 0.1 * largest_difference(t, pre) for t in readers)
