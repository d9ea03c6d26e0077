"""Gradients of a metric with respect to activations, from one backward pass through the plain model.

Shapes: B prompts, T positions, P pairs of (prompt, position) that the metric reads, W width at a site, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from regraft.core.structure import main_tensor, with_main_tensor
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.model.sites import Tap, addition, outer_tap
from regraft.sweeps.live_reads import checked
from regraft.sweeps.metrics import AnyMetric, resolved


def gradients(recording: Recording, metric: AnyMetric, sites: str | Sequence[str]) -> dict[str, Tensor]:
    """Gradient of a metric's value for each prompt with respect to the clean activation at every site.

    Each has the shape that `recording[site]` has, so that their product summed over the last axis is what an
    activation contributes to first order.

    Args:
        recording: the clean run; its model is run once more, forward and backward.
        metric: what is differentiated: its mean over a prompt's positions, as a sweep gives it.
        sites: one address or several.

    Returns:
        By site a tensor in the activation's own shape, in the metric's unit for each unit of the activation.

    Raises:
        SiteError: a site that does not exist here, or the pattern.
        ValueError: a metric that does not vary smoothly, so that it has no gradient.

    Examples:
        >>> clean = model.record("The capital of France is")
        >>> slope = regraft.gradients(clean, regraft.token_logit(" Paris"), "6.z")["6.z"]
        >>> slope.shape == clean["6.z"].shape  # logits for each unit of the activation
        True
    """
    addresses = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    model, what = recording.model, resolved(metric, recording)
    recording.still_holds()
    held: dict[str, Tensor] = {}
    last = f"{model.blocks[-1].address}.resid_post"
    with model.held(), ExitStack() as hooks, torch.enable_grad():
        if model.streamed is not None:
            hooks.enter_context(model.streamed.store.left_out_of_graphs())
        read = [last] if what.reads == "stream" and last not in addresses else []
        for address in [*addresses, *read]:
            _hold(_tap(model, address), held, address, hooks)
        out = model.run(**recording.inputs)
        value = _value(recording, what, held[last] if what.reads == "stream" else out.logits)
        if not value.requires_grad:
            raise ValueError(
                f"the metric {what.name} moves in steps, so it has no gradient: take a smooth one, such as"
                " logit_difference or log_probability"
            )
        found = torch.autograd.grad(value, [held[address] for address in addresses], allow_unused=True)
    return {
        address: _as_recorded(recording, address, held[address], gradient)
        for address, gradient in zip(addresses, found, strict=True)
    }


def _value(recording: Recording, metric: Any, read_BTV: Tensor) -> Tensor:
    """The sum over prompts of the metric's mean over a prompt's positions: prompts do not meet, so its
    gradient is that of each."""
    prompt_P, position_P = metric.pairs(recording)
    which = torch.arange(len(prompt_P), device=read_BTV.device)

    def clean(pair_c: Tensor) -> Tensor:
        return read_BTV[prompt_P[pair_c], position_P[pair_c]].detach()

    scores = metric.score(read_BTV[prompt_P, position_P], which, recording, clean)
    counts = torch.bincount(prompt_P, minlength=recording.prompts)
    return (scores / counts[prompt_P]).sum()


def _tap(model: Model, address: str) -> Tap:
    """Where a site's activation lies in the graph; of the stream between the branches what the last branch
    before the MLP adds, which has the same gradient."""
    site = checked(model, address)
    if site.block is None:
        return outer_tap(model.parts, site.name)
    block = model.blocks[site.block]
    if site.name == "resid_mid" and block.branches[-2].sum_norm is None:
        return addition(block.branches[-2])
    return model.taps[site]


def _hold(tap: Tap, held: dict[str, Tensor], address: str, hooks: ExitStack) -> None:
    """Keep the tensor at a tap in the graph; where nothing before it has a gradient, let the graph begin
    there."""

    def keep(tensor: Tensor) -> Tensor:
        held[address] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        return held[address]

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        nested = (args, kwargs)
        tensor = main_tensor(nested)
        assert tensor is not None
        return with_main_tensor(nested, keep(tensor))

    def after(module: Any, args: tuple[Any, ...], outcome: Any) -> Any:
        tensor = main_tensor(outcome)
        assert tensor is not None
        return with_main_tensor(outcome, keep(tensor))

    handle = (
        tap.module.register_forward_pre_hook(before, with_kwargs=True)
        if tap.side == "input"
        else tap.module.register_forward_hook(after)
    )
    hooks.callback(handle.remove)


def _as_recorded(recording: Recording, address: str, held: Tensor, gradient: Tensor | None) -> Tensor:
    """The gradient in the shape of `recording[address]`: of a constant multiple, a part, or all heads."""
    site, tap = recording.model.site(address), _tap(recording.model, address)
    grad = (torch.zeros_like(held) if gradient is None else gradient).detach() / tap.factor
    grad = grad.reshape(recording.prompts, -1, grad.shape[-1])
    if tap.features is not None:
        grad = grad[..., tap.features.to(grad.device)]
    divided = tap.heads and site.index is None and site.name != "resid_mid"
    return grad.unflatten(-1, (tap.heads, -1)) if divided else grad
