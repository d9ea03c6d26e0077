"""One forward pass with an ear at every module: who was called, in which order, with which tensors.

The tensors are kept alive for as long as the trace lives, so that "the norm was given exactly what the projection
returned" can be decided by comparing memory, not by guessing from names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.model.structure import main_tensor, walk_tensors


@dataclass
class Call:
    """One call of one module: `inputs` are its tensor arguments, `output` what it returned."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    outcome: Any

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


def trace(hf: nn.Module, inputs: dict[str, Any]) -> Trace:
    """Run `hf(**inputs)` once and record every module call."""
    heard = Trace()

    def listener(name: str):
        def hear(module: nn.Module, args: tuple, kwargs: dict, outcome: Any) -> None:
            tensors = tuple(tensor for _, tensor in walk_tensors((args, kwargs)))
            heard.calls.append(Call(name, module, tensors, outcome))

        return hear

    handles = [module.register_forward_hook(listener(name), with_kwargs=True) for name, module in hf.named_modules() if name]
    try:
        with torch.no_grad():
            heard.result = hf(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return heard
