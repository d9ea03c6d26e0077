"""What mixes tokens in a block, told by structure: its kind, and what it keeps of a text by formula.

State is counted in numbers, `fixed + per_token * min(T, kept)`, T tokens read. Shapes: H query heads, G key
heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from regraft.checkpoint.roles import CROSS_ATTENTION, KEY_NAMES, PACKED_NAMES, QUERY_NAMES, VALUE_NAMES
from regraft.model.block_call import text_config
from regraft.model.parts import Block, acts_linear, out_width

LATENT, INDEXER, INDEX_KEYS = "kv_a_proj_with_mqa", "indexer", "wk"
"""Of latent attention: what projects to the latent and the shared rotated key; what picks keys; its own
keys."""
DIFFERENCE = "lambda_q1"
"""Of differential attention: half of what weights the second pattern."""
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of blocks that a configuration lists, and its field that says how far they read."""
RWKV_VECTORS = 4
"""Of RWKV's time mixing: numerator, denominator and largest exponent, and the token before."""


@dataclass(frozen=True)
class Mixer:
    """One module that mixes tokens, and its state in numbers.

    `inner` are numbers of the recurrent state, which each token multiplies, adds to and reads; of the fixed
    ones `wide` are kept in float32 at least. `pair` are the multiply-adds of one query with one key. `kept`
    is how many tokens stay (None: all); `window` how many a query reads, itself included.
    """

    module: nn.Module
    kind: str
    fixed: int = 0
    per_token: int = 0
    kept: int | None = None
    window: int | None = None
    inner: int = 0
    wide: int = 0
    pair: int = 0
    heads: int = 0
    key_heads: int = 0
    head_width: int = 0


def mixers_of(block: Block, config: Any) -> list[Mixer]:
    """Every mixer of a block in the order of its modules, cross-attention left out; none where nothing mixes
    tokens, or nothing is known."""
    found: list[Mixer] = []
    inside: set[nn.Module] = set()
    for name, module in block.module.named_modules():
        if module in inside or module is block.module or CROSS_ATTENTION.search(name):
            continue
        mixer = next(
            (made for make in _KINDS if (made := make(module, text_config(config), block)) is not None), None
        )
        if mixer is not None:
            found.append(mixer)
            inside |= set(module.modules())
    return found


