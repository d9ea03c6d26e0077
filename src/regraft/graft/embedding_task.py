"""Training a byte embedding: a regression on the whole table first, then the model's own stream and predictions as teacher.

Shapes: B sequences, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.graft.placing import placed, streams
from regraft.model.opened import Model
from regraft.model.progress import advance


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts: the stream at the depths, the divergence of predictions, the table itself."""

    hidden: float = 1.0
    kl: float = 1.0
    table: float = 0.1


class EmbeddingTask:
    """A graft in place of a model's token embedding, taught by the model with its own.

    Loss: squared error of the stream at each depth over the teacher's mean square there, divergence of the next-token
    distributions in nats per token, squared error of the vectors used over their mean square. `depths` count blocks; by
    default a quarter, a half and all of them.
    """

    def __init__(self, model: Model, graft: nn.Module, depths: Sequence[int] = (), weights: Weights | None = None):
        if model.two_stacks and depths:
            raise ValueError("depths are counted over the decoder's blocks: leave them out for an encoder-decoder")
        blocks = len(model.parts.stacks[-1].blocks)
        self.model, self.root, self.graft = model, model.hf, graft
        self.depths = tuple(depths) or tuple(sorted({max(1, blocks // 4), max(1, blocks // 2), blocks}))
        self.weights = weights or Weights()

    def losses(self, ids_BT: Tensor) -> Mapping[str, Tensor]:
        """Parts of the loss on a batch, and the share of tokens whose most probable next one is the teacher's."""
        inputs = self._inputs(ids_BT)
        with torch.no_grad(), streams(self.model, self.depths) as taught:
            wanted_BTV = self._logits(inputs)
        with placed(self.root, self.model.parts.embedding, self.graft), streams(self.model, self.depths) as learnt:
            found_BTV = self._logits(inputs)
        hidden = torch.stack([relative_error(learnt[d], taught[d]) for d in self.depths]).mean()
        used = ids_BT.unique()
        table = relative_error(self.graft(used), self.model.parts.embedding(used))
        parts = {"hidden": self.weights.hidden * hidden, "table": self.weights.table * table}
        if wanted_BTV is not None and found_BTV is not None:
            parts["kl"] = self.weights.kl * divergence(found_BTV, wanted_BTV)
            parts["_agreement"] = (found_BTV.argmax(-1) == wanted_BTV.argmax(-1)).float().mean()
        return parts

    def _inputs(self, ids_BT: Tensor) -> dict[str, Tensor]:
        if not self.model.two_stacks:
            return {"input_ids": ids_BT}
        half = ids_BT.shape[1] // 2
        return {"input_ids": ids_BT[:, :half], "decoder_input_ids": ids_BT[:, half:]}

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor | None:
        result = self.root(**inputs, **({"use_cache": False} if self.model.causal or self.model.two_stacks else {}))
        return getattr(result, "logits", None)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the mean square of what is wanted."""
    wanted = wanted.detach().float()
    return ((found.float() - wanted) ** 2).sum() / (wanted**2).sum()


def divergence(found_BTV: Tensor, wanted_BTV: Tensor) -> Tensor:
    """Divergence of the found distributions from the wanted ones, nats per token."""
    wanted = wanted_BTV.detach().float().log_softmax(-1).flatten(0, -2)
    return nn.functional.kl_div(found_BTV.float().log_softmax(-1).flatten(0, -2), wanted, log_target=True, reduction="batchmean")


def warm_up(graft: nn.Module, table_VD: Tensor, steps: int, batch: int = 1024, rate: float = 2e-3, seed: int = 0) -> list[float]:
    """Regress the embedding on the whole table, no text needed; returns the relative squared error of every step."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(graft.parameters(), rate, weight_decay=0.0)
    errors = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
        ids_N = torch.randperm(len(table_VD), generator=generator)[:batch].to(table_VD.device)
        loss = relative_error(graft(ids_N), table_VD[ids_N])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(loss.detach()))
        advance("warm-up", step + 1, steps)
    return errors
