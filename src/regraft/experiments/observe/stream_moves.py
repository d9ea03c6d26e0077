"""How the stream moves from depth to depth: what each block adds, where it points, what of it is left at the
end.

Sums over tokens are taken in float64 as the states come, so that no state need be kept. Shapes: S depths, L
blocks, n tokens of one recording, D width, C categories, g a distance in blocks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from regraft.core.quantities import quantity

DISTANCES = (1, 2, 4, 8, 16)
"""Distances in blocks over which the stream's drift is followed."""
PUBLISHED = "residual-geometry study of Qwen3-4B (hivaze/dl-experiments)"
END = "depth L, before the final norm"


class StreamMoves:
    """Running sums over tokens; `finished` turns them into means."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.smallest: Tensor | None = None
        self.largest: Tensor | None = None

    def add(self, states: list[Tensor], labels_n: Tensor, categories: int) -> None:
        """Take in the states (n, D) of some tokens at every depth, and the number of each token's
        category."""
        wide = [h.double() for h in states]
        self.count += len(states[0])
        norms_Sn = torch.stack([h.norm(dim=1) for h in wide])
        least, most = norms_Sn.amin(1).cpu(), norms_Sn.amax(1).cpu()
        self.smallest = least if self.smallest is None else torch.minimum(self.smallest, least)
        self.largest = most if self.largest is None else torch.maximum(self.largest, most)
        found = {
            "norm": norms_Sn.sum(1),
            "norm_squared": norms_Sn.square().sum(1),
            "to_embedding": torch.stack([cosine_similarity(h, wide[0], dim=1).sum() for h in wide]),
            "units": torch.stack(
                [_grouped(h, n, labels_n, categories) for h, n in zip(wide, norms_Sn, strict=True)]
            ),
            "drift": _drift(wide),
            **_of_updates(wide, norms_Sn),
        }  # fmt: skip
        for name, value in found.items():
            self.sums[name] = value.cpu() if name not in self.sums else self.sums[name] + value.cpu()

    def mean(self, name: str) -> np.ndarray:
        """The mean over tokens of one of the sums."""
        return (self.sums[name] / self.count).numpy()


def _grouped(h_nD: Tensor, norm_n: Tensor, labels_n: Tensor, categories: int) -> Tensor:
    """Sum of the unit vectors of each category's tokens, (C, D)."""
    unit_nD = h_nD / norm_n.clamp_min(torch.finfo(h_nD.dtype).tiny)[:, None]
    into = torch.zeros(categories, h_nD.shape[1], dtype=h_nD.dtype, device=h_nD.device)
    return into.index_add_(0, labels_n, unit_nD)


def _drift(states: list[Tensor]) -> Tensor:
    """Sum of cos(h_l, h_(l-g)) at every depth l for every distance g, (S, g); NaN where l - g is before depth
    1: the embedding itself is no state of the stream that blocks made."""
    rows = []
    for depth, here in enumerate(states):
        rows.append(
            torch.stack(
                [
                    cosine_similarity(here, states[depth - g], dim=1).sum()
                    if depth - g >= 1
                    else here.new_tensor(float("nan"))
                    for g in DISTANCES
                ]
            )
        )
    return torch.stack(rows)


def _of_updates(states: list[Tensor], norms_Sn: Tensor) -> dict[str, Tensor]:
    """Sums of what is measured on each block's update u_l = h_(l+1) - h_l."""
    last, length_n = states[-1], norms_Sn[-1]
    found: dict[str, list[Tensor]] = {
        name: []
        for name in (
            "size", "leaving", "preserved", "onto", "onto_squared", "onto_abs", "cosine_abs", "share", "mean",
        )
    }  # fmt: skip
    start = [(states[0], None, None), *((b - a, a, b) for a, b in pairwise(states))]
    for block, (move, before, after) in enumerate(start):
        inner_n = (move * last).sum(1)
        onto_n = inner_n / length_n
        found["share"].append((onto_n / length_n).sum())
        found["onto"].append(onto_n.sum())
        found["onto_squared"].append(onto_n.square().sum())
        if before is None or after is None:
            continue
        size_n = move.norm(dim=1)
        found["size"].append(size_n.sum())
        found["leaving"].append((size_n / norms_Sn[block]).sum())
        found["preserved"].append(cosine_similarity(after, before, dim=1).sum())
        found["onto_abs"].append(onto_n.abs().sum())
        found["cosine_abs"].append(cosine_similarity(move, last, dim=1).abs().sum())
        found["mean"].append(move.sum(0))
    return {f"update_{name}": torch.stack(values) for name, values in found.items()}


def move_quantities(moves: StreamMoves) -> dict[str, Any]:
    """Norms, persistence, drift, and what each block adds, as variables of a result."""
    return {**_by_depth(moves), **_by_block(moves), **_decomposition(moves)}


def _spread(mean: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(mean_square - mean**2, 0.0))


