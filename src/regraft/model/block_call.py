"""Run pieces of a Hugging Face model with the model's own code.

A block is called again with the arguments that the model itself passed to it. What stands before the first
block, between two stacks and behind the last block is run by the model too: for that call its stacks are
replaced by stand-ins that answer with a given residual stream. Shapes: N rows, B prompts, T positions, K read
positions, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from regraft.core.structure import (
    Path,
    main_tensor,
    map_tensors,
    same_memory,
    version,
    walk_tensors,
    with_main_tensor,
)
from regraft.model.parts import Block, Parts, Stack

LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
CANNOT = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What the code of a model raises where it is asked for what it does not do."""


def text_config(config: Any) -> Any:
    """The configuration of the part that reads and writes text: the model's own, or the one that it keeps for
    that."""
    return config.get_text_config(decoder=True) if isinstance(config, PreTrainedConfig) else config


def longest_input(config: Any) -> int:
    """How many tokens a model reads at most by its configuration; 0 where that says nothing."""
    text = text_config(config)
    found = [value for name in LONGEST if type(value := getattr(text, name, None)) is int and value > 0]
    return min(found, default=0)


class StopForward(Exception):
    """Raised by our own hooks when all that was wanted has been computed."""


@dataclass
class BlockCall:
    """What a block was called with: everything but the residual stream, and where that stood."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    stream_path: Path
    outcome: Any = None
    memory_paths: frozenset[Path] = frozenset()

    def nested(self) -> dict[str, Any]:
        """Both kinds of arguments in one nesting, so that a path names a tensor."""
        return {"args": self.args, "kwargs": self.kwargs}


@dataclass
class Captured:
    """One clean forward: calls and incoming stream of every block, the stream that leaves each stack."""

    calls: list[BlockCall] = field(default_factory=list)
    stream: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)
    memory: Tensor | None = None
    result: Any = None


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[BlockCall, Tensor]:
    """Separate the residual stream from the other arguments of a block."""
    nested = {"args": args, "kwargs": kwargs}
    for path, tensor in walk_tensors(nested):
        if tensor.dim() == 3 and tensor.is_floating_point():
            return BlockCall(args, kwargs, path), tensor
    raise AssertionError("a block was called without a residual stream")


def capture(hf: nn.Module, parts: Parts, inputs: dict[str, Any], whole: bool = False) -> Captured:
    """Run the model and keep what every block was called with; `whole` also runs what follows the last block.

    Streams are kept as they are, without a copy. Where one was written to afterwards, which its version
    counter tells, the model is run once more with copies there, and `parts.written` remembers it.
    """
    taken = _captured(hf, parts, inputs, whole)
    written = {block for block, then in enumerate(taken.versions) if version(taken.stream[block]) != then}
    if written <= parts.written:
        return taken
    parts.written.update(written)
    return capture(hf, parts, inputs, whole)


def _captured(hf: nn.Module, parts: Parts, inputs: dict[str, Any], whole: bool) -> Captured:
    taken = Captured()
    last_blocks = {stack.blocks[-1].index for stack in parts.stacks}

    def before(block: Block) -> Callable[..., Any]:
        def note_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(taken.calls) != block.index:
                raise ValueError(
                    f"block {block.address} was called out of order: the parts found are not this model's"
                )
            call, stream = split_call(args, kwargs)
            taken.calls.append(call)
            stream = stream.clone() if block.index in parts.written else stream
            taken.stream.append(stream)
            taken.versions.append(version(stream))

        return note_call

    def after(block: Block) -> Callable[..., Any]:
        def note_call(module: nn.Module, args: tuple[Any, ...], outcome: Any) -> None:
            taken.calls[block.index].outcome = outcome
            if block.index in last_blocks:
                taken.ends.append(_main(outcome))
            if block is parts.blocks[-1] and not whole:
                raise StopForward

        return note_call

    handles = [
        block.module.register_forward_pre_hook(before(block), with_kwargs=True) for block in parts.blocks
    ]
    handles += [block.module.register_forward_hook(after(block)) for block in parts.blocks]
    if len(parts.stacks) == 2:
        handles.append(parts.stacks[0].owner.register_forward_hook(_keep_memory(taken)))
    try:
        with torch.no_grad():
            taken.result = hf(**inputs)
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if taken.memory is not None:
        for call in taken.calls[parts.stacks[1].first :]:
            paths = (
                path for path, tensor in walk_tensors(call.nested()) if same_memory(tensor, taken.memory)
            )
            call.memory_paths = frozenset(paths)
    return taken


def _keep_memory(taken: Captured) -> Callable[..., Any]:
    def keep(module: nn.Module, args: tuple[Any, ...], outcome: Any) -> None:
        taken.memory = main_tensor(outcome)

    return keep


def _main(outcome: Any) -> Tensor:
    tensor = main_tensor(outcome)
    assert tensor is not None
    return tensor


def call_block(
    module: Callable[..., Any],
    call: BlockCall,
    stream: Tensor,
    spread: Callable[[Path, Tensor], Tensor],
    memory: Tensor | None = None,
    given: Mapping[Path, Tensor] | None = None,
) -> Tensor:
    """Call a block with recorded arguments: `spread` repeats them over rows, `memory` replaces the encoder's
    output, `given` any others, also those that were none."""
    given = given or {}

    def argument(path: Path, tensor: Tensor) -> Tensor:
        if path == call.stream_path:
            return stream
        if path in given:
            return tensor
        if memory is not None and path in call.memory_paths:
            return memory
        return spread(path, tensor)

    nested = map_tensors(with_arguments(call, given), argument)
    return _main(module(*nested["args"], **nested["kwargs"]))


def with_arguments(call: BlockCall, given: Mapping[Path, Tensor]) -> dict[str, Any]:
    """The nested arguments of a call with others in some places of the outermost level."""
    args, kwargs = list(call.args), dict(call.kwargs)
    for (kind, name), tensor in given.items():
        if kind == "args":
            args[int(name)] = tensor
        else:
            kwargs[str(name)] = tensor
    return {"args": tuple(args), "kwargs": kwargs}


def over_rows(tensor: Tensor, rows: int, total: int) -> Tensor:
    """Repeat an argument that grows with the batch for `rows` variants, `total` = rows x prompts; no copy of
    one row."""
    if tensor.shape[0] == 1:
        return tensor.expand(total, *tensor.shape[1:])
    return tensor.repeat(rows, *[1] * (tensor.dim() - 1))


class StandIn(nn.Module):
    """Takes the place of a stack's blocks for one call; answers every question about itself as the first
    block would."""

    def __init__(self, original: nn.Module, reply: Callable[[tuple[Any, ...], dict[str, Any]], Any]):
        super().__init__()
        self.__dict__["_original"] = original
        self.__dict__["_reply"] = reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever the reply is."""
        return self.__dict__["_reply"](args, kwargs)


