"""A hierarchical softmax in place of the output matrix: one decision at every inner node of a tree over the vocabulary.

`p(token)` is the product of `sigmoid(±(w_n·h + b_n))` along the token's path. The cost of a known token's probability grows
with its depth, not with the vocabulary. After "Hierarchical Probabilistic Neural Network Language Model" (Morin and Bengio,
2005). Shapes: R rows, D width, V tokens, N inner nodes, L longest path, K best tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from regraft.graft.trees import Tree


class TreeHead(nn.Module):
    """Vectors and biases of a tree's inner nodes; everything exact."""

    nodes_VL: Tensor
    turns_VL: Tensor
    children_N2: Tensor

    def __init__(self, tree: Tree, width: int):
        super().__init__()
        nodes, turns = tree.paths
        self.levels = [torch.from_numpy(level) for level in tree.levels]
        self.register_buffer("nodes_VL", torch.from_numpy(nodes).long(), persistent=False)
        self.register_buffer("turns_VL", torch.from_numpy(turns).float(), persistent=False)
        self.register_buffer("children_N2", torch.from_numpy(tree.children_N2), persistent=False)
        self.weight = nn.Parameter(torch.zeros(tree.leaves - 1, width))
        self.bias = nn.Parameter(torch.zeros(tree.leaves - 1))

    def log_probability(self, hidden_RD: Tensor, ids_R: Tensor) -> Tensor:
        """Log-probability of one given token for each row, (R,), from the nodes on its path alone."""
        nodes_RL = self.nodes_VL[ids_R]
        real_RL = nodes_RL >= 0
        reached_RL = nodes_RL.clamp(min=0)
        scores_RL = torch.einsum("rld,rd->rl", self.weight[reached_RL], hidden_RD) + self.bias[reached_RL]
        steps_RL = nn.functional.logsigmoid(self.turns_VL[ids_R].to(scores_RL.dtype) * scores_RL)
        return (steps_RL * real_RL).sum(-1)

    def log_probabilities(self, hidden_RD: Tensor) -> Tensor:
        """The whole distribution (R, V), level by level."""
        scores_RN = hidden_RD @ self.weight.T + self.bias
        reached_RN = scores_RN.new_zeros(scores_RN.shape)
        found_RV = scores_RN.new_zeros(len(hidden_RD), len(self.nodes_VL))
        for level in self.levels:
            level = level.to(hidden_RD.device)
            for side, sign in ((0, -1.0), (1, 1.0)):
                below = self.children_N2[level, side]
                value = reached_RN[:, level] + nn.functional.logsigmoid(sign * scores_RN[:, level])
                inner = below >= 0
                reached_RN = reached_RN.index_copy(1, below[inner], value[:, inner])
                found_RV = found_RV.index_copy(1, -1 - below[~inner], value[:, ~inner])
        return found_RV

    @torch.no_grad()
    def sample(self, hidden_RD: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One token drawn from each row's distribution, (R,), by descending the tree."""
        at_R = torch.zeros(len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
        while bool((at_R >= 0).any()):
            rows = (at_R >= 0).nonzero()[:, 0]
            nodes = at_R[rows]
            scores = (self.weight[nodes] * hidden_RD[rows]).sum(-1) + self.bias[nodes]
            right = torch.rand(scores.shape, generator=generator, device=scores.device, dtype=scores.dtype) < scores.sigmoid()
            at_R[rows] = self.children_N2[nodes, right.long()]
        return -1 - at_R

    @torch.no_grad()
    def best_first(self, hidden_D: Tensor) -> Iterator[tuple[int, float, int]]:
        """Tokens of one row from the most probable on: (token, log-probability, nodes visited so far).

        A node's path product bounds everything below it, so the first leaf that comes out of the queue is the best.
        """
        waiting: list[tuple[float, int]] = [(0.0, 0)]
        visited = 0
        while waiting:
            cost, code = heapq.heappop(waiting)
            if code < 0:
                yield -1 - code, -cost, visited
                continue
            visited += 1
            score = self.weight[code] @ hidden_D + self.bias[code]
            steps = nn.functional.logsigmoid(torch.stack([-score, score])).tolist()
            for below, step in zip(self.children_N2[code].tolist(), steps, strict=True):
                heapq.heappush(waiting, (cost - step, below))

    def top(self, hidden_D: Tensor, count: int) -> tuple[list[int], list[float], int]:
        """The `count` most probable tokens of one row, their log-probabilities, and how many nodes were visited."""
        found = [one for one, _ in zip(self.best_first(hidden_D), range(count), strict=False)]
        return [token for token, _, _ in found], [value for _, value, _ in found], found[-1][2]


@torch.no_grad()
def from_means(head: TreeHead, rows_VD: Tensor) -> None:
    """Start each node with the difference of the mean rows of the leaves to its right and to its left."""
    sums, counts = _below(head, rows_VD), _below(head, torch.ones(len(rows_VD), 1, dtype=rows_VD.dtype))
    head.weight.copy_(sums[:, 1] / counts[:, 1] - sums[:, 0] / counts[:, 0])
    head.bias.copy_((counts[:, 1] / counts[:, 0]).log()[:, 0])


@torch.no_grad()
def from_states(head: TreeHead, hidden_RD: Tensor, logits_RV: Tensor, ridge: float = 1e-2) -> None:
    """Start each node by regressing the original head's own log-odds of turning right there on states of the model.

    The log-odds at a node are those of the original distribution's mass to its right and to its left; rows count by the
    original probability of reaching the node, so a node is fitted where it matters.
    """
    mass_VR = logits_RV.double().softmax(-1).T.contiguous()
    sums = _below(head, mass_VR).clamp(min=1e-30)
    with_one_RE = torch.cat([hidden_RD.double(), torch.ones(len(hidden_RD), 1, dtype=torch.float64)], dim=1)
    ridge_EE = ridge * torch.eye(with_one_RE.shape[1], dtype=torch.float64) * float(with_one_RE.pow(2).mean())
    for node in range(len(head.weight)):
        odds_R = sums[node, 1].log() - sums[node, 0].log()
        reach_R = sums[node].sum(0)
        reach_R = reach_R / reach_R.sum()
        weighted_ER = with_one_RE.T * reach_R
        solved_E = torch.linalg.solve(weighted_ER @ with_one_RE + ridge_EE / len(hidden_RD), weighted_ER @ odds_R)
        head.weight[node] = solved_E[:-1].to(head.weight.dtype)
        head.bias[node] = solved_E[-1].to(head.bias.dtype)


def _below(head: TreeHead, values_VX: Tensor) -> Tensor:
    """Sums of the leaves' values to the left and right of every node, (N, 2, X), from the deepest level up."""
    whole_NX = values_VX.new_zeros(len(head.children_N2), values_VX.shape[1])
    sides = values_VX.new_zeros(len(head.children_N2), 2, values_VX.shape[1])
    for level in reversed(head.levels):
        for side in (0, 1):
            below = head.children_N2[level, side]
            inner = below >= 0
            sides[level[inner], side] = whole_NX[below[inner]]
            sides[level[~inner], side] = values_VX[-1 - below[~inner]]
        whole_NX[level] = sides[level].sum(1)
    return sides
