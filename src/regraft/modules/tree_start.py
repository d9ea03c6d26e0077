"""Starting weights of a tree head without training, from the original head.

Shapes: R rows, D width, E = D + 1 with the constant one, V tokens, N inner nodes, B most children of a node, K = B - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.modules.tree_head import TreeHead
from regraft.modules.trees import ABSENT

MOST_BYTES = 8 * 2**30


@torch.no_grad()
def from_means(head: TreeHead, rows_VD: Tensor) -> None:
    """Start each child with the difference of the mean rows of the leaves below it and below the first child.

    Exact where all children are leaves: there the decision is a softmax of the original head.
    """
    _put(head, _means(head, rows_VD))


@torch.no_grad()
def from_states(
    head: TreeHead, rows_VD: Tensor, hidden_RD: Tensor, logits_RV: Tensor, rounds: int = 12, ridge: float = 0.1
) -> None:
    """Start each node by logistic regression on the original head's own probabilities of its children, on states of the model.

    Rows count by the original probability of reaching the node. The regression starts at the difference of the mean rows
    and is drawn back to it by `ridge` states' worth of evidence, so nodes that the states say little about keep it. Each
    round solves with a bound of the Hessian that holds everywhere, so no round raises the loss and the matrix is factored
    once ("Multinomial logistic regression algorithm", Böhning, 1992).

    Raises:
        ValueError: it would take more than 8 GiB.
    """
    held = 4 * head.children_NB.numel() * len(hidden_RD)
    if held > MOST_BYTES:
        raise ValueError(
            f"fitting {len(head.children_NB):,} nodes to {len(hidden_RD):,} states takes {held / 2**30:.0f} GiB: start from the "
            "means, or give fewer states"
        )
    mass_NBR = below(head, logits_RV.softmax(-1).T.contiguous())
    ones_R1 = hidden_RD.new_ones(len(hidden_RD), 1)
    states_RE = torch.cat([hidden_RD, ones_R1], dim=1)
    ridge_EE = ridge * float(states_RE.pow(2).mean()) * torch.eye(states_RE.shape[1], dtype=states_RE.dtype)
    found_NKE = _means(head, rows_VD)
    for node, children in enumerate((head.children_NB != ABSENT).sum(1).tolist()):
        mass_BR = mass_NBR[node, :children]
        found_NKE[node, : children - 1] = _regressed(found_NKE[node, : children - 1].T, states_RE, mass_BR, ridge_EE, rounds).T
        advance("starting weights", node + 1, len(mass_NBR))
    _put(head, found_NKE)


def _regressed(start_EK: Tensor, states_RE: Tensor, mass_BR: Tensor, ridge_EE: Tensor, rounds: int) -> Tensor:
    """One node's vectors: cross-entropy against the shares of the mass below its children, weighted by the whole mass.

    The Hessian is at most `(I - 11ᵀ/c) / 2 ⊗ XᵀRX`, whose inverse is `2 (I + 11ᵀ) ⊗ (XᵀRX)⁻¹` over all children but one.
    """
    reach_R = mass_BR.sum(0)
    wanted_RB = (mass_BR / reach_R.clamp(min=1e-30)).T
    factor_EE = torch.linalg.cholesky((states_RE.T * reach_R) @ states_RE + ridge_EE)
    found_EK = start_EK.clone()
    for _ in range(rounds):
        chances_RB = nn.functional.pad(states_RE @ found_EK, (1, 0)).softmax(-1)
        moved_EK = found_EK - start_EK
        drawn_EK = ridge_EE @ (moved_EK - moved_EK.sum(1, keepdim=True) / len(mass_BR)) / 2
        slope_EK = states_RE.T @ (reach_R[:, None] * (chances_RB - wanted_RB)[:, 1:]) + drawn_EK
        step_EK = torch.cholesky_solve(slope_EK, factor_EE)
        found_EK -= 2 * (step_EK + step_EK.sum(1, keepdim=True))
    return found_EK


def _means(head: TreeHead, rows_VD: Tensor) -> Tensor:
    """Vectors and biases (N, K, E) of the differences of mean rows."""
    counts_NB1 = below(head, torch.ones(len(rows_VD), 1, dtype=rows_VD.dtype)).clamp(min=1)
    means_NBE = torch.cat([below(head, rows_VD) / counts_NB1, counts_NB1.log()], dim=-1)
    return means_NBE[:, 1:] - means_NBE[:, :1]


def below(head: TreeHead, values_VX: Tensor) -> Tensor:
    """Sums of the leaves' values below every child of every node, (N, B, X), from the deepest level up."""
    whole_NX = values_VX.new_zeros(len(head.children_NB), values_VX.shape[1])
    sides_NBX = values_VX.new_zeros(*head.children_NB.shape, values_VX.shape[1])
    for level in reversed(head.levels):
        for child in range(head.children_NB.shape[1]):
            under = head.children_NB[level, child]
            inner, leaf = under >= 0, (under < 0) & (under != ABSENT)
            sides_NBX[level[inner], child] = whole_NX[under[inner]]
            sides_NBX[level[leaf], child] = values_VX[-1 - under[leaf]]
        whole_NX[level] = sides_NBX[level].sum(1)
    return sides_NBX


def _put(head: TreeHead, found_NKE: Tensor) -> None:
    """Write every child's vector and bias into the rows of the tables."""
    rows_NK = head.node_rows(torch.arange(len(head.children_NB)))
    real_NK = rows_NK != head.padding
    values_SE = found_NKE[real_NK].to(head.rows.weight.dtype)
    head.rows.weight[rows_NK[real_NK]] = values_SE[:, :-1]
    head.biases.weight[rows_NK[real_NK]] = values_SE[:, -1:]
