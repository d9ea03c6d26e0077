"""Find the parts of a transformer by structure: stacks, embedding, final norm, head; `branches` reads each
block.

Nothing here asks what a model is called. A stack is a `ModuleList` whose elements hand the residual stream on
to each other. What is found here is a claim; `selfcheck` proves or refuses it.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from regraft.core.structure import largest_difference, same_memory
from regraft.model.branches import read_block
from regraft.model.parts import Parts, Stack, is_linear, is_norm, out_width
from regraft.model.trace import Call, Trace, stream_in


def find_parts(hf: nn.Module, traced: Trace, ids_BT: Tensor) -> Parts:
    """Read the parts off one traced forward pass of the ids (B, T).

    Raises:
        ValueError: no list of blocks carries a residual stream through this model, or there are more than
            two.
    """
    lists = _find_stacks(hf, traced)
    if not lists:
        raise ValueError(
            "no list of blocks that hand a residual stream on was found in this model: it cannot be opened"
        )
    if len(lists) > 2:
        raise ValueError(
            f"{len(lists)} stacks of blocks were found ({', '.join(lists)}): one or two can be opened"
        )
    names = ("",) if len(lists) == 1 else ("encoder", "decoder")
    stacks, first = [], 0
    for name, (path, modules) in zip(names, lists.items(), strict=True):
        stacks.append(_stack(hf, traced, name, path, modules, first))
        first += len(modules)
    embedding = _embedding(traced, ids_BT)
    table = embedding.module
    assert isinstance(table, nn.Embedding)
    final_norm, head, why = _after_last_block(traced, stacks[-1])
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


def _find_stacks(hf: nn.Module, traced: Trace) -> dict[str, nn.ModuleList]:
    found: dict[str, nn.ModuleList] = {}
    order = {id(call.module): position for position, call in reversed(list(enumerate(traced.calls)))}
    lists = [
        (name, module)
        for name, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    for name, modules in sorted(lists, key=lambda item: item[0].count(".")):
        inside = any(name.startswith(outer + ".") for outer in found)
        if not inside and _hands_stream_on([traced.of(module) for module in modules]):
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
    return all(
        largest_difference(earlier.output, _incoming(later)) == 0.0 for earlier, later in pairwise(chain)
    )


def _incoming(call: Call) -> Tensor:
    stream = stream_in(call)
    assert stream is not None
    return stream


def _stack(hf: nn.Module, traced: Trace, name: str, path: str, modules: nn.ModuleList, first: int) -> Stack:
    owner_path, _, attribute = path.rpartition(".")
    blocks = []
    for offset, module in enumerate(modules):
        address = f"{name}.{offset}" if name else str(offset)
        blocks.append(read_block(traced, first + offset, address, f"{path}.{offset}", module))
    return Stack(name, path, hf.get_submodule(owner_path), attribute, first, tuple(blocks))


def _embedding(traced: Trace, ids_BT: Tensor) -> Call:
    """The table that the token ids were looked up in; failing that, the first that was called with whole
    numbers.

    Tables of positions, of token types and of image patches are called with whole numbers too, but not with
    these.
    """
    lookups = [
        call
        for call in traced.calls
        if isinstance(call.module, nn.Embedding) and call.inputs and not call.inputs[0].is_floating_point()
    ]
    if not lookups:
        raise ValueError("no token embedding was called in this model's forward pass: it cannot be opened")
    return next((call for call in lookups if largest_difference(call.inputs[0], ids_BT) == 0.0), lookups[0])


def _labels(hf: nn.Module, head: Call | None, table: nn.Embedding) -> int:
    """How many labels a head scores that is no output matrix over the tokens."""
    if head is None or out_width(head.module) == table.num_embeddings:
        return 0
    output_matrix = getattr(hf, "get_output_embeddings", lambda: None)()
    return 0 if output_matrix is head.module else out_width(head.module)


def _after_last_block(traced: Trace, stack: Stack) -> tuple[Call | None, Call | None, str]:
    """The final norm and the head, and why there is no head that scores each position by itself."""
    last = next(i for i, call in enumerate(traced.calls) if call.module is stack.blocks[-1].module)
    after = traced.calls[last + 1 :]
    stream = traced.calls[last].output
    norm = next(
        (c for c in after if is_norm(c.module) and c.inputs and same_memory(c.inputs[0], stream)), None
    )
    logits = getattr(traced.result, "logits", None)
    if logits is None:
        return norm, None, "has no output matrix"
    if logits.dim() != 3 or logits.shape[:2] != stream.shape[:2]:
        what = (
            "gives each token one score" if logits.shape == stream.shape[:2] else "scores a text as a whole"
        )
        return norm, None, f"{what} (logits of shape {tuple(logits.shape)} for {stream.shape[1]} tokens)"
    vocabulary = logits.shape[-1]
    heads = [c for c in after if is_linear(c.module) and c.has_output and c.output.shape[-1] == vocabulary]
    return norm, heads[-1] if heads else None, "has no output matrix"
