"""One forward pass with a hook at every module: what was called, in which order, with which tensors.

The tensors are kept alive for as long as the trace lives, so that "the norm was given exactly what the
projection returned" can be decided by comparing memory, not by guessing from names. A tensor that is written
to after it was traced (`out += residual`) is no longer what was returned: its version counter tells, and a
second pass keeps a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.structure import main_tensor, map_tensors, version, walk_tensors

Versions = list[tuple[Tensor, int]]


@dataclass
class Call:
    """One call of one module: `inputs` are its tensor arguments, `outcome` what it returned, both as they
    were then.

    `returned` is the very tensor that the module returned first, whatever was written to it afterwards.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    outcome: Any
    returned: Tensor | None = None

    @property
    def has_output(self) -> bool:
        """Whether the module returned a tensor."""
        return main_tensor(self.outcome) is not None

    @property
    def output(self) -> Tensor:
        """The first tensor that the module returned."""
        tensor = main_tensor(self.outcome)
        assert tensor is not None, f"{self.name} returned no tensor"
        return tensor

    @property
    def memory(self) -> Tensor:
        """The first tensor that the module returned, for comparing where it lies."""
        return self.output if self.returned is None else self.returned


@dataclass
class Trace:
    """The calls of one forward pass, in the order in which they ended."""

    calls: list[Call] = field(default_factory=list)
    result: Any = None

    def of(self, module: nn.Module) -> list[Call]:
        """Every call of `module`."""
        return [call for call in self.calls if call.module is module]

    def below(self, prefix: str) -> list[Call]:
        """Every call of a module inside the module called `prefix`."""
        return [call for call in self.calls if call.name.startswith(prefix + ".")]


def stream_in(call: Call) -> Tensor | None:
    """The residual stream given to a block: its first three-dimensional floating tensor argument."""
    return next((t for t in call.inputs if t.dim() == 3 and t.is_floating_point()), None)


def trace(hf: nn.Module, inputs: dict[str, Any]) -> Trace:
    """Run `hf(**inputs)` and record every module call; twice where tensors are written to after they were
    traced."""
    marks: dict[str, Versions] = {}
    traced = _listen(hf, inputs, frozenset(), marks)
    written = frozenset(name for name, seen in marks.items() if any(version(t) != then for t, then in seen))
    return _listen(hf, inputs, written, {}) if written else traced


def _listen(
    hf: nn.Module, inputs: dict[str, Any], copied: frozenset[str], marks: dict[str, Versions]
) -> Trace:
    """One pass: what the modules in `copied` are given and return is copied; `marks` notes every tensor's
    version."""
    traced = Trace()
    given: dict[str, list[tuple[Tensor, ...]]] = {}

    def before(name: str) -> Callable[..., Any]:
        def note_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = tuple(tensor for _, tensor in walk_tensors((args, kwargs)))
            marks.setdefault(name, []).extend((t, version(t)) for t in tensors)
            given.setdefault(name, []).append(
                tuple(t.clone() for t in tensors) if name in copied else tensors
            )

        return note_call

    def after(name: str) -> Callable[..., Any]:
        def note_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outcome: Any) -> None:
            marks.setdefault(name, []).extend((t, version(t)) for _, t in walk_tensors(outcome))
            kept = map_tensors(outcome, lambda path, t: t.clone()) if name in copied else outcome
            traced.calls.append(Call(name, module, given[name].pop(), kept, main_tensor(outcome)))

        return note_call

    named = [(name, module) for name, module in hf.named_modules() if name]
    handles = [module.register_forward_pre_hook(before(name), with_kwargs=True) for name, module in named]
    handles += [module.register_forward_hook(after(name), with_kwargs=True) for name, module in named]
    try:
        with torch.no_grad():
            traced.result = hf(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return traced
