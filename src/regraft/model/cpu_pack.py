"""Linear layers packed for the CPU: the same products from weights laid out once, where a trial shows that it
pays.

The stock path hands the weight to the matrix library in its plain layout, which is laid out anew at every
call. With few rows that costs more than the product. Packed weights take as much memory again as the
originals, so packing is a choice of `regraft.load`, and `exact=True` and the self-check always use the stock
layers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from regraft.model.parts import has_matrix, in_width, matrix_OI, out_width
from regraft.streaming.block_store import Filling

TRIAL_ROWS = 48
"""Rows of the trial: a few short prompts."""
LEAST_GAIN = 1.1
"""Packed weights take as much memory again: less than a tenth is not worth it, and within the noise of a
clock."""


class Forward:
    """What is put over a module's own forward for a while; a copy of the module is made without it."""

    def __deepcopy__(self, memo: dict[str, Any]) -> Forward:
        """Itself: it belongs to the module that it was put over."""
        return self


@dataclass(frozen=True)
class PackedForward(Forward):
    """What a linear layer computes, from a packed copy of its weight."""

    packed: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def packed_layer(module: nn.Module) -> PackedForward:
    """A layer's forward on packed weights."""
    packed = torch.ops.mkldnn._reorder_linear_weight(matrix_OI(module).detach().contiguous(), None)
    bias = getattr(module, "bias", None)
    return PackedForward(packed, None if bias is None else bias.detach())


def copied(module: nn.Module, instead: Mapping[int, nn.Module] | None = None) -> nn.Module:
    """A copy that computes with its own weights, also where it is made while the original's are packed or it
    runs with another forward.

    Args:
        module: what to copy.
        instead: by the `id` of a part, what stands in its place in the copy, and is not copied.
    """
    made = copy.deepcopy(module, {**(instead or {})})
    for part in made.modules():
        if isinstance(part.__dict__.get("forward"), Forward):
            del part.__dict__["forward"]
        for number, hook in list(part._forward_pre_hooks.items()):
            if isinstance(hook, Filling):  # a copy has numbers of its own
                del part._forward_pre_hooks[number]
    return made


def packing_applies(module: nn.Module) -> bool:
    """Whether a layer can be packed: a plain float32 linear map on the CPU.

    No subclass with a forward of its own, no forward put over it, no hook that makes its weight anew at every
    call.
    """
    if type(module) not in (nn.Linear, Conv1D) or "forward" in module.__dict__ or module._forward_pre_hooks:
        return False
    if not has_matrix(module):
        return False
    weight = matrix_OI(module)
    return (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )


def pack_if_it_pays(hf: nn.Module) -> dict[nn.Module, PackedForward]:
    """Packed versions of the model's linear layers, shape by shape, where a short trial is faster by a
    tenth."""
    packed: dict[nn.Module, PackedForward] = {}
    pays: dict[tuple[Any, ...], bool] = {}
    for module in hf.modules():
        if not packing_applies(module):
            continue
        shape = (type(module), out_width(module), in_width(module))
        if shape not in pays:
            pays[shape] = _trial(module, packed_layer(module)) >= LEAST_GAIN
        if pays[shape]:
            packed[module] = packed_layer(module)
    return packed


def _trial(module: nn.Module, fast: Callable[[Tensor], Tensor]) -> float:
    """How many times faster the packed layer is: the best of five calls of each, in turn."""
    x = torch.randn(
        1, TRIAL_ROWS, in_width(module), generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    best = [float("inf"), float("inf")]
    with torch.no_grad():
        for _ in range(6):
            for which, run in enumerate((module, fast)):
                start = time.perf_counter()
                run(x)
                best[which] = min(best[which], time.perf_counter() - start)
    return best[0] / max(best[1], 1e-9)


@contextmanager
def packed(layers: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While inside, the given modules compute with another forward: layers with their packed weights, for
    one."""
    try:
        for module, forward in layers.items():
            module.forward = forward
        yield
    finally:
        for module in layers:
            module.__dict__.pop("forward", None)
