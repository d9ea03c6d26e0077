"""A block, its attention and its MLP as functions of one token's stream, everything else as recorded.

The function is row by row: each row puts another vector in the token's place and reads what is added there.
Where the model's blocks run on suffixes (see the engine's cone) only that one position is computed. Shapes: R
rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from regraft.core.structure import map_tensors
from regraft.experiments.observe.jacobian import Function
from regraft.experiments.observe.token_states import Observed
from regraft.model.float64 import KeepFloat64
from regraft.model.hooks import writing
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.recording import Recording
from regraft.model.sites import Tap, addition, behind
from regraft.sweeps.prefix_cache import Cone, cone_holds

Part = Literal["block", "attention", "mlp"]
PARTS: tuple[Part, ...] = ("block", "attention", "mlp")


class Doubled:
    """Blocks run in float64 whatever their weights' type: the response to a small step would drown in
    rounding else.

    The float64 weights of one block at a time are kept.
    """

    def __init__(self) -> None:
        self.block: Block | None = None
        self.tensors: dict[str, Tensor] = {}

    def of(self, block: Block) -> Callable[..., Any]:
        """Something to call as the block is called; hooks on its parts hear it."""
        if block is not self.block:
            named = (*block.module.named_parameters(), *block.module.named_buffers())
            self.block = block
            self.tensors = {name: t.detach().double() for name, t in named if t.is_floating_point()}

        def run(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = map_tensors(
                (args, kwargs), lambda path, t: t.double() if t.is_floating_point() else t
            )
            return functional_call(block.module, self.tensors, args, kwargs)

        return run


class Token:
    """One token in its context: a recording of that prompt alone, and the position."""

    def __init__(self, recording: Recording, position: int, doubled: Doubled):
        assert recording.prompts == 1
        self.recording, self.position, self.doubled = recording, position, doubled
        last = position == recording.positions - 1
        self.cone = Cone(recording) if last and position and cone_holds(recording.model) else None

    def state(self, block: int) -> Tensor:
        """The stream that enters a block here, (D,), in float64."""
        return self.recording.pre(block)[0, self.position].double()

    def function(self, block: int, part: Part) -> tuple[Function, Tensor] | None:
        """What a part adds to the stream as a function of the vector that it reads, and that vector as
        recorded.

        The attention (or recurrent mixer) reads the stream that enters the block; the MLP the stream behind
        the attention, or the same one where both stand side by side. None where the block has no such part.
        """
        x_D = self.state(block)
        found = self.recording.model.blocks[block]
        if part == "block":
            return (lambda x: self._run(block, x) - x), x_D
        mixing = next((b for kind in ("attn", "mixer") if (b := found.branch(kind)) is not None), None)
        mlp = found.branch("mlp")
        branch = mixing if part == "attention" else mlp
        if branch is None:
            return None
        if part == "attention" or found.parallel or len(found.branches) == 1:
            if branch.sum_norm is not None:
                behind = Tap(branch.sum_norm, "output")
                return (lambda x: self._read_at(block, x, behind) - x), x_D
            return (lambda x: self._read_at(block, x, addition(branch))), x_D
        middle = self._middle(block)
        return (lambda y: self._behind(block, y, middle) - y), middle

    def _stream(self, block: int, x_RD: Tensor) -> Tensor:
        if self.cone is not None:
            return x_RD[:, None]
        clean = self.recording.pre(block).double()
        before = clean[:, : self.position].expand(len(x_RD), -1, -1)
        after = clean[:, self.position + 1 :].expand(len(x_RD), -1, -1)
        return torch.cat([before, x_RD[:, None], after], dim=1)

    def _run(self, block: int, x_RD: Tensor) -> Tensor:
        rows, stream = len(x_RD), self._stream(block, x_RD)
        with KeepFloat64():
            module = self.doubled.of(self.recording.model.filled(block))
            if self.cone is not None:
                return self.cone.run_block(block, stream, rows, self.position, module)[:, 0]
            return self.recording.run_block(block, stream, rows, module=module)[:, self.position]

    @property
    def _at(self) -> int:
        return 0 if self.cone is not None else self.position

    def _shape(self, block: int, rows: int) -> tuple[int, int]:
        return rows, 1 if self.cone is not None else self.recording.positions_of(block)

    def _read_at(self, block: int, x_RD: Tensor, tap: Tap) -> Tensor:
        """The activation at a tap of the block, at the token."""
        with self.recording.model.held(), keeping_output(tap, self._shape(block, len(x_RD))) as outputs:
            self._run(block, x_RD)
        return outputs[0][:, self._at]

    def _middle(self, block: int) -> Tensor:
        """The stream between the last branch before the MLP and the MLP, at the token."""
        *_, before, _ = self.recording.model.blocks[block].branches
        x_RD = self.state(block)[None]
        with torch.no_grad():
            if before.sum_norm is not None:
                return self._read_at(block, x_RD, Tap(before.sum_norm, "output"))[0]
            earlier = self.recording.model.blocks[block].branches[:-1]
            return sum((self._read_at(block, x_RD, addition(b)) for b in earlier), x_RD)[0]

    def _behind(self, block: int, y_RD: Tensor, middle_D: Tensor) -> Tensor:
        """What leaves the block when the stream that enters its MLP is y at the token."""
        *_, before, _ = self.recording.model.blocks[block].branches
        at = self._at

        def steer(out_RTW: Tensor) -> Tensor:
            here = y_RD if before.sum_norm is not None else out_RTW[:, at] + (y_RD - middle_D)
            return torch.cat([out_RTW[:, :at], here[:, None], out_RTW[:, at + 1 :]], dim=1)

        x_RD = self.state(block).expand_as(y_RD)
        shape, model = self._shape(block, len(y_RD)), self.recording.model
        with model.held(), writing(behind(before), steer, shape):
            return self._run(block, x_RD)


@contextmanager
def keeping_output(tap: Tap, shape: tuple[int, int]) -> Iterator[list[Tensor]]:
    """While inside, keep the activation at a tap as it is, so that derivatives pass through."""
    outputs: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        outputs.append(tensor)
        return tensor

    with writing(tap, keep, shape):
        yield outputs


@contextmanager
def plain_experts(hf: Any) -> Iterator[None]:
    """While inside, a mixture runs its experts one after the other: grouped products have no forward
    derivative."""
    before = getattr(hf.config, "_experts_implementation", None)
    if before in (None, "eager"):
        yield
        return
    hf.set_experts_implementation("eager")
    try:
        yield
    finally:
        hf.set_experts_implementation(before)


def sampled_tokens(model: Model, seen: Observed, count: int, seed: int) -> list[Token]:
    """`count` of the observed tokens, drawn at random, each with a recording of its own prompt.

    Where no position sees a later one the recording ends with the token.
    """
    doubled = Doubled()
    order = (
        torch.randperm(seen.tokens, generator=torch.Generator().manual_seed(seed))[:count]
        .sort()
        .values.tolist()
    )
    places = [
        (number, int(p), int(t))
        for number, pairs in enumerate(seen.pairs)
        for p, t in zip(*pairs, strict=True)
    ]
    return [_single(model, seen, doubled, *places[number]) for number in order]


def _single(model: Model, seen: Observed, doubled: Doubled, number: int, prompt: int, position: int) -> Token:
    recording = seen.recordings[number]
    length = int(recording.lengths_B[prompt])
    ids = recording.ids_BT[prompt, :length].tolist()
    if model.two_stacks:
        sources = recording.inputs["input_ids"][prompt, : recording.lengths_of(0)[prompt]].tolist()
        return Token(model.record([sources], [ids[1:]], attention_mask="all"), position, doubled)
    return Token(
        model.record([ids[: position + 1] if model.causal else ids], attention_mask="all"), position, doubled
    )
