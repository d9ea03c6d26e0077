"""Starting weights of a tree head without training, from the original head.

Shapes: R rows, D width, E = D + 1 with the constant one, V tokens, N inner nodes, M of them fitted together,
B most children of a node, K = B - 1, X values of any kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.modules.tree_head import TreeHead
from regraft.modules.trees import ABSENT

MOST_BYTES = 8 * 2**30
"""The masses of 4,000 states in a vocabulary of 248,320 fit into it; what passes it is better refused than
swapped to disk."""

TOGETHER = 4 * 2**20
"""Numbers (node, child, state) that are fitted at once. With 4,000 states of 1,024 numbers on two cores, a
quarter of them took a fifth longer (short products of matrices), four times as many a third (arrays past the
processor's cache)."""

SMALLEST = 1e-30
"""In place of a zero that is divided by."""

NEVER = -1e30
"""The score of a child that is not there: its chance is 0, and 0 times it is 0."""


@torch.no_grad()
def from_means(head: TreeHead, rows_VD: Tensor) -> None:
    """Start each child with the difference of the mean rows of the leaves below it and below the first child.

    Exact where all children are leaves: there the decision is a softmax of the original head.
    """
    _put(head, _means(head, rows_VD))


@torch.no_grad()
def from_states(
    head: TreeHead, rows_VD: Tensor, hidden_RD: Tensor, logits_RV: Tensor, rounds: int = 6, ridge: float = 0.1
) -> None:
    """Start each node by logistic regression on the original head's own probabilities of its children, on
    states of the model.

    Rows count by the original probability of reaching the node. The regression starts at the difference of
    the mean rows and is drawn back to it by `ridge` states' worth of evidence, so nodes that the states say
    little about keep it. No round raises the loss. Six rounds are enough: on the specimen, other states have
    1.386 nats by them, 1.402 by twelve and 1.453 by 48, which come nearer to these states only.

    Raises:
        ValueError: it would take more than 8 GiB.
    """
    widest = max(map(len, head.levels))
    held = logits_RV.element_size() * len(hidden_RD) * (head.vocabulary + 2 * widest)
    if held > MOST_BYTES:
        raise ValueError(
            f"fitting {len(head.children_NB):,} nodes to {len(hidden_RD):,} states takes"
            f" {held / 2**30:.0f} GiB: start from the means, or give fewer states"
        )
    states = _States.of(hidden_RD, ridge)
    found_NKE = _means(head, rows_VD)
    done, together = 0, max(1, TOGETHER // (len(hidden_RD) * head.children_NB.shape[1]))
    for nodes_M, mass_MBR in below(head, _chances(logits_RV), together):
        start_MKE = found_NKE[nodes_M] @ states.axes_EE
        found_NKE[nodes_M] = _regressed(
            states, start_MKE, mass_MBR, head.children_NB[nodes_M] != ABSENT, rounds
        )
        done += len(nodes_M)
        advance("starting weights", done, len(found_NKE))
    _put(head, found_NKE)


def _chances(logits_RV: Tensor) -> Tensor:
    """Probabilities (V, R), made some rows at a time: no second table of them is held."""
    found_VR = logits_RV.new_empty(logits_RV.shape[1], len(logits_RV))
    for rows in torch.arange(len(logits_RV)).split(256):
        found_VR[:, rows] = logits_RV[rows].softmax(-1).T
    return found_VR


@dataclass(frozen=True)
class _States:
    """The states with a constant one, turned to the axes on which their products are a diagonal, and the
    ridge on each axis."""

    turned_RE: Tensor
    axes_EE: Tensor
    squares_E: Tensor
    ridge: float

    @classmethod
    def of(cls, hidden_RD: Tensor, ridge: float) -> _States:
        states_RE = torch.cat([hidden_RD, hidden_RD.new_ones(len(hidden_RD), 1)], dim=1)
        products_EE = states_RE.double().T @ states_RE.double() / len(states_RE)
        squares_E, axes_EE = (found.to(states_RE.dtype) for found in torch.linalg.eigh(products_EE))
        return cls(
            states_RE @ axes_EE, axes_EE, squares_E.clamp(min=0), ridge * float(states_RE.pow(2).mean())
        )


def _regressed(states: _States, start_MKE: Tensor, mass_MBR: Tensor, real_MB: Tensor, rounds: int) -> Tensor:
    """Vectors of some nodes: cross-entropy against the shares of the mass below their children, weighted by
    the whole mass.

    Conjugate gradients, each node with its own (Polak and Ribière's, never less than 0). What a node's slope
    is divided by is a bound of its Hessian, `(I - 11ᵀ/c) / 2 ⊗ (reach of the node · XᵀX / R + ridge)`, as if
    all states reached it alike: on the axes of XᵀX a diagonal ("Multinomial logistic regression algorithm",
    Böhning, 1992).
    """
    nodes = _Nodes(states, start_MKE, mass_MBR, real_MB)
    whole_M1 = nodes.reach_MR.sum(-1, keepdim=True)
    scale_M1E = (2 / (whole_M1 * states.squares_E + states.ridge).clamp(min=SMALLEST))[:, None]
    found_MKE, scores_MKR = start_MKE, nodes.scores(start_MKE)
    way_MKE = slope_MKE = start_MKE.new_zeros(start_MKE.shape)
    fall_M = whole_M1[:, 0].new_ones(len(start_MKE))
    for _ in range(rounds):
        before_MKE, before_M = slope_MKE, fall_M
        chances_MKR = nodes.chances(scores_MKR)
        slope_MKE = nodes.slope(found_MKE, chances_MKR)
        step_MKE = scale_M1E * slope_MKE
        step_MKE = (step_MKE + step_MKE.sum(1, keepdim=True)) * nodes.real_MK1
        fall_M = _dot(slope_MKE, step_MKE)
        kept_M = (_dot(slope_MKE - before_MKE, step_MKE) / before_M.clamp(min=SMALLEST)).clamp(min=0)
        way_MKE = kept_M[:, None, None] * way_MKE - step_MKE
        up_M = _dot(slope_MKE, way_MKE) >= 0
        way_MKE = torch.where(up_M[:, None, None], -step_MKE, way_MKE)
        change_MKR = nodes.products(way_MKE)
        length_M11 = nodes.length(way_MKE, slope_MKE, scores_MKR, chances_MKR, change_MKR)[:, None, None]
        found_MKE = found_MKE + length_M11 * way_MKE
        scores_MKR = scores_MKR + length_M11 * change_MKR
    return found_MKE @ states.axes_EE.T


class _Nodes:
    """The objective of some nodes: its slope, and how far to go along a way."""

    def __init__(self, states: _States, start_MKE: Tensor, mass_MBR: Tensor, real_MB: Tensor):
        self.states, self.start_MKE = states, start_MKE
        self.reach_MR, self.mass_MKR = mass_MBR.sum(1), mass_MBR[:, 1:]
        self.real_MK1 = real_MB[:, 1:, None]
        self.children_M = real_MB.sum(1)

    def products(self, vectors_MKE: Tensor) -> Tensor:
        """Scores (M, K, R) that vectors give the states."""
        return (vectors_MKE.flatten(0, 1) @ self.states.turned_RE.T).view(*vectors_MKE.shape[:2], -1)

    def scores(self, vectors_MKE: Tensor) -> Tensor:
        """The same; a child that is not there is never chosen."""
        return self.products(vectors_MKE).masked_fill_(~self.real_MK1, NEVER)

    def chances(self, scores_MKR: Tensor) -> Tensor:
        """Probability (M, K, R) of all children but the first."""
        if scores_MKR.shape[1] == 1:
            return scores_MKR.sigmoid()
        return nn.functional.pad(scores_MKR, (0, 0, 1, 0)).softmax(1)[:, 1:]

    def slope(self, vectors_MKE: Tensor, chances_MKR: Tensor) -> Tensor:
        """Gradient of the objective; a vector is drawn back as if all children but their mean were."""
        wrong_MKR = torch.addcmul(-self.mass_MKR, self.reach_MR[:, None], chances_MKR)
        slope_MKE = (wrong_MKR.flatten(0, 1) @ self.states.turned_RE).view(vectors_MKE.shape)
        moved_MKE = vectors_MKE - self.start_MKE
        middle_M1E = moved_MKE.sum(1, keepdim=True) / self.children_M[:, None, None]
        return slope_MKE + self.states.ridge / 2 * (moved_MKE - middle_M1E)

    def length(
        self, way_MKE: Tensor, slope_MKE: Tensor, scores_MKR: Tensor, chances_MKR: Tensor, change_MKR: Tensor
    ) -> Tensor:
        """How far to go along the way: to where the curvature here puts the end, or its bound, whichever is
        lower there.

        The bound's step lowers the objective always.
        """
        fall_M = _dot(slope_MKE, way_MKE)
        back_M = (
            self.states.ridge / 2 * (_dot(way_MKE, way_MKE) - way_MKE.sum(1).pow(2).sum(-1) / self.children_M)
        )
        mean_MR = (chances_MKR * change_MKR).sum(1)
        here_M = _dot(self.reach_MR, (chances_MKR * change_MKR**2).sum(1) - mean_MR**2) + back_M
        most_MR = (change_MKR**2).sum(1) - change_MKR.sum(1) ** 2 / self.children_M[:, None]
        bound_M = _dot(self.reach_MR, most_MR) / 2 + back_M
        straight_M = fall_M - _dot(self.reach_MR, mean_MR)

        def height_M(length_M: Tensor) -> Tensor:
            scores_XR = torch.addcmul(scores_MKR, length_M[:, None, None], change_MKR)
            return _dot(self.reach_MR, _log_sum(scores_XR)) + length_M * straight_M + length_M**2 / 2 * back_M

        near_M, far_M = (-fall_M / curve_M.clamp(min=SMALLEST) for curve_M in (bound_M, here_M))
        return torch.where(height_M(far_M) < height_M(near_M), far_M, near_M)


def _log_sum(scores_MKR: Tensor) -> Tensor:
    """Logarithm of the summed exponentials of all children's scores, the first one's 0, (M, R)."""
    if scores_MKR.shape[1] == 1:
        return nn.functional.softplus(scores_MKR[:, 0])
    return nn.functional.pad(scores_MKR, (0, 0, 1, 0)).logsumexp(1)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """The product of each node's numbers, (M,)."""
    return torch.linalg.vecdot(left.flatten(1), right.flatten(1))


def _means(head: TreeHead, rows_VD: Tensor) -> Tensor:
    """Vectors and biases (N, K, E) of the differences of mean rows."""
    ones_VE = torch.cat([rows_VD, rows_VD.new_ones(len(rows_VD), 1)], dim=1)
    means_NBE = rows_VD.new_empty(*head.children_NB.shape, ones_VE.shape[1])
    for nodes_M, sums_MBE in below(head, ones_VE):
        counts_MB1 = sums_MBE[..., -1:].clamp(min=1)
        means_NBE[nodes_M] = torch.cat([sums_MBE[..., :-1] / counts_MB1, counts_MB1.log()], dim=-1)
    return means_NBE[:, 1:] - means_NBE[:, :1]


def below(head: TreeHead, values_VX: Tensor, together: int = 4096) -> Iterator[tuple[Tensor, Tensor]]:
    """Sums of the leaves' values below every child of some nodes, (M,) and (M, B, X), level by level from the
    deepest up.

    Of the sums only one level's and the one's below it are held.
    """
    lower_X = values_VX[:0]
    for level in reversed(head.levels):
        sums_X, taken = values_VX.new_empty(len(level), values_VX.shape[1]), 0
        for at in range(0, len(level), together):
            codes_MB = head.children_NB[level[at : at + together]]
            inner_MB, leaf_MB = codes_MB >= 0, (codes_MB < 0) & (codes_MB != ABSENT)
            count = int(inner_MB.sum())
            sides_MBX = values_VX.new_zeros(*codes_MB.shape, values_VX.shape[1])
            # A level's inner children, read in order, are the level below it.
            sides_MBX[inner_MB] = lower_X[taken : taken + count]
            sides_MBX[leaf_MB] = values_VX[-1 - codes_MB[leaf_MB]]
            taken += count
            sums_X[at : at + together] = sides_MBX.sum(1)
            yield level[at : at + together], sides_MBX
        lower_X = sums_X


def _put(head: TreeHead, found_NKE: Tensor) -> None:
    """Write every child's vector and bias into the rows of the tables."""
    rows_NK = head.node_rows(torch.arange(len(head.children_NB)))
    real_NK = rows_NK != head.padding
    values_SE = found_NKE[real_NK].to(head.rows.weight.dtype)
    head.rows.weight[rows_NK[real_NK]] = values_SE[:, :-1]
    head.biases.weight[rows_NK[real_NK]] = values_SE[:, -1:]
