"""Weights of attention head by head while a block runs, so that no (H, T, T) is kept.

transformers hands queries, keys and values to a function by its name in the configuration; for one run of a
block that function is ours. It must give the block's own output, or it is not believed, and the weights that
the attention returns itself are read. Shapes: B prompts, H query heads, G key heads, T positions, q queries,
s keys, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from regraft.core.tolerance import gap
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.model.sites import SiteError

NAME = "by_head"
"""What our function is called in a configuration for the length of one run, with a number of its own behind
it: another model's run in another thread has another function."""
Hears = Callable[[int, Tensor], None]
"""Takes a head's number and its weights (B, q, s)."""


@dataclass(frozen=True)
class AttentionCall:
    """What transformers hands to the function that computes an attention."""

    module: nn.Module
    query_BHqK: Tensor
    key_BGsK: Tensor
    value_BGsK: Tensor
    mask: Tensor | None
    options: dict[str, Any]


def read_patterns(recording: Recording, block: int, hears: Hears) -> None:
    """Run one block on its recorded stream and hand over the weights of each head, one after the other.

    Raises:
        SiteError: the block has no attention, forms no pattern, or its weights cannot be had: its attention
            neither takes another function nor returns them.
    """
    model = recording.model
    attn = model.blocks[block].branch("attn")
    at = f"{model.blocks[block].address}.pattern does not exist here"
    if attn is None or attn.recurrent or attn.attention is None:
        raise SiteError(
            f"{at}: {'linear attention forms no pattern' if attn else 'this block has no attention'}"
        )
    heard: list[int] = []

    def listen(head: int, weights_Bqs: Tensor) -> None:
        heard.append(head)
        hears(head, weights_Bqs)

    def by_head(call: AttentionCall) -> Tensor:
        # a block's cross-attention goes the same way
        return _by_head(listen if call.module in inside else _nobody, call)

    inside = set(attn.attention.modules())
    with model.held(), torch.no_grad(), _computed_by(attn.attention, by_head):
        out = recording.run_block(block, recording.pre(block), rows=1)
    if heard and gap(out, recording.post(block)) <= model.rounding:
        return
    if heard:
        raise SiteError(f"{at}: the weights that were computed do not give the block's own output")
    for head, weights_BTT in enumerate(recording.attention_weights(block).unbind(1)):
        hears(head, weights_BTT)


def read_queries(recording: Recording, block: int) -> Tensor:
    """The queries (B, H, T, K) that a block asks on its recorded stream, rotated as they meet the keys.

    Raises:
        SiteError: the block has no attention, or computes it without a function that can be another.
    """
    model = recording.model
    attn = model.blocks[block].branch("attn")
    heard: list[Tensor] = []
    if attn is not None and attn.attention is not None and not attn.recurrent:
        inside = set(attn.attention.modules())

        def listen(call: AttentionCall) -> Tensor:
            if call.module in inside:
                heard.append(call.query_BHqK)
            return _by_head(_nobody, call)

        with model.held(), torch.no_grad(), _computed_by(attn.attention, listen):
            recording.run_block(block, recording.pre(block), rows=1)
    if not heard:
        raise SiteError(
            f"the queries of block {model.blocks[block].address} of {model.name} cannot be had: use fit=mean"
        )
    return heard[0]


@contextmanager
def _computed_by(attention: nn.Module, function: Callable[[AttentionCall], Tensor]) -> Iterator[None]:
    """While inside, the attention's function is ours, where its configuration names one."""
    config: Any = next(
        (c for m in attention.modules() if (c := getattr(m, "config", None)) is not None), None
    )
    before = getattr(config, "_attn_implementation", None)
    if config is None or before is None:
        yield
        return

    def answer(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        return function(AttentionCall(module, query, key, value, attention_mask, options)), None

    name = f"{NAME}_{id(answer)}"
    # the class's table, since an architecture may have one of its own beside it; and the field itself, since
    # its setter would also change what configurations inside this one say
    AttentionInterface.register(name, answer)
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before
        AttentionInterface._global_mapping.pop(name)


def _nobody(head: int, weights_Bqs: Tensor) -> None:
    pass


def _by_head(hears: Hears, call: AttentionCall) -> Tensor:
    """The output (B, q, H, K) of an attention, computed in float32 at least, one head after the other."""
    query_BHqK, key_BGsK, value_BGsK = call.query_BHqK, call.key_BGsK, call.value_BGsK
    module, options = call.module, call.options
    wide = torch.promote_types(query_BHqK.dtype, torch.float32)
    heads, groups = query_BHqK.shape[1], key_BGsK.shape[1]
    scaling = options.get("scaling") or query_BHqK.shape[-1] ** -0.5
    causal = options.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    out = []
    for head in range(heads):
        group = head * groups // heads
        scores = query_BHqK[:, head].to(wide) @ key_BGsK[:, group].to(wide).mT * scaling
        if (cap := options.get("softcap")) is not None:
            scores = cap * torch.tanh(scores / cap)
        if (bias := options.get("position_bias")) is not None:
            scores = scores + bias[:, head % bias.shape[1]]
        scores = _masked(scores, call.mask, head, causal)
        if (sinks := options.get("s_aux", getattr(module, "sinks", None))) is not None:
            sink = sinks.reshape(-1)[head].to(wide).expand(*scores.shape[:-1], 1)
            weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        hears(head, weights)
        out.append(weights @ value_BGsK[:, group].to(wide))
    return torch.stack(out, dim=2).to(query_BHqK.dtype)


def _masked(scores_Bqs: Tensor, mask: Tensor | None, head: int, causal: bool) -> Tensor:
    """Scores with what may not be read at minus infinity; without a mask, a query of several reads nothing
    behind it."""
    queries, keys = scores_Bqs.shape[-2:]
    if mask is None:
        if not causal or queries == 1:
            return scores_Bqs
        seen = torch.ones(queries, keys, dtype=torch.bool, device=scores_Bqs.device).tril(keys - queries)
        return scores_Bqs.masked_fill(~seen, float("-inf"))
    own = mask[:, head % mask.shape[1], :, :keys]
    return (
        scores_Bqs.masked_fill(~own, torch.finfo(scores_Bqs.dtype).min)
        if own.dtype == torch.bool
        else scores_Bqs + own
    )


def attends(model: Model, block: int) -> bool:
    """Whether a block's attention forms a pattern."""
    attn = model.blocks[block].branch("attn")
    return attn is not None and not attn.recurrent and attn.attention is not None
