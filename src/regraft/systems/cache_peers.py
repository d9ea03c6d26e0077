"""transformers' own caches, side by side with the strategies: the same text behind the same prefix.

Shapes: B texts, P tokens of the prefix, q tokens behind it (T = P + q), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, QuantizedCache, StaticCache

from regraft.model.block_call import CANNOT
from regraft.model.recording import Recording
from regraft.systems.state_bytes import held_bytes

BITS = 4
"""Of the caches in whole numbers."""


@dataclass(frozen=True)
class PeerCache:
    """What a text was told behind a prefix that a cache of transformers kept: logits (B, q, V), and its bytes
    with the prefix in it; or the reason why there are none."""

    logits_BqV: Tensor | None
    nbytes: int
    why_not: str = ""


def peer_caches(recording: Recording, length: int) -> dict[str, PeerCache]:
    """Every cache of transformers on the texts of a recording, of which `length` tokens are the prefix."""
    config, longest = recording.model.hf.config, recording.positions
    kinds: dict[str, Callable[[], Cache]] = {
        "DynamicCache": lambda: DynamicCache(config=config),
        "StaticCache": lambda: StaticCache(config=config, max_cache_len=longest),
        "QuantizedCache fp8": lambda: QuantizedCache("fp8", config),
        f"QuantizedCache quanto, {BITS} bits": lambda: QuantizedCache("quanto", config, nbits=BITS),
        f"QuantizedCache hqq, {BITS} bits": lambda: QuantizedCache(
            "hqq", config, nbits=BITS, axis_key=1, axis_value=1
        ),
    }
    return {name: _run(recording, length, make) for name, make in kinds.items()}


@torch.no_grad()
def _run(recording: Recording, length: int, make: Callable[[], Cache]) -> PeerCache:
    model, ids_BT = recording.model, recording.ids_BT
    try:
        cache = make()
        with model.held():
            model.hf(input_ids=ids_BT[:, :length], past_key_values=cache, use_cache=True)
            nbytes = sum(held_bytes(cache, len(model.blocks)))
            out = model.hf(input_ids=ids_BT[:, length:], past_key_values=cache, use_cache=True)
    except (ImportError, *CANNOT) as error:  # what is not installed, or is not for such a model
        return PeerCache(None, 0, " ".join(str(error).split()))
    return PeerCache(out.logits, nbytes)
