"""Which errors of a token's vector the model's predictions feel: a metric over the width, from the gradients
of the model.

The Fisher information of the next-token predictions with respect to the embedding's output, `E[g gᵀ]`, where
g is the gradient of the log-probability of tokens drawn from the model's own predictions. To second order `d
F d / 2` is the divergence that an error d causes. Shapes: B sequences, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.data.windows import Windows
from regraft.model.model import Model
from regraft.modules.placement import forward_inputs, logits_of, tied


@dataclass(frozen=True)
class Sensitivity:
    """The metric F, and how often each token occurs in the text."""

    fisher_DD: Tensor
    counts_V: Tensor


def sensitivity(
    model: Model, windows: Windows, batches: int = 12, batch: int = 8, seed: int = 0
) -> Sensitivity:
    """Measure the metric on some batches of text; frequencies are those of the whole text.

    Raises:
        ValueError: the model predicts no tokens.
    """
    width = model.parts.embedding.embedding_dim
    fisher_DD = torch.zeros(width, width, device=model.device)
    generator = torch.Generator(model.device).manual_seed(seed)
    needed = [p.requires_grad for p in model.hf.parameters()]
    seen = 0
    try:
        model.hf.requires_grad_(False)
        for number in range(batches):
            gradients_RD = _gradients(model, windows.batch(number, batch).to(model.device), generator)
            fisher_DD += gradients_RD.T @ gradients_RD
            seen += len(gradients_RD)
            advance("sensitivity", number + 1, batches)
    finally:
        for parameter, need in zip(model.hf.parameters(), needed, strict=True):
            parameter.requires_grad_(need)
    counts_V = torch.from_numpy(windows.counts(model.table_rows))
    return Sensitivity(fisher_DD / seen, counts_V.to(model.device))


def _gradients(model: Model, ids_BT: Tensor, generator: torch.Generator) -> Tensor:
    """Gradients at the outputs (R, D) of the embedding, of both stacks, of the log-probability of tokens
    drawn at every place."""
    leaves: list[Tensor] = []

    def start_here(module: nn.Module, args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    with ExitStack() as hooks:
        for module in model.hf.modules():
            if module is model.parts.embedding or tied(module, model.parts.embedding):
                hooks.callback(module.register_forward_hook(start_here).remove)
        logits_BTV = logits_of(model, forward_inputs(model, ids_BT))
    if logits_BTV is None:
        raise ValueError(f"{model.name} predicts no tokens, so nothing can be said to be sensitive")
    flat_RV = logits_BTV.flatten(0, -2).float()
    drawn_R = torch.multinomial(flat_RV.detach().softmax(-1), 1, generator=generator)[:, 0]
    nn.functional.cross_entropy(flat_RV, drawn_R, reduction="sum").backward()
    gradients = [leaf.grad for leaf in leaves]
    return torch.cat([g.flatten(0, -2).float() for g in gradients if g is not None])
