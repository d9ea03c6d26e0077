"""A hierarchical softmax in place of the output matrix: one decision at every inner node of a tree over the
vocabulary.

The probability of a token is the product of the probabilities of the children on its path. A node with c
children has c - 1 vectors and biases, the first child's score is 0: with two children a node is
`sigmoid(w_n·h + b_n)`. So a tree of V leaves has V - 1 rows whatever its branching, and the cost of a known
token's probability grows with its path, not with the vocabulary. After "Hierarchical Probabilistic Neural
Network Language Model" (Morin and Bengio, 2005).
Shapes: R rows, D width, V tokens, N inner nodes, L longest path, B most children of a node, K = B - 1, S rows
of the tree.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from .trees import ABSENT, Tree

FEW = 16
"""Rows up to which a draw on the CPU goes row by row."""

VISIT, VISIT_OF_TENSORS = 30, 400
"""Tokens of a whole distribution that take as long as one node's visit in a search, by numpy and by torch:
measured from 16 (4,096 tokens, 192 numbers each) to 40 (151,643 tokens, 1,024 numbers), and from 270 to
390."""

ARRAYS = (torch.float32, torch.float64)
"""Types of numbers that numpy has too."""


class Adapter(nn.Module):
    """A residual MLP on the hidden state in front of the tree; it starts as the identity."""

    def __init__(self, width: int, neurons: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, neurons), nn.Linear(neurons, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, hidden_RD: Tensor) -> Tensor:
        """The state with what the MLP adds."""
        return hidden_RD + self.down(nn.functional.gelu(self.up(hidden_RD)))


@dataclass(frozen=True)
class TreeShape:
    """Sizes of a tree: leaves, inner nodes, most children of a node, longest path."""

    leaves: int
    nodes: int
    children: int
    depth: int


def tree_head(tree: Tree, width: int, neurons: int = 0, sparse: bool = True) -> TreeHead:
    """A head on a tree, all of its decisions even; `neurons` of the adapter in front (0: none).

    Args:
        tree: over the vocabulary's V tokens.
        width: of the states that it reads, D.
        neurons: of the adapter in front; 0: none.
        sparse: whether its tables have sparse gradients.

    Returns:
        The head: from states (..., D) to log-probabilities (..., V) in nats.

    Examples:
        >>> from regraft.modules.trees import by_id
        >>> head = regraft.tree_head(by_id(16), width=8)
        >>> log_p = head.log_probabilities(torch.zeros(1, 8))  # (R, V) nats: all decisions are even
        >>> [round(float(p), 4) for p in log_p.exp()[0, :2].detach()]
        [0.0625, 0.0625]
    """
    shape = TreeShape(tree.leaves, len(tree.children_NB), tree.children_NB.shape[1], len(tree.levels))
    head = TreeHead(shape, width, neurons, sparse)
    for name, tensor in tables(tree).items():
        head.get_buffer(name).copy_(tensor)
    return head


def tables(tree: Tree) -> dict[str, Tensor]:
    """A tree as the buffers of a head: every token's path, every node's children, the first row of each
    node."""
    nodes, turns = tree.paths
    rows_N = torch.from_numpy(tree.counts_N) - 1
    found = {"nodes_VL": nodes, "turns_VL": turns, "children_NB": tree.children_NB}
    return {
        **{name: torch.from_numpy(array) for name, array in found.items()},
        "first_N": rows_N.cumsum(0) - rows_N,
    }


def turn_of(scores_K: list[float], uniform: float) -> int:
    """Which child a uniform number chooses, by the scores of all children but the first, whose own is 0."""
    most = max(0.0, *scores_K)
    shares = [math.exp(-most), *(math.exp(score - most) for score in scores_K)]
    left = uniform * sum(shares)
    for turn, share in enumerate(shares):
        left -= share
        if left < 0:
            return turn
    return len(scores_K)


def log_shares(scores_K: list[float]) -> list[float]:
    """Log-probabilities of all children, by the scores of all but the first, whose own is 0."""
    most = max(0.0, *scores_K)
    whole = most + math.log(math.exp(-most) + sum(math.exp(score - most) for score in scores_K))
    return [-whole, *(score - whole for score in scores_K)]


def check_tree(head: TreeHead) -> None:
    """Make sure that what was read as a head's tree is one, and that its paths are its own.

    Raises:
        ValueError: a leaf is missing or repeated, a node cannot be reached, or the paths are another tree's.
    """
    for name, tensor in tables(Tree(head.children_NB.cpu().numpy())).items():
        if not torch.equal(head.get_buffer(name).cpu(), tensor):
            raise ValueError(f"the tree's table {name} does not belong to its children")


class TreeHead(nn.Module):
    """Vectors and biases of a tree's inner nodes, behind an adapter if it has neurons; everything exact.

    Row V - 1 of the tables is padding: always zero, never moved.

    Examples:
        >>> from regraft.modules.trees import by_id
        >>> head = regraft.tree_head(by_id(16), width=8)
        >>> type(head).__name__, head.shape.leaves, head.shape.depth
        ('TreeHead', 16, 4)
    """

    nodes_VL: Tensor
    turns_VL: Tensor
    children_NB: Tensor
    first_N: Tensor

    def __init__(self, shape: TreeShape, width: int, neurons: int = 0, sparse: bool = True):
        """The tree itself is read from the buffers; `tree_head` fills them."""
        super().__init__()
        self.shape, self.width, self.neurons = shape, width, neurons
        self.register_buffer("nodes_VL", torch.full((shape.leaves, shape.depth), -1, dtype=torch.int32))
        self.register_buffer("turns_VL", torch.zeros(shape.leaves, shape.depth, dtype=torch.int16))
        self.register_buffer("children_NB", torch.full((shape.nodes, shape.children), ABSENT))
        self.register_buffer("first_N", torch.zeros(shape.nodes, dtype=torch.int64))
        self.padding = shape.leaves - 1
        self.rows = nn.Embedding(shape.leaves, width, padding_idx=self.padding, sparse=sparse)
        self.biases = nn.Embedding(shape.leaves, 1, padding_idx=self.padding, sparse=sparse)
        nn.init.zeros_(self.rows.weight)
        nn.init.zeros_(self.biases.weight)
        self.adapter = Adapter(width, neurons) if neurons else nn.Identity()
        self._levels: tuple[int, list[Tensor]] = (-1, [])

    @property
    def levels(self) -> list[Tensor]:
        """Inner nodes by depth, as they lie in the table of children."""
        version = self.children_NB._version
        if self._levels[0] != version or self._levels[1][0].device != self.children_NB.device:
            found = [torch.zeros(1, dtype=torch.long, device=self.children_NB.device)]
            while len(under := self.children_NB[found[-1]].flatten()) and bool((under >= 0).any()):
                found.append(under[under >= 0])
            self._levels = version, found
        return self._levels[1]

    @property
    def vocabulary(self) -> int:
        """Number V of tokens."""
        return len(self.nodes_VL)

    def log_probability(self, hidden_RD: Tensor, ids_R: Tensor) -> Tensor:
        """Log-probability of one given token for each row, (R,), from the nodes on its path alone.

        Gradients of the tree's rows are sparse: they name only the rows on the paths.
        """
        hidden_RD = self.adapter(hidden_RD)
        steps_RLB = self._steps(hidden_RD, self.nodes_VL[ids_R].long())
        return steps_RLB.gather(-1, self.turns_VL[ids_R].long()[..., None])[..., 0].sum(-1)

    def _steps(self, adapted_RD: Tensor, nodes_RL: Tensor) -> Tensor:
        """Log-probability of every child of some nodes, (R, L, B); of a node that is padding (-1), 0 for its
        first."""
        rows_RLK = self.node_rows(nodes_RL)
        # The padding row's scores are masked, so its gradient is zero without `padding_idx`, whose backward
        # copies all rows.
        weights_RLKD = nn.functional.embedding(rows_RLK, self.rows.weight, sparse=self.rows.sparse)
        scores_RLK = torch.einsum("rlkd,rd->rlk", weights_RLKD, adapted_RD) + self.biases(rows_RLK)[..., 0]
        return self._children(scores_RLK, rows_RLK != self.padding)

    def node_rows(self, nodes_X: Tensor) -> Tensor:
        """Numbers of some nodes' rows (..., K), the padding's for children that they do not have."""
        reached_X = nodes_X.clamp(min=0)
        real_XK = (self.children_NB[reached_X][..., 1:] != ABSENT) & (nodes_X >= 0)[..., None]
        rows_XK = self.first_N[reached_X][..., None] + torch.arange(real_XK.shape[-1], device=nodes_X.device)
        return torch.where(real_XK, rows_XK, self.padding)

    @staticmethod
    def _children(scores: Tensor, real: Tensor, dim: int = -1) -> Tensor:
        """Log-probabilities of the children along `dim`, from the scores of all but the first; who is not
        there has none."""
        if scores.shape[dim] == 1:
            second = nn.functional.logsigmoid(scores)
            return torch.cat(
                [torch.where(real, second - scores, 0.0), torch.where(real, second, -torch.inf)], dim
            )
        scores = torch.where(real, scores, -torch.inf)
        first = scores.narrow(dim, 0, 1).new_zeros(()).expand_as(scores.narrow(dim, 0, 1))
        return torch.cat([first, scores], dim).log_softmax(dim)

    def log_probabilities(self, hidden_RD: Tensor) -> Tensor:
        """The whole distribution (R, V), level by level; rows lie in the last dimension until the end, where
        gathers are fast."""
        scores_SR = self.rows.weight @ self.adapter(hidden_RD).T + self.biases.weight
        reached_MR = scores_SR.new_zeros(1, len(hidden_RD))
        ids: list[Tensor] = []
        values: list[Tensor] = []
        for level in self.levels:
            rows_MK, below_X = self.node_rows(level), self.children_NB[level].flatten()
            steps_MBR = self._children(scores_SR[rows_MK], (rows_MK != self.padding)[..., None], dim=1)
            value_XR = (reached_MR[:, None] + steps_MBR).flatten(0, 1)
            inner, leaf = below_X >= 0, (below_X < 0) & (below_X != ABSENT)
            reached_MR = value_XR[inner]
            ids.append(-1 - below_X[leaf])
            values.append(value_XR[leaf])
        return torch.cat(values)[torch.cat(ids).argsort()].T.contiguous()

    @torch.no_grad()
    def sample(self, hidden_RD: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One exact draw for each row, (R,): down the tree, one uniform number a decision."""
        uniform_RL = torch.rand(
            len(hidden_RD), self.shape.depth, generator=generator, device=hidden_RD.device
        )
        adapted_RD = self.adapter(hidden_RD)
        few = self._in_arrays(adapted_RD) and len(hidden_RD) <= FEW
        return self._descend_few(adapted_RD, uniform_RL) if few else self._descend(adapted_RD, uniform_RL)

    def _in_arrays(self, adapted_RD: Tensor) -> bool:
        """Whether numpy can read the rows of the tree where they lie."""
        return (
            adapted_RD.device.type == "cpu"
            and adapted_RD.dtype == self.rows.weight.dtype
            and adapted_RD.dtype in ARRAYS
        )

    def _descend(self, adapted_RD: Tensor, uniform_RL: Tensor) -> Tensor:
        """Draws of many rows at once, level by level."""
        at_R = torch.zeros(len(adapted_RD), dtype=torch.long, device=adapted_RD.device)
        for level in range(self.shape.depth):
            walking = (at_R >= 0).nonzero()[:, 0]
            nodes = at_R[walking]
            upto = self._steps(adapted_RD[walking], nodes[:, None])[:, 0].exp().cumsum(-1)
            last = (self.children_NB[nodes] != ABSENT).sum(-1) - 1
            turn = (upto <= uniform_RL[walking, level, None]).sum(-1).minimum(last)
            at_R[walking] = self.children_NB[nodes, turn]
        return -1 - at_R

    def _descend_few(self, adapted_RD: Tensor, uniform_RL: Tensor) -> Tensor:
        """The same, row by row without tensors of a few numbers, whose set-up would cost more than the
        products."""
        children_NB = self.children_NB.numpy()
        drawn: list[int] = []
        for adapted_D, uniform_L in zip(adapted_RD, uniform_RL.tolist(), strict=True):
            at, level, scores_K = 0, 0, self._scores_in_arrays(adapted_D)
            while at >= 0:
                at, level = int(children_NB[at, turn_of(scores_K(at), uniform_L[level])]), level + 1
            drawn.append(-1 - at)
        return torch.tensor(drawn)

    def _scores_in_arrays(self, adapted_D: Tensor) -> Callable[[int], list[float]]:
        """What one row gives each node's children but the first, as numbers of Python."""
        rows_SD, biases_S = self.rows.weight.detach().numpy(), self.biases.weight.detach().numpy()[:, 0]
        first_N, hidden_D = [*self.first_N.tolist(), self.padding], adapted_D.detach().numpy()

        def scores(node: int) -> list[float]:
            first, behind = first_N[node], first_N[node + 1]
            return (rows_SD[first:behind] @ hidden_D + biases_S[first:behind]).tolist()

        return scores

    def _steps_of(self, adapted_D: Tensor) -> Callable[[int], list[float]]:
        """Log-probabilities of each node's children, of one row."""
        if self._in_arrays(adapted_D):
            scores_K = self._scores_in_arrays(adapted_D)
            return lambda node: log_shares(scores_K(node))
        return lambda node: self._steps(adapted_D[None], torch.tensor([[node]], device=adapted_D.device))[
            0, 0
        ].tolist()

    @torch.no_grad()
    def best_first(self, hidden_D: Tensor, most: int | None = None) -> Iterator[tuple[int, float, int]]:
        """Tokens of one row from the most probable on: (token, log-probability, nodes visited so far).

        A node's path product bounds everything below it, so the first leaf that comes out of the queue is the
        best. The search ends before it visits more than `most` nodes.
        """
        steps_of = self._steps_of(self.adapter(hidden_D[None])[0])
        waiting: list[tuple[float, int]] = [(0.0, 0)]
        visited = 0
        while waiting:
            cost, code = heapq.heappop(waiting)
            if code < 0:
                yield -1 - code, -cost, visited
                continue
            if visited == most:
                return
            visited += 1
            for below, step in zip(self.children_NB[code].tolist(), steps_of(code), strict=False):
                if below != ABSENT:
                    heapq.heappush(waiting, (cost - step, below))

    def top(self, hidden_RD: Tensor, count: int) -> list[tuple[list[int], list[float], int]]:
        """Of each row the `count` most probable tokens, their log-probabilities, and how many nodes were
        visited.

        Best-first while that is less work than the whole distribution, which all rows that need more than
        that share.
        """
        visit = VISIT if self._in_arrays(hidden_RD) else VISIT_OF_TENSORS
        most = self.vocabulary // (visit * len(hidden_RD))
        found = [list(islice(self.best_first(hidden_D, most), count)) for hidden_D in hidden_RD]
        whole = [row for row, tokens in enumerate(found) if len(tokens) < min(count, self.vocabulary)]
        best: dict[int, tuple[list[int], list[float], int]] = {}
        if whole:
            values, tokens = self.log_probabilities(hidden_RD[whole]).topk(min(count, self.vocabulary))
            each = zip(whole, tokens.tolist(), values.tolist(), strict=True)
            best = {row: (ids, numbers, most + self.shape.nodes) for row, ids, numbers in each}
        return [
            best.get(row) or ([one for one, _, _ in tokens], [value for _, value, _ in tokens], tokens[-1][2])
            for row, tokens in enumerate(found)
        ]