def _linear(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(module.named_children())
    return next((children[n] for n in names if n in children and acts_linear(children[n])), None)


def _convolved(module: nn.Module) -> int:
    """Numbers that the convolutions of a mixer keep: as many tokens as their kernels see, of every
    channel."""
    return sum(c.in_channels * c.kernel_size[0] for c in module.children() if isinstance(c, nn.Conv1d))


def _number(module: nn.Module, *names: str) -> int:
    """The first of some numbers that a module bears as attributes, 0 where it bears none."""
    return next((value for n in names if type(value := getattr(module, n, None)) is int), 0)


def _latent(module: nn.Module, config: Any, block: Block) -> Mixer | None:
    """Keys and values as one latent and one rotated key for all heads, and an indexer's keys."""
    to_latent = _linear(module, (LATENT,))
    if to_latent is None:
        return None
    indexer = dict(module.named_children()).get(INDEXER)
    index_keys = None if indexer is None else _linear(indexer, (INDEX_KEYS,))
    kept = out_width(to_latent) + (0 if index_keys is None else out_width(index_keys))
    heads = _number(module, "num_heads", "num_attention_heads")
    key, value = _number(module, "qk_head_dim"), _number(module, "v_head_dim")
    kind = "latent" if indexer is None else "indexed latent"
    return Mixer(
        module, kind, per_token=kept, pair=heads * (key + value), heads=heads, key_heads=1, head_width=key
    )


def _delta(module: nn.Module, config: Any, block: Block) -> Mixer | None:
    """A matrix for each head that is decayed, corrected towards a value and read (delta rule)."""
    gate = dict(module.named_children()).get("forget_gate", module)
    if not isinstance(getattr(gate, "A_log", None), nn.Parameter) or not _convolved(module):
        return None
    key = _number(module, "head_k_dim", "head_dim")
    value = _number(module, "head_v_dim", "head_dim")
    heads = _number(module, "num_v_heads", "num_heads")
    decays = getattr(module, "head_k_dim", None) is not None
    if not (key and value and heads) or (gate is module and not decays):
        return None
    inner = heads * key * value
    return Mixer(
        module,
        "gated delta" if decays else "channel-gated delta",
        fixed=_convolved(module) + inner,
        inner=inner,
        wide=inner,
        heads=heads,
        key_heads=_number(module, "num_k_heads", "num_heads"),
        head_width=key,
    )


def _scan(module: nn.Module, config: Any, block: Block) -> Mixer | None:
    """A state for each channel (Mamba) or head (Mamba 2) that a selective scan carries on."""
    decay = getattr(module, "A_log", None)
    if not isinstance(decay, nn.Parameter) or not _convolved(module):
        return None
    heads = _number(module, "num_heads")
    inner = (
        decay.numel()
        if decay.dim() == 2
        else heads * _number(module, "head_dim") * _number(module, "ssm_state_size")
    )
    if not inner:
        return None
    return Mixer(
        module, "selective scan", fixed=_convolved(module) + inner, inner=inner, wide=inner, heads=heads
    )


def _rwkv(module: nn.Module, config: Any, block: Block) -> Mixer | None:
    """Sums that decay channel by channel, and the token before; of the feed-forward part the token before
    alone."""
    mixes = getattr(module, "time_mix_key", None)
    if not isinstance(mixes, nn.Parameter):
        return None
    width = mixes.numel()
    decay = getattr(module, "time_decay", None)
    if not isinstance(decay, nn.Parameter):
        return Mixer(module, "token shift", fixed=width)
    sums = (RWKV_VECTORS - 1) * decay.numel()
    return Mixer(module, "RWKV", fixed=sums + width, inner=2 * decay.numel(), wide=sums)


def _lightning(module: nn.Module, config: Any, block: Block) -> Mixer | None:
    """A matrix for each head that decays at a slope of its own (lightning attention)."""
    if "slope_rate" not in dict(module.named_buffers(recurse=False)):
        return None
    heads, width = _number(module, "num_attention_heads", "num_heads"), _number(module, "head_dim")
    inner = heads * width * width
    return Mixer(
        module, "lightning", fixed=inner, inner=inner, heads=heads, key_heads=heads, head_width=width
    )


def _gated_recurrence(module: nn.Module, config: Any, block: Block) -> Mixer | None:
    """A channel's own decaying sum behind a short convolution (RG-LRU)."""
    inner = next((child for name, child in module.named_children() if name == "rg_lru"), None)
    if inner is None:
        return None
    width = next(c.in_channels for c in module.children() if isinstance(c, nn.Conv1d))
    return Mixer(module, "gated recurrence", fixed=_convolved(module) + width, inner=width)


def _short_convolution(module: nn.Module, config: Any, block: Block) -> Mixer | None:
    """A convolution over a few tokens, and nothing else."""
    return Mixer(module, "short convolution", fixed=_convolved(module)) if _convolved(module) else None


def _softmax(module: nn.Module, config: Any, block: Block) -> Mixer | None:
    """Keys and values of every token, as many heads as there are, within a window or not."""
    parts = [_linear(module, names) for names in (QUERY_NAMES, KEY_NAMES, VALUE_NAMES)]
    packed = _linear(module, PACKED_NAMES)
    width = _number(module, "head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "d_kv")
    heads = _number(module, "num_attention_heads", "num_heads", "n_heads") or _number(
        config, "num_attention_heads"
    )
    if parts[1] is not None and parts[2] is not None:
        key, value = out_width(parts[1]), out_width(parts[2])
        width = width or _number(config, "head_dim") or (0 if not heads else key // heads)
    elif packed is not None and heads:
        groups = (
            _number(module, "num_kv_heads", "num_key_value_heads")
            or _number(config, "num_key_value_heads")
            or heads
        )
        width = width or out_width(packed) // (heads + 2 * groups)
        key = value = (out_width(packed) - heads * width) // 2
    else:
        return None
    if not width or not heads:
        return None
    groups = max(1, key // width)
    window = window_of(module, config, block)
    kind = "full" if groups == heads else "single-key" if groups == 1 else "grouped"
    kind = "differential" if isinstance(getattr(module, DIFFERENCE, None), nn.Parameter) else kind
    return Mixer(
        module,
        f"windowed {kind}" if window else kind,
        per_token=key + value,
        kept=window and window - 1,  # a query reads `window` keys, its own among them, which comes with it
        window=window,
        pair=2 * heads * width,
        heads=heads,
        key_heads=groups,
        head_width=width,
    )


def window_of(module: nn.Module, config: Any, block: Block) -> int | None:
    """How many keys a query of an attention reads at most, by the module or the configuration; None: all."""
    own = getattr(module, "sliding_window", None)
    if type(own) is int and own > 0:
        return own
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, (list, tuple)) and block.index < len(kinds):
        name = WINDOWS.get(kinds[block.index], "")
    else:
        name = "" if getattr(config, "use_sliding_window", True) is False else "sliding_window"
    found = getattr(config, name, None) if name else None
    return found if type(found) is int and found > 0 else None


_KINDS: tuple[Callable[[nn.Module, Any, Block], Mixer | None], ...] = (
    _latent,
    _delta,
    _scan,
    _rwkv,
    _lightning,
    _gated_recurrence,
    _short_convolution,
    _softmax,
)
"""Every kind; the first that knows a module names it."""