def _by_depth(moves: StreamMoves) -> dict[str, Any]:
    assert moves.smallest is not None
    assert moves.largest is not None
    length = "length of the stream"
    wide = "A spread as large as the mean: a few tokens (often the first) carry far longer states."
    ends = "The longest state against the mean shows the few tokens that dominate sums over tokens."
    return {
        "norm_std": quantity(
            "depth", _spread(moves.mean("norm"), moves.mean("norm_squared")),
            f"{length}, standard deviation over tokens", wide, PUBLISHED,
        ),
        "norm_min": quantity("depth", moves.smallest.numpy(), f"{length}, shortest token", ends, PUBLISHED),
        "norm_max": quantity("depth", moves.largest.numpy(), f"{length}, longest token", ends, PUBLISHED),
        "embedding_persistence": quantity(
            "depth", moves.mean("to_embedding"), "mean cosine with the token's own embedding",
            "Near 0 the state no longer points where the token's embedding did.", PUBLISHED,
        ),
        "drift": quantity(
            ("depth", "gap"), moves.mean("drift"), "mean cosine with the state so many blocks before",
            "A line that falls at some depth marks blocks that turn the stream; 1 is no turn.", PUBLISHED,
        ),
    }  # fmt: skip


def _by_block(moves: StreamMoves) -> dict[str, Any]:
    mean_LD = moves.mean("update_mean")
    unit_LD = mean_LD / np.maximum(np.linalg.norm(mean_LD, axis=1, keepdims=True), np.finfo(float).tiny)
    return {
        "update_norm": quantity(
            "block", moves.mean("update_size"), "mean length of the update",
            "Lengths grow with the stream's: compare with the norm before calling a block strong.", PUBLISHED,
            correlate="update norm",
        ),
        "update_share_leaving": quantity(
            "block", moves.mean("update_leaving"), "length of the update / length of the stream that leaves",
            "Above 1 the block replaces more than it keeps; the update size divides by what enters.",
            PUBLISHED,
            correlate="share of what leaves",
        ),
        "direction_preserved": quantity(
            "block", moves.mean("update_preserved"), "mean cosine of the stream behind and before the block",
            "1: the block leaves the direction alone; 0: it turns the stream by a right angle.", PUBLISHED,
            correlate="direction preserved",
        ),
        "update_final_abs": quantity(
            "block",
            moves.mean("update_onto_abs"),
            f"mean size of the update's part along the state at {END}",
            "How much of a block's update lies along the end, whichever way it points.", PUBLISHED,
            correlate="along the end",
        ),
        "update_final_cosine_abs": quantity(
            "block",
            moves.mean("update_cosine_abs"),
            f"mean size of the update's cosine with the state at {END}",
            "The same without the update's length.", PUBLISHED,
            correlate="cosine with the end",
        ),
        "update_correlation": quantity(
            ("block", "other_block"), unit_LD @ unit_LD.T, "cosine of the blocks' mean updates",
            "A square of one colour is a run of blocks that push all tokens the same way; below 0 one undoes"
            " the other.", PUBLISHED,
        ),
    }  # fmt: skip


def _decomposition(moves: StreamMoves) -> dict[str, Any]:
    onto = moves.mean("update_onto")
    along = f"part along the state at {END}"
    return {
        "residual_share": quantity(
            "contributor", moves.mean("update_share"), f"share of the length of the state at {END}",
            "All shares add up to 1: embedding and blocks make the last state together; a negative one works"
            " against it.", PUBLISHED,
        ),
        "residual_projection": quantity(
            "contributor", onto, f"{along}, mean over tokens",
            "The same in the units of the stream.", PUBLISHED,
        ),
        "residual_projection_std": quantity(
            "contributor", _spread(onto, moves.mean("update_onto_squared")),
            f"{along}, standard deviation over tokens",
            "A spread above the mean: the block writes along the end for some tokens only.", PUBLISHED,
        ),
    }  # fmt: skip


def category_quantities(
    moves: StreamMoves, counts_C: np.ndarray, group_mean_CD: np.ndarray
) -> dict[str, Any]:
    """Cosines within and between categories of prompts, and of their centroids at the last depth.

    The mean over *all* pairs of different tokens, from the sums of unit vectors: what a sample of pairs
    estimates.
    """
    units_SCD = moves.sums["units"].numpy()
    inner_SCC = units_SCD @ units_SCD.transpose(0, 2, 1)
    pairs_C = counts_C * (counts_C - 1)
    within_SC = (np.diagonal(inner_SCC, axis1=1, axis2=2) - counts_C) / np.where(pairs_C > 0, pairs_C, np.nan)
    one, other = np.triu_indices(len(counts_C), 1)
    between = inner_SCC[:, one, other] / (counts_C[one] * counts_C[other])
    intra = _mean_of_known(within_SC)
    inter = _mean_of_known(between)
    apart = "Within above between: tokens of one category of prompts point in a direction of their own."
    size = np.maximum(np.linalg.norm(group_mean_CD, axis=1, keepdims=True), np.finfo(float).tiny)
    unit_CD = group_mean_CD / size
    cosine = "mean cosine of two tokens"
    return {
        "category_intra": quantity("depth", intra, f"{cosine} of one category", apart, PUBLISHED),
        "category_inter": quantity("depth", inter, f"{cosine} of two categories", apart, PUBLISHED),
        "category_separation": quantity(
            "depth", (intra - inter) / (np.abs(inter) + 1e-10), "(within - between) / |between|",
            "It is large where the cosine between categories is near 0, whatever the categories do: read it"
            " beside the two cosines.", PUBLISHED,
        ),
        "centroid_cosine": quantity(
            ("category", "other_category"), unit_CD @ unit_CD.T, f"cosine of the categories' means at {END}",
            "Near 1 off the diagonal: two kinds of prompt end in the same direction.", PUBLISHED,
        ),
    }  # fmt: skip


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without what is not defined; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(-1)
    return np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
