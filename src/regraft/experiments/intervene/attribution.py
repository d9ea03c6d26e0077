"""Attribution patching: what a patch would do, to first order, for every activation of a run from one
backward pass.

Source: Nanda, "Attribution patching" (2023); Kramar et al., "AtP*" (2024). The effect of putting a source's
activation in is about (source - target) times the gradient of the metric at the target's. Shapes: T
positions, W width of a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from regraft.model.hooks import writing
from regraft.model.recording import Recording


def gradients(
    recording: Recording, addresses: Sequence[str], tokens: tuple[int, int], position: int | None
) -> dict[str, Tensor]:
    """Gradient of logit[first] - logit[second] at a position with respect to every named site, (T, W) each.

    The model's own forward is run once on the recording's one prompt; `position` None reads the last one.
    """
    assert recording.prompts == 1
    model, held = recording.model, {}
    with model.held(), ExitStack() as hooks, torch.enable_grad():
        for address in addresses:
            site = model.site(address)
            assert site.block is not None
            tap = model.taps[site]

            def keep(activation: Tensor, address: str = address) -> Tensor:
                held[address] = (
                    activation if activation.requires_grad else activation.detach().requires_grad_()
                )
                return held[address]

            hooks.enter_context(writing(tap, keep, (1, recording.positions_of(site.block))))
        logits = model.run(**recording.inputs).logits
        where = int(recording.lengths_B[0]) - 1 if position is None else position
        metric = logits[0, where, tokens[0]].float() - logits[0, where, tokens[1]].float()
        found = torch.autograd.grad(metric, [held[address] for address in addresses], allow_unused=True)
    result = {}
    for address, gradient in zip(addresses, found, strict=True):
        features = model.tap(address).features
        grad = torch.zeros_like(held[address]) if gradient is None else gradient
        result[address] = (grad if features is None else grad[..., features.to(grad.device)])[0].detach()
    return result
