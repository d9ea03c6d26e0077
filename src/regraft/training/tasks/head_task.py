"""Training a tree head: the next token's path as target, or the original head's whole distribution.

Shapes: B sequences, T tokens, R rows (every place that has a next token), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regraft.core.tolerance import gap
from regraft.model.model import Model
from regraft.modules.placement import forward_inputs, logits_of, placed, trunk_blocks, written
from regraft.modules.tree_head import TreeHead


class HeadTask:
    """A tree in place of a model's output matrix.

    Loss in nats per token: `path` times the cross-entropy of the decisions on the next token's path, which
    costs nothing that grows with the vocabulary, and `kl` times the divergence from the original head's
    distribution, which does.
    """

    def __init__(self, model: Model, graft: TreeHead, path: float = 1.0, kl: float = 0.0):
        if kl and graft.rows.sparse:
            raise ValueError(
                "the divergence from the original head moves every row: make the tree with sparse=False"
            )
        check_head(model)
        self.model, self.root, self.head = model, model.hf, graft
        self.graft: nn.Module = graft
        self.path, self.kl = path, kl

    def blocks(self) -> list[nn.Module]:
        """Blocks of the trunk."""
        return trunk_blocks(self.model)

    def losses(self, ids_BT: Tensor) -> Mapping[str, Tensor]:
        """Parts of the loss on a batch."""
        hidden_RD, next_R = states(self.model, ids_BT)
        own_RD = hidden_RD.to(self.head.rows.weight.dtype)
        parts = {}
        if self.path:
            parts["path"] = -self.path * self.head.log_probability(own_RD, next_R).mean()
        if self.kl:
            assert self.model.parts.head is not None
            with torch.no_grad():
                wanted_RV = self.model.parts.head(hidden_RD).float().log_softmax(-1)
            parts["kl"] = self.kl * distance(self.head.log_probabilities(own_RD).float(), wanted_RV)
        return parts


def distance(found_RV: Tensor, wanted_RV: Tensor) -> Tensor:
    """Divergence of found log-probabilities from wanted ones, nats per row."""
    return nn.functional.kl_div(found_RV, wanted_RV, log_target=True, reduction="batchmean")


@torch.no_grad()
def states(model: Model, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What reaches the output matrix (R, D) at every place that has a next token, and those tokens (R,)."""
    assert model.parts.head is not None
    with placed(model.hf, model.parts.head, nn.Identity()):
        hidden_BTD = logits_of(model, forward_inputs(model, ids_BT))
    assert hidden_BTD is not None
    return hidden_BTD[:, :-1].flatten(0, 1), written(model, ids_BT)[:, 1:].flatten()


def check_head(model: Model) -> None:
    """Make sure that a model's output matrix gives its scores as they are.

    Raises:
        ValueError: there is none, or the model changes its scores (a soft cap, a factor), which probabilities
            do not bear.
    """
    if model.parts.head is None:
        raise ValueError(f"{model.name} has no output matrix that a tree could replace")
    ids_BT = torch.arange(4, device=model.device)[None] % model.table_rows
    with torch.no_grad():
        inputs = forward_inputs(model, ids_BT)
        with placed(model.hf, model.parts.head, nn.Identity()):
            hidden_BTD = logits_of(model, inputs)
        assert hidden_BTD is not None
        narrow = hidden_BTD.shape[-1] != model.parts.embedding.embedding_dim
        if narrow or not gap(model.parts.head(hidden_BTD), _scores(model, inputs)) <= model.rounding:
            raise ValueError(
                f"{model.name} changes the scores of its output matrix, so a tree's probabilities cannot"
                " replace it"
            )


def _scores(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    found = logits_of(model, inputs)
    assert found is not None
    return found.float()
