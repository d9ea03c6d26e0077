"""Trees over a vocabulary: balanced by id, Huffman by frequency, balanced 2-means of the head's rows or of
scores, BPE merges.

All are built binary; `widened` turns any of them into one of wider branching. Node 0 is the root. Shapes: V
leaves, N inner nodes, L longest path, B most children of a node, D width.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

ABSENT = np.iinfo(np.int64).min
"""In place of a child that a node does not have."""


@dataclass(frozen=True, eq=False)
class Tree:
    """The children of every inner node: an inner node's number, -1 - id for a leaf, ABSENT behind a node's
    last child."""

    children_NB: np.ndarray

    def __post_init__(self) -> None:
        """Make sure that every leaf and every node but the root is somebody's child once.

        Raises:
            ValueError: a leaf is missing or repeated, a node cannot be reached, or has fewer than two
                children.
        """
        children = self.children_NB[self.children_NB != ABSENT]
        leaves, inner = np.sort(-1 - children[children < 0]), np.sort(children[children >= 0])
        if not len(leaves) or not np.array_equal(leaves, np.arange(len(leaves))):
            raise ValueError(f"the tree does not hold every one of its {len(leaves)} leaves once")
        if not np.array_equal(inner, np.arange(1, len(self.children_NB))):
            raise ValueError("a node of the tree is no node's child, or that of two")
        if (self.counts_N < 2).any() or (self.children_NB[:, :1] == ABSENT).any():
            raise ValueError("a node of the tree has fewer than two children")
        if sum(len(level) for level in self.levels) != len(self.children_NB):
            raise ValueError("a node of the tree cannot be reached from its root")

    @property
    def leaves(self) -> int:
        """Number V of leaves."""
        return int(self.counts_N.sum()) - len(self.children_NB) + 1

    @cached_property
    def counts_N(self) -> np.ndarray:
        """Children of every node."""
        return (self.children_NB != ABSENT).sum(1)

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """Inner nodes by depth, the root's level first."""
        found = [np.zeros(1, dtype=np.int64)]
        while True:
            below = self.children_NB[found[-1]].reshape(-1)
            below = below[below >= 0]
            if not len(below):
                return found
            found.append(below)

    @cached_property
    def paths(self) -> tuple[np.ndarray, np.ndarray]:
        """For every leaf the inner nodes on its way from the root (V, L), padded with -1, and the child taken
        at each."""
        depth = len(self.levels)
        nodes, turns = np.full((self.leaves, depth), -1, np.int32), np.zeros((self.leaves, depth), np.int16)
        above_N = np.full((len(self.children_NB), depth), -1, np.int32)
        turned_N = np.zeros((len(self.children_NB), depth), np.int16)
        for level, numbers in enumerate(self.levels):
            for turn in range(self.children_NB.shape[1]):
                below = self.children_NB[numbers, turn]
                leaf, inner = (below < 0) & (below != ABSENT), below >= 0
                for goal, rows, walked, turned in (
                    (-1 - below[leaf], numbers[leaf], nodes, turns),
                    (below[inner], numbers[inner], above_N, turned_N),
                ):
                    walked[goal], turned[goal] = above_N[rows], turned_N[rows]
                    walked[goal, level], turned[goal, level] = rows, turn
        return nodes, turns

    def multiply_adds(self, width: int, counts_V: np.ndarray | None = None) -> float:
        """Products that the log-probability of one given token takes: `width` for every child but one on its
        path.

        The mean over tokens, which count by `counts_V`, or evenly.
        """
        nodes = self.paths[0]
        scores_V = np.where(nodes >= 0, self.counts_N[nodes] - 1, 0).sum(1)
        return width * float(np.average(scores_V, weights=counts_V))


def widened(tree: Tree, levels: int) -> Tree:
    """The tree whose nodes decide `levels` binary decisions at once, among up to 2 ** levels children.

    Raises:
        ValueError: fewer than one level.
    """
    if levels < 1:
        raise ValueError(f"a node cannot decide {levels} decisions at once: at least one")
    order, made = [0], []
    for node in order:
        codes = [node]
        for _ in range(levels):
            codes = [
                below
                for code in codes
                for below in (tree.children_NB[code].tolist() if code >= 0 else (code,))
            ]
            codes = [code for code in codes if code != ABSENT]
        first = len(order)
        order += [code for code in codes if code >= 0]
        fresh = iter(range(first, len(order)))
        made.append([next(fresh) if code >= 0 else code for code in codes])
    return from_lists(made)


