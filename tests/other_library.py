"""A matrix library of another machine, planted: its sums run in an order that depends on batch and address.

Matrix libraries choose a kernel by the shapes and by where the operands lie in memory modulo 64, and each
kernel adds in an order of its own. Whether the machine at hand does so is luck, so the tests bring such a
library along: inside `other_library()` every matrix product is added up in two parts, cut at a place that
follows from the number of rows and from the second operand's address. The same call on the same tensors gives
the same bits; anything else may differ in the last ones.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
ASKED = "TESTS_OTHER_LIBRARY"


def _cut(a: Tensor, b: Tensor) -> int:
    """Where the sum over the inner dimension is cut: by rows and by the address of the second operand modulo
    64."""
    inner = a.shape[-1]
    return (7 * a.shape[-2] + b.data_ptr() % 64 // b.element_size() + 3) % inner if inner > 1 else 0


def _product(a: Tensor, b: Tensor) -> Tensor:
    cut = _cut(a, b)
    if cut == 0:
        return a @ b
    wide = torch.promote_types(a.dtype, torch.float32)
    a, b, kind = a.to(wide), b.to(wide), a.dtype
    return (a[..., cut:] @ b[..., cut:, :] + a[..., :cut] @ b[..., :cut, :]).to(kind)


class other_library(TorchDispatchMode):
    """While inside, products are those of the other library; `products` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __enter__(self):
        """From here on, also for the programs that a test starts and that ask `as_here`."""
        os.environ[ASKED] = "1"
        return super().__enter__()

    def __exit__(self, *told):
        """The machine's own products again."""
        os.environ.pop(ASKED, None)
        return super().__exit__(*told)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Answer matrix products ourselves, leave the rest to the machine."""
        kwargs = kwargs or {}
        plain = all(type(a) in (Tensor, torch.nn.Parameter) for a in args)
        if plain and func in (aten.mm.default, aten.bmm.default):
            self.products += 1
            return _product(*args)
        if plain and func in (aten.addmm.default, aten.baddbmm.default):
            self.products += 1
            added = kwargs.get("beta", 1) * args[0] + kwargs.get("alpha", 1) * _product(args[1], args[2])
            return added.to(args[0].dtype)
        return func(*args, **kwargs)


def as_here() -> AbstractContextManager:
    """The library of the test that started this program."""
    return other_library() if os.environ.get(ASKED) else nullcontext()


def own_library() -> AbstractContextManager:
    """The machine's own products, to compare with a program that knows no other."""
    return _disable_current_modes()


def misaligned(tensor: Tensor, elements: int = 1) -> Tensor:
    """A copy of a tensor that lies `elements` behind an address divisible by 64."""
    per_line = 64 // tensor.element_size()
    store = torch.empty(tensor.numel() + 2 * per_line, dtype=tensor.dtype)
    begin = -(store.data_ptr() // tensor.element_size()) % per_line + elements
    copy = store[begin : begin + tensor.numel()].view(tensor.shape)
    return copy.copy_(tensor)


@torch.no_grad()
def misalign_weights(hf: torch.nn.Module, elements: int = 1) -> torch.nn.Module:
    """Move every weight of a model behind its line of 64 bytes, in place; the numbers stay as they are."""
    for parameter in hf.parameters():
        if parameter.is_floating_point() and type(parameter) is torch.nn.Parameter:
            parameter.data = misaligned(parameter.data, elements)
    return hf