@contextmanager
def stacks_replaced(replacements: Sequence[tuple[Stack, Sequence[nn.Module]]]) -> Iterator[None]:
    """Put other modules in place of the blocks of some stacks, and the blocks back afterwards."""
    originals = [(stack, getattr(stack.owner, stack.attribute)) for stack, _ in replacements]
    try:
        for stack, modules in replacements:
            setattr(stack.owner, stack.attribute, nn.ModuleList(modules))
        yield
    finally:
        for stack, original in originals:
            setattr(stack.owner, stack.attribute, original)


def _answering(block: Block, outcome: Any, stream: Tensor | None) -> StandIn:
    """A stand-in that returns `stream` (or the stream that it is given) in the form that the block
    returned."""

    def reply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = split_call(args, kwargs)[1] if stream is None else stream
        return with_main_tensor(outcome, answer)

    return StandIn(block.module, reply)


def _stopping(block: Block, take: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> StandIn:
    def reply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        take(args, kwargs)
        raise StopForward

    return StandIn(block.module, reply)


def run_head(
    hf: nn.Module, parts: Parts, calls: list[BlockCall], resid_NKD: Tensor, graph: bool = False
) -> Any:
    """Run what follows the last block on a residual stream and return the model's own output object; with
    `graph`, one that gradients flow back from."""
    rows, positions = resid_NKD.shape[:2]
    ids = torch.zeros(rows, positions, dtype=torch.long, device=resid_NKD.device)
    last = parts.stacks[-1]
    standing = [(last, [_answering(last.blocks[0], calls[last.first].outcome, resid_NKD)])]
    inputs: dict[str, Any] = {"input_ids": ids}
    if len(parts.stacks) == 2:
        encoder = parts.stacks[0]
        standing.append((encoder, [_answering(encoder.blocks[0], calls[0].outcome, None)]))
        inputs = {"input_ids": ids[:, :1], "decoder_input_ids": ids}
    with nullcontext() if graph else torch.no_grad(), stacks_replaced(standing):
        return hf(**inputs, **without_cache(hf))


def passed_through(hf: nn.Module, parts: Parts, calls: list[BlockCall], inputs: dict[str, Any]) -> Captured:
    """What every block of the last stack would be called with, and the stream that enters the first: the
    model is run with blocks that hand on what they are given, at the cost of no block.

    Args:
        calls: of an earlier run, whose outcomes tell in what form a block answers.
    """
    taken, stack = Captured(), parts.stacks[-1]

    def hands_on(block: Block) -> StandIn:
        outcome = calls[block.index].outcome

        def reply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call, stream = split_call(args, kwargs)
            call.outcome = outcome
            taken.calls.append(call)
            taken.stream.append(stream)
            if block is stack.blocks[-1]:
                raise StopForward
            return with_main_tensor(outcome, stream)

        return StandIn(block.module, reply)

    try:
        with torch.no_grad(), stacks_replaced([(stack, [hands_on(block) for block in stack.blocks])]):
            hf(**inputs, **without_cache(hf))
    except StopForward:
        pass
    return taken


def output_of(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What a module returns during a run, which ends there."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: Any, outcome: Any) -> None:
        seen.append(_main(outcome))
        raise StopForward

    handle = module.register_forward_hook(stop)
    try:
        run()
    except StopForward:
        pass
    finally:
        handle.remove()
    return seen[0]


def run_prologue(hf: nn.Module, parts: Parts, inputs: dict[str, Any]) -> Tensor:
    """Run what stands before the first block and return the stream that would enter it."""
    taken: list[Tensor] = []
    first = parts.stacks[0]
    stop = _stopping(first.blocks[0], lambda args, kwargs: taken.append(split_call(args, kwargs)[1]))
    try:
        with torch.no_grad(), stacks_replaced([(first, [stop])]):
            hf(**inputs, **without_cache(hf))
    except StopForward:
        pass
    return taken[0]


def run_bridge(
    hf: nn.Module, parts: Parts, calls: list[BlockCall], inputs: dict[str, Any], resid_NSD: Tensor
) -> Tensor:
    """Run what stands between an encoder's last block and the decoder; return what the decoder would attend
    to."""
    encoder, decoder = parts.stacks
    taken: list[Tensor] = []

    def take(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nested = {"args": args, "kwargs": kwargs}
        taken.extend(
            tensor for path, tensor in walk_tensors(nested) if path in calls[decoder.first].memory_paths
        )

    standing = [
        (encoder, [_answering(encoder.blocks[0], calls[0].outcome, resid_NSD)]),
        (decoder, [_stopping(decoder.blocks[0], take)]),
    ]
    try:
        with torch.no_grad(), stacks_replaced(standing):
            hf(**inputs, **without_cache(hf))
    except StopForward:
        pass
    return taken[0]


def without_cache(hf: nn.Module) -> dict[str, bool]:
    """The argument that keeps a model from building a key/value cache, where it takes one: by name, or among
    others."""
    taken = inspect.signature(type(hf).forward).parameters
    named = "use_cache" in taken or any(one.kind is one.VAR_KEYWORD for one in taken.values())
    return {"use_cache": False} if named else {}


def learn_batched(
    hf: nn.Module, parts: Parts, inputs_of: Callable[[int, bool], dict[str, Any]]
) -> frozenset[tuple[int, Path]]:
    """Which recorded arguments grow with the batch, learnt from runs with one and with two prompts, padded
    and not.

    `inputs_of(batch, padded)` makes the inputs. An argument counts when its first dimension doubles (BLOOM's
    alibi has batch x heads rows and counts too).

    Raises:
        ValueError: an argument's batch is not its first dimension.
    """
    batched: set[tuple[int, Path]] = set()
    for padded in (False, True):
        one, two = (capture(hf, parts, inputs_of(batch, padded)) for batch in (1, 2))
        for block, (single, double) in enumerate(zip(one.calls, two.calls, strict=True)):
            sizes = {path: tensor.shape for path, tensor in walk_tensors(single.nested())}
            for path, tensor in walk_tensors(double.nested()):
                if path not in sizes or tensor.shape == sizes[path]:
                    continue
                if tensor.shape[0] != 2 * sizes[path][0] or tensor.shape[1:] != sizes[path][1:]:
                    raise ValueError(
                        f"block {block} is given {path[-1]} whose batch is not its first dimension"
                    )
                batched.add((block, path))
    return frozenset(batched)
