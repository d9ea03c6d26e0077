"""Training a byte embedding: a regression on the whole table first, then the model's own stream and
predictions as teacher.

Shapes: B sequences, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.model.model import Model
from regraft.modules.placement import forward_inputs, logits_of, placed, streams, trunk_blocks
from regraft.training.optimizers import optimisers, set_rates
from regraft.training.schedules import straight
from regraft.training.sensitivity import Sensitivity

WARMUP = 50
"""Steps over which the rate of the regression rises: as in a training plan."""


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts: the stream at the depths, the divergence of predictions, the
    table itself."""

    hidden: float = 1.0
    """Weight of the stream's error in the loss."""
    kl: float = 1.0
    """Weight of the divergence of predictions in the loss."""
    table: float = 0.1
    """Weight of the error of the vectors themselves in the loss."""


class EmbeddingTask:
    """A graft in place of a model's token embedding, taught by the model with its own.

    Loss: squared error of the stream at each depth over the teacher's mean square there, divergence of the
    next-token distributions in nats per token, squared error of the vectors used over their mean square.
    `depths` count blocks; by default a quarter, a half and all of them.
    """

    def __init__(
        self, model: Model, graft: nn.Module, depths: Sequence[int] = (), weights: LossWeights | None = None
    ):
        if model.two_stacks and depths:
            raise ValueError(
                "depths are counted over the decoder's blocks: leave them out for an encoder-decoder"
            )
        blocks = len(model.parts.stacks[-1].blocks)
        self.model, self.root, self.graft = model, model.hf, graft
        self.depths = tuple(depths) or tuple(sorted({max(1, blocks // 4), max(1, blocks // 2), blocks}))
        self.weights = weights or LossWeights()

    def blocks(self) -> list[nn.Module]:
        """Blocks of the trunk."""
        return trunk_blocks(self.model)

    def losses(self, ids_BT: Tensor) -> Mapping[str, Tensor]:
        """Parts of the loss on a batch, and the share of tokens whose most probable next one is the
        teacher's."""
        inputs = forward_inputs(self.model, ids_BT)
        with torch.no_grad(), streams(self.model, self.depths) as taught:
            wanted_BTV = logits_of(self.model, inputs)
        with (
            placed(self.root, self.model.parts.embedding, self.graft),
            streams(self.model, self.depths) as learnt,
        ):
            found_BTV = logits_of(self.model, inputs)
        hidden = torch.stack([relative_error(learnt[d], taught[d]) for d in self.depths]).mean()
        used = ids_BT.unique()
        table = relative_error(self.graft(used), self.model.parts.embedding(used))
        parts = {"hidden": self.weights.hidden * hidden, "table": self.weights.table * table}
        if wanted_BTV is not None and found_BTV is not None:
            parts["kl"] = self.weights.kl * divergence(found_BTV, wanted_BTV)
            parts["_agreement"] = (found_BTV.argmax(-1) == wanted_BTV.argmax(-1)).float().mean()
        return parts


def check_depths(model: Model, depths: Sequence[int]) -> tuple[int, ...]:
    """The depths in order, each once.

    Raises:
        ValueError: a depth that the model does not have; 0 is the embedding itself, which `table` compares.
    """
    blocks = len(model.parts.stacks[-1].blocks)
    wrong = next((depth for depth in depths if not 1 <= depth <= blocks), None)
    if wrong is not None:
        raise ValueError(f"there is no depth {wrong} to compare: choose 1 to {blocks}")
    return tuple(sorted(set(depths)))


@torch.no_grad()
def embedded_rows(model: Model) -> Tensor:
    """What the model's embedding gives for every id (V, D): its table, times the factor that some models have
    in it."""
    embedding = model.parts.embedding
    return embedding(torch.arange(model.table_rows, device=model.device)).detach().float()


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the mean square of what is wanted."""
    wanted = wanted.detach().float()
    return ((found.float() - wanted) ** 2).sum() / (wanted**2).sum()


def divergence(found_BTV: Tensor, wanted_BTV: Tensor) -> Tensor:
    """Divergence of the found distributions from the wanted ones, nats per token."""
    wanted = wanted_BTV.detach().float().log_softmax(-1).flatten(0, -2)
    return nn.functional.kl_div(
        found_BTV.float().log_softmax(-1).flatten(0, -2), wanted, log_target=True, reduction="batchmean"
    )


def warm_up(
    graft: nn.Module,
    table_VD: Tensor,
    steps: int,
    felt: Sensitivity | None = None,
    batch: int = 1024,
    rate: float = 2e-3,
    seed: int = 0,
    matrices: str = "muon",
) -> list[float]:
    """Regress the embedding on the whole table; returns the loss of every step.

    Without `felt` no text is needed: tokens are drawn evenly, the loss is the squared error over the mean
    square. With it tokens are drawn by the square root of their frequency, and the error in the metric that
    predictions feel counts as much as the plain one.
    """
    generator = torch.Generator().manual_seed(seed)
    chance_V = torch.ones(len(table_VD)) if felt is None else (felt.counts_V.cpu() + 1.0).sqrt()
    found = optimisers(graft, rate, matrices=matrices)
    errors = []
    for step in range(steps):
        set_rates(found, straight(step, steps, WARMUP))
        ids_N = torch.multinomial(chance_V, min(batch, len(table_VD)), generator=generator).to(
            table_VD.device
        )
        made_ND, wanted_ND = graft(ids_N), table_VD[ids_N]
        loss = relative_error(made_ND, wanted_ND)
        if felt is not None:
            loss = 0.5 * loss + 0.5 * felt_error(made_ND, wanted_ND, felt.fisher_DD)
        for optimiser in found:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in found:
            optimiser.step()
        errors.append(float(loss.detach()))
        advance("warm-up", step + 1, steps)
    return errors


def felt_error(found_ND: Tensor, wanted_ND: Tensor, fisher_DD: Tensor) -> Tensor:
    """Squared error in a metric over the size in it of what is wanted."""
    error_ND = found_ND - wanted_ND
    return ((error_ND @ fisher_DD) * error_ND).sum() / ((wanted_ND @ fisher_DD) * wanted_ND).sum()
