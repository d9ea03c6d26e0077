"""A text that goes on with an emptied state: what its recurrent blocks carried, and what attention may reach.

Shapes: B texts, P tokens of the prefix, q tokens behind it (T = P + q).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from regraft.core.tolerance import gap
from regraft.model.model import Model
from regraft.systems.mixers import mixers_of

LEFT = {
    "all": (False, False),
    "no recurrent state": (True, False),
    "no keys": (False, True),
    "neither": (True, True),
}
"""What is left of the prefix: whether states are emptied, and whether keys are hidden."""


class NoRecurrenceError(ValueError):
    """A model whose state cannot be emptied."""


@torch.no_grad()
def losses_behind(model: Model, ids_BT: Tensor, prefix: int, empties: bool, hides: bool) -> Tensor:
    """Nats of every token behind a prefix but the first, (B, q - 1), with recurrent states emptied and keys
    hidden where the prefix ends.

    Raises:
        NoRecurrenceError: the model keeps no recurrent state in a cache that it returns.
    """
    with model.held():
        name, state = _state(model, model.hf(input_ids=ids_BT[:, :prefix], use_cache=True))
        layers = [one for one in state.layers if isinstance(one, LinearAttentionCacheLayerMixin)]
        if not layers:
            raise NoRecurrenceError(f"{model.name} has no recurrent blocks whose state could be emptied")
        for layer in layers if empties else ():
            for states in (layer.conv_states, layer.recurrent_states):
                for one in states.values():
                    if one is not None:
                        one.zero_()
        given: dict[str, Any] = {name: state}
        if hides:
            given["attention_mask"] = torch.ones_like(ids_BT)
            given["attention_mask"][:, :prefix] = 0
        rest_Bq = ids_BT[:, prefix:]
        logits = model.hf(input_ids=rest_Bq, use_cache=True, **given).logits[:, :-1]
    return _losses(logits, rest_Bq)


@torch.no_grad()
def check_goes_on(model: Model, ids_BT: Tensor, prefix: int) -> None:
    """Make sure that the model's own code goes on from a state with several tokens at once.

    Raises:
        NoRecurrenceError: it does not: the losses are not those of the whole text.
    """
    whole = model.run(input_ids=ids_BT).logits[:, prefix:-1]
    wanted = _losses(whole, ids_BT[:, prefix:])
    if gap(losses_behind(model, ids_BT, prefix, False, False), wanted) > model.rounding:
        raise NoRecurrenceError(
            f"{model.name}'s own code does not go on from its state with several tokens at once, so nothing"
            " can be told of an emptied one"
        )


def keeps_keys(model: Model) -> bool:
    """Whether something beside recurrent states reaches back."""
    return any(mixer.pair for block in model.main_blocks for mixer in mixers_of(block, model.hf.config))


def _losses(logits_BnV: Tensor, ids_Bq: Tensor) -> Tensor:
    logs = logits_BnV.float().log_softmax(-1)
    return -logs.gather(-1, ids_Bq[:, 1:, None])[..., 0]


def _state(model: Model, out: Any) -> tuple[str, Cache]:
    """The cache that a model returns, and how it is called.

    Raises:
        NoRecurrenceError: it returns none.
    """
    for name in ("past_key_values", "cache_params"):
        if isinstance(out.get(name), Cache):
            return name, out[name]
    raise NoRecurrenceError(f"{model.name} does not return its state in a cache, so it cannot be emptied")