def from_lists(children: Sequence[Sequence[int]]) -> Tree:
    """A tree from every node's children, of which nodes may have different numbers."""
    table_NB = np.full((len(children), max(map(len, children))), ABSENT, dtype=np.int64)
    for node, row in enumerate(children):
        table_NB[node, : len(row)] = row
    return Tree(table_NB)


def over(order: Sequence[int] | np.ndarray) -> Tree:
    """A balanced tree over leaves in a given order: each node's left half and right half differ by one leaf
    at most."""
    return split_by(np.asarray(order), lambda ids: ids)


def split_by(ids_V: np.ndarray, arrange: Callable[[np.ndarray], np.ndarray]) -> Tree:
    """A balanced tree whose every node's leaves are arranged anew before they are halved.

    Raises:
        ValueError: fewer than two leaves.
    """
    if len(ids_V) < 2:
        raise ValueError("a tree needs at least two leaves")
    children: list[list[int]] = [[0, 0]]
    waiting = [(0, ids_V)]
    while waiting:
        node, ids = waiting.pop()
        arranged = arrange(ids)
        half = len(ids) // 2
        for side, part in enumerate((arranged[:half], arranged[half:])):
            if len(part) == 1:
                children[node][side] = -1 - int(part[0])
            else:
                children.append([0, 0])
                children[node][side] = len(children) - 1
                waiting.append((len(children) - 1, part))
    return Tree(np.array(children, dtype=np.int64))


def by_id(count: int) -> Tree:
    """Balanced, in the order of the ids."""
    return over(np.arange(count))


def huffman(counts_V: np.ndarray) -> Tree:
    """Frequent tokens near the root: the tree with the shortest path on average."""
    heap: list[tuple[float, int, Any]] = [
        (float(count), number, -1 - number) for number, count in enumerate(counts_V)
    ]
    if len(heap) < 2:
        raise ValueError("a tree needs at least two leaves")
    heapq.heapify(heap)
    made = len(heap)
    while len(heap) > 1:
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (a + b, made, [left, right]))
        made += 1
    children: list[list[int]] = []
    waiting: list[tuple[Any, int, int]] = [(heap[0][2], -1, 0)]
    while waiting:
        node, parent, side = waiting.pop()
        code = node
        if isinstance(node, list):
            code = len(children)
            children.append([0, 0])
            waiting += [(node[0], code, 0), (node[1], code, 1)]
        if parent >= 0:
            children[parent][side] = code
    return Tree(np.array(children, dtype=np.int64))


def two_means(rows_VD: np.ndarray, rounds: int = 6, seed: int = 0) -> Tree:
    """Balanced 2-means of the head's rows, again and again: like rows share a long path."""
    rng = np.random.default_rng(seed)

    def arrange(ids: np.ndarray) -> np.ndarray:
        rows = rows_VD[ids]
        half = len(ids) // 2
        direction = rows[rng.integers(len(ids))] - rows.mean(0)
        for _ in range(rounds):
            order = np.argsort(rows @ direction, kind="stable")
            fresh = rows[order[half:]].mean(0) - rows[order[:half]].mean(0)
            if np.allclose(fresh, direction):
                break
            direction = fresh
        return ids[np.argsort(rows @ direction, kind="stable")]

    return split_by(np.arange(len(rows_VD)), arrange)


def by_scores(rows_VD: np.ndarray, states_RD: np.ndarray) -> np.ndarray:
    """Rows (V, D) whose distance is the root mean square difference of two tokens' scores over some states of
    the model.

    `two_means` of them puts tokens together that the model tells apart little, whatever their rows have in
    directions that no state points to. Scores are compared less their mean, which a node's bias makes up for.
    """
    values_D, vectors_DD = np.linalg.eigh(np.cov(states_RD.T.astype(np.float64), bias=True))
    return (rows_VD @ (vectors_DD * np.sqrt(values_D.clip(min=0)))).astype(np.float32)


def by_merges(tokenizer: Any, count: int) -> Tree:
    """Balanced over an order in which a token stands beside those that were merged from the same left part.

    Raises:
        ValueError: the tokenizer has no merges.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    model = json.loads(backend.to_str())["model"]
    merges = model.get("merges")
    if not merges:
        raise ValueError("this tokenizer has no merges: build the tree by id, frequency or clustering")
    vocabulary = model["vocab"]
    key: dict[str, tuple[int, ...]] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made = left + right
        if made in vocabulary:
            key[made] = (*key.get(left, (vocabulary.get(left, 0),)), vocabulary[made])
    names = {number: name for name, number in vocabulary.items()}
    order = sorted(range(count), key=lambda number: key.get(names.get(number, ""), (number,)))
    return over(order)
