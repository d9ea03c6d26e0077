"""Multiply-adds of what mixes tokens, by formula. Shapes: T tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from regraft.model.block_call import text_config
from regraft.model.model import Model
from regraft.model.parts import acts_linear, in_width, out_width
from regraft.systems.mixers import Mixer

EXPERTS_DIM = 3
"""Dimensions of the matrices of all experts in one tensor."""
CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "moe_top_k")
"""How configurations call the number of experts that a token is sent to."""
STEPS = 3
"""Multiply-adds of a token with each number of a recurrent state: it is decayed, added to and read."""


def linear_macs(module: nn.Module) -> int:
    """Multiply-adds of one token with every matrix of a module, convolutions among them."""
    maps = sum(in_width(one) * out_width(one) for one in module.modules() if acts_linear(one))
    return maps + sum(one.weight.numel() for one in module.modules() if isinstance(one, nn.Conv1d))


def expert_macs(module: nn.Module, model: Model) -> float:
    """Multiply-adds of one token with the experts that it is sent to, of those that stand in one tensor; not
    a number where the configuration does not say how many they are."""
    stacks = [one for one in module.parameters() if one.dim() == EXPERTS_DIM]
    if not stacks:
        return 0.0
    config = text_config(model.hf.config)
    chosen = next((n for name in CHOSEN if type(n := getattr(config, name, None)) is int), float("nan"))
    return sum(one.numel() / one.shape[0] * chosen for one in stacks if not _is_kernel(module, one))


def _is_kernel(module: nn.Module, parameter: nn.Parameter) -> bool:
    return any(one.weight is parameter for one in module.modules() if isinstance(one, nn.Conv1d))


def prefill_macs(mixers: Sequence[Mixer], length: int, causal: bool = True) -> int:
    """Multiply-adds of reading T tokens at once: matrices, pairs of a query with the keys that it may read
    (where it reads ahead, all of them, or as many on either side as its window says), recurrences."""
    return sum(
        length * (linear_macs(m.module) + STEPS * m.inner) + m.pair * _pairs(length, m.window, causal)
        for m in mixers
    )


def decode_macs(mixers: Sequence[Mixer], length: int) -> int:
    """Multiply-adds of writing one token behind T others."""
    return sum(
        linear_macs(m.module) + STEPS * m.inner + m.pair * min(length + 1, m.window or length + 1)
        for m in mixers
    )


def _pairs(length: int, window: int | None, causal: bool) -> int:
    """Pairs of a query and a key that it may read, in a text of T tokens."""
    reach = length if window is None else min(window, length)
    behind = reach * (reach + 1) // 2 + (length - reach) * reach
    return behind if causal else 2 * behind - length  # as many ahead, and itself once
