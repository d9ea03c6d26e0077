"""What an attention is really given: the tensors that reach the attention function, and what stands behind
it.

Where a head's output is not simply its value (a gate, a norm or a convolution stands between), the one-token
identity of the self-check tells nothing. Then the arguments of PyTorch's attention function are listened to:
values that arrive there as a projection returned them are that projection's. Shapes: B prompts, T positions,
H heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from regraft.core.structure import largest_difference, main_tensor
from regraft.model.parts import Block
from regraft.model.recording import Recording
from regraft.model.sites import Tap


class Attended(TorchFunctionMode):
    """While inside, keeps the query, key and value of every call of the attention function, as (B, H, T,
    d)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Listen and go on."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            names = ("query", "key", "value")
            query, key, value = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
            self.calls.append((query, key, value))
        return func(*args, **kwargs)


def roles_refused(single: Recording, block: Block) -> dict[str, str]:
    """Why q, k or v are not what they seem, by the arguments of the attention function; an empty dict where
    all are.

    Args:
        single: a recording of one token, at whose position rotations do nothing.
        block: a block with taps of all three.
    """
    with Attended() as attended, torch.no_grad():
        single.run_block(block.index, single.pre(block.index), rows=1)
    if len(attended.calls) != 1:
        reason = (
            f"with one token the heads' output is not their value{_between(single, block)}, so roles are not"
            " sure"
        )
        return dict.fromkeys("qkv", reason)
    refused = {}
    for role, given in zip("qkv", attended.calls[0], strict=True):
        if not single.model.taps.exists(block.index, role):
            continue
        found = single[f"{block.address}.{role}"]
        width, own = given.shape[1] * given.shape[3], found.shape[2] * found.shape[3]
        if width % own:
            refused[role] = (
                f"this projection is {own} wide, the attention is given {width}: it holds more than {role}"
            )
        elif role == "v" and largest_difference(_of_heads(given, found.shape[2]), found) != 0.0:
            return dict.fromkeys(
                "qkv", "the values that the attention is given are not what the value projection returns"
            )
    return refused


def _of_heads(given_BHTd: Tensor, heads: int) -> Tensor:
    """(B, T, heads, d), one of each group where keys and values were repeated over the heads that share
    them."""
    return given_BHTd.transpose(1, 2)[:, :, :: given_BHTd.shape[1] // heads]


def _between(single: Recording, block: Block) -> str:
    """The modules of an attention that run behind its value projection and in front of its output
    projection."""
    attn = block.branch("attn")
    assert attn is not None
    assert attn.attention is not None
    values = single.model.tap(f"{block.address}.v")
    order: list[str] = []

    def note(name: str) -> Any:
        return lambda module, args, outcome: order.append(name) if main_tensor(outcome) is not None else None

    named = [(name, module) for name, module in attn.attention.named_modules() if name]
    handles = [module.register_forward_hook(note(name)) for name, module in named]
    try:
        with torch.no_grad():
            single.run_block(block.index, single.pre(block.index), rows=1)
    finally:
        for handle in handles:
            handle.remove()
    places = {module: name for name, module in named}
    first, last = places.get(values.module), places.get(attn.module)
    inner = (
        order[order.index(first) + 1 : order.index(last) if last in order else None] if first in order else []
    )
    told = [name for name in inner if not _is_role(single, block, attn.attention.get_submodule(name))]
    told = [name for name in told if not any(other.startswith(f"{name}.") for other in places.values())]
    return f" (between them stand {', '.join(dict.fromkeys(told))})" if told else ""


def _is_role(single: Recording, block: Block, module: nn.Module) -> bool:
    taps = [single.model.taps.table[block.index][role] for role in "qkv"]
    return isinstance(module, nn.Dropout) or any(
        isinstance(tap, Tap) and tap.module is module for tap in taps
    )
