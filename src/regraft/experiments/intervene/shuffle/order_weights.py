"""Orders of shuffled blocks without any text: from their weights, or from what they do to random input.

Each method sees the blocks as an unordered list and returns indices into that list. Shapes: n blocks, F
features, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from regraft.experiments.intervene.shuffle.seriation import (
    euclidean,
    fiedler_order,
    nearest_neighbour,
    oriented,
    shortest_path,
)
from regraft.model.model import Model
from regraft.model.parts import Block, is_norm
from regraft.model.recording import Recording
from regraft.model.selfcheck import sample_ids
from regraft.model.weights import live_weights

SCALES = (0.05, 0.1, 0.5, 1.0)
"""Sizes of random input: of an embedding up to that of a stream."""
PROBE_TOKENS, TOP = 32, 32
"""Random tokens of a probe, and singular values that are compared."""
AT_ONCE = 1 << 16
"""Weights of each block in float64 at a time: half a mebibyte a block, so that no second model is held."""
CAUSAL_SCALE, CAUSAL_PROBES = 0.1, 2
"""Size and number of the probes of pairs, as published."""
SPECTRAL_ROLES = ("q", "k", "v", "gate")


class Blocks:
    """Shuffled blocks as the methods see them: modules in an unknown order, and their weights."""

    def __init__(self, model: Model, blocks: list[Block], seed: int):
        self.model, self.blocks, self.seed = model, blocks, seed
        live_weights(model)
        self.tensors = [{name: p.detach() for name, p in block.module.named_parameters()} for block in blocks]
        shapes = [{name: t.shape for name, t in one.items()} for one in self.tensors]
        self.alike = all(one == shapes[0] for one in shapes)
        squares = [[float(t.double().pow(2).sum()) for t in one.values()] for one in self.tensors]
        self.total_norm = np.array([sum(one) ** 0.5 for one in squares])
        self._recording: Recording | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def same_shapes(self) -> None:
        """Make sure that weights can be compared one by one.

        Raises:
            ValueError: the blocks are not of one make.
        """
        if not self.alike:
            raise ValueError("the blocks are not of one make, so their weights cannot be compared one by one")

    @property
    def recording(self) -> Recording:
        """A run on random tokens, for the arguments that every block keeps wherever it stands."""
        if self._recording is None:
            ids = sample_ids(self.model.table_rows, PROBE_TOKENS, self.seed)
            self._recording = self.model.record(
                [ids], [ids] if self.model.two_stacks else None, attention_mask="all"
            )
        return self._recording

    def run(self, index: int, stream_1TD: Tensor) -> Tensor:
        """One block on a stream."""
        with torch.no_grad():
            return self.recording.run_block(self.blocks[index].index, stream_1TD, rows=1)

    def probe(self, number: int, scale: float) -> Tensor:
        """A random stream, (1, T, D), the same for every block and every shuffle."""
        like = self.recording.pre(self.blocks[0].index)
        generator = torch.Generator().manual_seed(number)
        return scale * torch.randn(like.shape, generator=generator).to(like)


def weight_stats(b: Blocks) -> list[int]:
    """Norm, mean, standard deviation and largest value of all weights of a block; Euclidean; shortest
    path."""
    return oriented(shortest_path(_stats_distance(b)), b.total_norm)


def _stats_distance(b: Blocks) -> np.ndarray:
    """Four numbers for each block, not brought to one scale, so that the norm rules."""
    rows = []
    for tensors, norm in zip(b.tensors, b.total_norm, strict=True):
        count = sum(t.numel() for t in tensors.values())
        mean = sum(float(t.double().sum()) for t in tensors.values()) / count
        spread = max(norm**2 / count - mean**2, 0.0) ** 0.5
        rows.append([norm, mean, spread, max(_largest(t) for t in tensors.values())])
    return euclidean(np.array(rows))


def tensor_stats(b: Blocks) -> list[int]:
    """Norm, mean, standard deviation and largest value of every tensor; Euclidean; shortest path."""
    return oriented(shortest_path(_tensor_distance(b)), b.total_norm)


def _tensor_distance(b: Blocks) -> np.ndarray:
    b.same_shapes()
    rows = [
        [f(t) for held in one.values() for t in [held.double()] for f in (_norm, _mean, _std, _largest)]
        for one in b.tensors
    ]
    return euclidean(np.array(rows))


def _norm(t: Tensor) -> float:
    return float(t.norm())


def _mean(t: Tensor) -> float:
    return float(t.mean())


def _std(t: Tensor) -> float:
    return float(t.std(correction=0))


def _largest(t: Tensor) -> float:
    return float(t.abs().max())


def norm_weights(b: Blocks) -> list[int]:
    """All weights of norms in one vector; Euclidean (a cosine would forget their size); shortest path."""
    return oriented(shortest_path(_norms_distance(b)), b.total_norm)


def _norms_distance(b: Blocks) -> np.ndarray:
    rows = [
        [
            float(x)
            for module in block.module.modules()
            if is_norm(module)
            for p in module.parameters()
            for x in p.detach()
        ]
        for block in b.blocks
    ]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError("the blocks have no norm weights of one size to compare")
    return euclidean(np.array(rows))


def svd_spectrum(b: Blocks) -> list[int]:
    """The 32 largest singular values of q, k, v and gate (up, where there is no gate); Euclidean; shortest
    path."""
    return oriented(shortest_path(_spectrum_distance(b)), b.total_norm)


def _spectrum_distance(b: Blocks) -> np.ndarray:
    found: dict[str, dict[str, list[list[float]]]] = {block.address: {} for block in b.blocks}
    weights = live_weights(b.model)
    roles = {*SPECTRAL_ROLES, "up"}
    for matrix, values in weights.walk([m for m in weights.matrices if m.block in found and m.role in roles]):
        # As Python's numbers: an array kept between two large ones keeps their memory from being given back.
        sigma = torch.linalg.svdvals(values.double())[:TOP].tolist()
        found[matrix.block].setdefault(matrix.role, []).append(sigma)
    gate = "gate" if all("gate" in roles for roles in found.values()) else "up"
    wanted = [gate if role == "gate" else role for role in SPECTRAL_ROLES]
    rows = [
        [s for role in wanted for sigma in found[block.address].get(role, []) for s in sigma]
        for block in b.blocks
    ]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError(
            "the blocks do not all have the same projections, so their spectra cannot be compared"
        )
    return euclidean(np.array(rows))


def full_weights(b: Blocks) -> list[int]:
    """Cosine distance of all weights; shortest path."""
    return oriented(shortest_path(_cosine_distance(b)), b.total_norm)


def _cosine_distance(b: Blocks) -> np.ndarray:
    b.same_shapes()
    gram = _gram(b.tensors)
    length = np.sqrt(np.diag(gram))
    distance = 1 - gram / length[:, None] / length[None]
    np.fill_diagonal(distance, 0.0)
    return distance


def _gram(tensors: list[dict[str, Tensor]]) -> np.ndarray:
    """Products of all weights of every two blocks, (L, L) in float64, a slice of one tensor of all blocks at
    a time."""
    gram = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    for name, first in tensors[0].items():
        flat = [one[name].reshape(-1) for one in tensors]
        for begin in range(0, first.numel(), AT_ONCE):
            slice_Lc = torch.stack([t[begin : begin + AT_ONCE].double() for t in flat])
            gram += (slice_Lc @ slice_Lc.t()).cpu()
    return gram.numpy()


def greedy_cosine(b: Blocks) -> list[int]:
    """The same distance; from the block that is farthest from all others always on to the nearest."""
    distance = _cosine_distance(b)
    return oriented(nearest_neighbour(distance, int(distance.mean(1).argmax())), b.total_norm)


def fiedler(b: Blocks) -> list[int]:
    """Second eigenvector of the Laplacian of a Gaussian kernel on the distances of `weight_stats`."""
    return oriented(fiedler_order(_stats_distance(b)), b.total_norm)


def tensor_fiedler(b: Blocks) -> list[int]:
    """The same on the distances of `tensor_stats`."""
    return oriented(fiedler_order(_tensor_distance(b)), b.total_norm)


def ensemble_rank(b: Blocks) -> list[int]:
    """Mean place over four chains: weight_stats, norm_weights, svd_spectrum, full_weights."""
    return _mean_place(b, [method(b) for method in (weight_stats, norm_weights, svd_spectrum, full_weights)])


def tensor_ensemble(b: Blocks) -> list[int]:
    """The same with tensor_stats in the place of weight_stats."""
    return _mean_place(b, [method(b) for method in (tensor_stats, norm_weights, svd_spectrum, full_weights)])


def _mean_place(b: Blocks, chains: list[list[int]]) -> list[int]:
    places = np.mean([np.argsort(chain) for chain in chains], axis=0)
    return [int(i) for i in np.lexsort((b.total_norm, places))]


def causal_pairwise(b: Blocks) -> list[int]:
    """i then j against j then i on random input: the order whose output spreads less wins; sorted by wins,
    and turned as a path is."""
    wins = np.zeros(len(b))
    probes = [b.probe(number, CAUSAL_SCALE) for number in range(CAUSAL_PROBES)]
    first = [[b.run(i, x) for x in probes] for i in range(len(b))]

    def spread(index: int, streams: list[Tensor]) -> float:
        return float(torch.cat([b.run(index, stream) for stream in streams]).double().std())

    for i in range(len(b)):
        for j in range(i + 1, len(b)):
            wins[i if spread(j, first[i]) <= spread(i, first[j]) else j] += 1
    return oriented([int(i) for i in np.lexsort((b.total_norm, -wins))], b.total_norm)


def activation_flow(b: Blocks) -> list[int]:
    """Mean and spread, channel by channel, of what a block adds to four random probes; Euclidean; shortest
    path."""
    rows = []
    for index in range(len(b)):
        parts = []
        for number, scale in enumerate(SCALES):
            x = b.probe(number, scale)
            update_TD = (b.run(index, x) - x)[0].double()
            parts += [update_TD.mean(0), update_TD.std(0, correction=0)]
        rows.append(torch.cat(parts).cpu().numpy())
    return oriented(shortest_path(euclidean(np.array(rows))), b.total_norm)


WITHOUT_TEXT: dict[str, Callable[[Blocks], list[int]]] = {
    method.__name__: method
    for method in (
        weight_stats, tensor_stats, norm_weights, svd_spectrum, full_weights, greedy_cosine,
        fiedler, tensor_fiedler, ensemble_rank, tensor_ensemble, causal_pairwise, activation_flow,
    )
}  # fmt: skip
