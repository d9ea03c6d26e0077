"""The losses of transcoder adapters by whole forward passes with hooks, as one writes them first: the
target, the adapted model with all hidden states of both, and two mixed runs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.structure import main_tensor
from regraft.model.block_call import stacks_replaced
from regraft.model.model import Model
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import Transcoders, beside
from regraft.training.tasks.transcoder_task import (
    TranscoderLoss,
    inputs_of,
    predicts_counted,
    split_batch,
)


def forward(model: Model, inputs: dict[str, Tensor], first: Model | None = None, until: int = 0):
    """Log-probabilities and all streams of a whole forward pass; with `first`, its blocks are run up to
    `until`, and the model's own from there."""
    seen: list[Tensor] = []
    stack = model.parts.stacks[-1]
    blocks = [b.module for b in (first or model).main_blocks][:until] + [b.module for b in model.main_blocks][
        until:
    ]

    def before(module: Any, args: Any, kwargs: Any) -> None:
        found = main_tensor((args, kwargs))
        assert found is not None
        seen.append(found)

    def after(module: Any, args: Any, outcome: Any) -> None:
        found = main_tensor(outcome)
        assert found is not None
        seen.append(found)

    with ExitStack() as hooks:
        hooks.enter_context(stacks_replaced([(stack, blocks)]))
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(blocks[-1].register_forward_hook(after).remove)
        logits = model.hf(**inputs, use_cache=False).logits
    return logits.float().log_softmax(-1), seen


def divergence(wanted_RV: Tensor, found_RV: Tensor) -> Tensor:
    """KL of found log-probabilities from wanted ones, nats a row."""
    return nn.functional.kl_div(found_RV, wanted_RV, log_target=True, reduction="batchmean")


def plain_losses(
    carrier: Model, target: Model, graft: Transcoders, batch: Tensor, weights: TranscoderLoss, cutoff: int
) -> dict[str, Tensor]:
    """What `TranscoderTask.losses` gives, by four whole passes."""
    ids_BT, kind_BT = split_batch(batch)
    inputs, real_BT, counted_BT = inputs_of(ids_BT, kind_BT), kind_BT > 0, predicts_counted(kind_BT)
    with torch.no_grad():
        wanted, taught = forward(target, inputs)
    with beside(carrier.hf, mlps_of(carrier), graft):
        with graft.hearing() as heard:
            found, learnt = forward(carrier, inputs)
        to_adapted, _ = forward(carrier, inputs, target, cutoff)
        to_target, _ = forward(target, inputs, carrier, cutoff)
    wanted_RV = wanted[counted_BT]
    both = divergence(wanted_RV, to_target[counted_BT]) + divergence(wanted_RV, to_adapted[counted_BT])
    errors = []
    for ours, theirs in zip(learnt, taught, strict=True):
        wanted_ND = theirs[real_BT]
        errors.append((ours[real_BT] - wanted_ND).pow(2).sum() / (wanted_ND.pow(2).sum() + 1e-8))
    sizes = [
        (own[0][1][real_BT] * adapter.dec.weight.norm(dim=0)).sum(-1).mean()
        for adapter, own in zip(graft, heard, strict=True)
    ]
    return {
        "kl": weights.kl * divergence(wanted_RV, found[counted_BT]),
        "bridge": weights.bridge * both / 2,
        "nmse": weights.nmse * torch.stack(errors).mean(),
        "l1": weights.l1 * torch.stack(sizes).sum(),
    }
