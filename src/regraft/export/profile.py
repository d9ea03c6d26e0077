"""What a graft weighs, and the time and memory of a forward pass and of a training step, beside the part that
it replaces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.memory import peak_bytes
from regraft.data.windows import Windows
from regraft.model.model import Model
from regraft.model.summary import weigh
from regraft.modules.logits_view import LogitsView
from regraft.modules.placement import Swaps, all_placed, forward_inputs, logits_of, written

BATCH, ROUNDS = 4, 5
"""Sequences of a timed forward pass, and rounds that the median is taken of."""
STATES = ("before", "after")


def measured_costs(model: Model, swaps: Swaps, windows: Windows) -> dict[str, Any]:
    """Variables of a certificate: parameters, bytes, seconds (medians of rounds in turns) and peak memory,
    before and after."""
    ids_BT = windows.batch(0, min(BATCH, len(windows))).to(model.device)
    parts = {"before": [(old, old) for old, _ in swaps], "after": list(swaps)}
    works = {
        f"{kind}_{state}": _work(model, parts[state], ids_BT, kind == "step")
        for kind in ("forward", "step")
        for state in STATES
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(ROUNDS):
        for name, work in works.items():
            _finish(model.device)
            began = time.perf_counter()
            work()
            _finish(model.device)
            seconds[name].append(time.perf_counter() - began)
    peaks = {name: peak_bytes(work, model.device) for name, work in works.items()}
    what = f"{ids_BT.numel()} tokens"
    found: dict[str, Any] = dict(_weights(model, swaps))
    for kind, sentence in (
        ("forward", "forward pass"),
        ("step", "forward and backward pass for the part's own parameters"),
    ):
        timed = [float(np.median(seconds[f"{kind}_{state}"])) for state in STATES]
        found[kind] = ("state", timed, {"units": f"s, {sentence} of {what}, median of {ROUNDS}"})
        taken = [peaks[f"{kind}_{state}"] for state in STATES]
        found[f"{kind}_peak"] = (
            "state",
            taken,
            {"units": f"bytes beyond the weights, {sentence} of {what}, at the highest"},
        )
    return found


def _finish(device: torch.device) -> None:
    """Wait for an accelerator to do what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _work(model: Model, swaps: Swaps, ids_BT: Tensor, step: bool) -> Callable[[], None]:
    """A forward pass, or one with the loss of the next tokens and its gradients for the parts alone."""

    def forward() -> None:
        with torch.no_grad(), all_placed(model.hf, swaps):
            logits_of(model, forward_inputs(model, ids_BT))

    def forward_and_backward() -> None:
        parameters = [p for _, new in swaps for p in new.parameters()]
        with only_these(model.hf, parameters):
            next_token_loss(model, swaps, ids_BT).backward()
            for parameter in parameters:
                parameter.grad = None

    return forward_and_backward if step else forward


def next_token_loss(model: Model, swaps: Swaps, ids_BT: Tensor) -> Tensor:
    """Mean loss in nats of the next tokens; a tree head computes it from their paths alone.

    Where the head is all that is exchanged, the trunk below it takes no gradients: not for the old head
    either, be it tied.
    """
    next_R = written(model, ids_BT)[:, 1:].flatten()
    own = model.parts.head
    head = next((new for old, new in swaps if old is own), None)
    if head is None or own is None:
        with all_placed(model.hf, swaps):
            found_BTV = logits_of(model, forward_inputs(model, ids_BT))
        assert found_BTV is not None
        return nn.functional.cross_entropy(found_BTV[:, :-1].flatten(0, 1).float(), next_R)
    others = [(old, new) for old, new in swaps if old is not own]
    with all_placed(model.hf, [*others, (own, nn.Identity())]), torch.set_grad_enabled(bool(others)):
        hidden_BTD = logits_of(model, forward_inputs(model, ids_BT))
    assert hidden_BTD is not None
    hidden_RD = hidden_BTD[:, :-1].flatten(0, 1)
    if isinstance(head, LogitsView):
        return -head.head.log_probability(hidden_RD.to(head.weight.dtype), next_R).mean()
    return nn.functional.cross_entropy(head(hidden_RD).float(), next_R)


@contextmanager
def only_these(root: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """While inside, of all the model's parameters only these take gradients."""
    every = [*root.parameters(), *parameters]
    before = [p.requires_grad for p in every]
    try:
        for parameter in every:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, need in zip(every, before, strict=True):
            parameter.requires_grad_(need)


def _weights(model: Model, swaps: Swaps) -> dict[str, Any]:
    """Parameters of the parts, parameters and bytes of the model; a matrix that is tied to something else
    stays."""
    whole = weigh(model.hf)
    part = [sum(weigh(old)[0] for old, _ in swaps), sum(weigh(new)[0] for _, new in swaps)]
    with all_placed(model.hf, swaps):
        after = weigh(model.hf)
    tables = sum(buffer.nbytes for _, new in swaps for buffer in new.buffers())
    return {
        "part_parameters": ("state", part, {"units": "parameters of the part"}),
        "parameters": ("state", [whole[0], after[0]], {"units": "parameters of the model"}),
        "bytes": ("state", [whole[1], after[1] + tables], {"units": "bytes in memory of the model"}),
    }
