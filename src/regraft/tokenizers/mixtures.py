"""New rows as mixtures of old rows: one set of weights for the embedding, the output matrix and its biases.

Shapes: N new tokens, V old tokens, D width, P pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Weights (N, V) of old rows for each new token, and how much of the mean of all old rows each takes
    besides."""

    weights_NV: sp.csr_matrix
    mean_N: np.ndarray

    def rows(self, table_VX: Tensor, mean_X: Tensor) -> Tensor:
        """The new rows of one table, in its dtype; computed in double precision."""
        mixed_NX = torch.from_numpy(self.weights_NV @ table_VX.detach().double().cpu().numpy())
        mixed_NX += torch.from_numpy(self.mean_N)[:, None] * mean_X.detach().double().cpu()
        return mixed_NX.to(table_VX)


def mixture(parts: Sequence[Sequence[int]], weights: Sequence[np.ndarray], count: int) -> Mixture:
    """Weights for each token from lists of old ids; a token without any takes the mean row."""
    lengths = np.array([len(ids) for ids in parts], np.int64)
    ends = np.concatenate([[0], lengths.cumsum()])
    columns = np.fromiter((i for ids in parts for i in ids), np.int64, int(lengths.sum()))
    values = np.concatenate([np.zeros(0), *weights]) if len(weights) else np.zeros(0)
    found = sp.csr_matrix((values, columns, ends), shape=(len(parts), count))
    found.sum_duplicates()
    return Mixture(found, (lengths == 0).astype(float))


def blended(one: Mixture, other: Mixture, share: float) -> Mixture:
    """`1 - share` of one and `share` of another; where the other has nothing but the mean row, the one alone,
    and so on."""
    shares_N = np.full(len(one.mean_N), share)
    shares_N[other.mean_N > 0] = 0.0
    shares_N[(one.mean_N > 0) & (other.mean_N == 0)] = 1.0
    weights = sp.diags(1 - shares_N) @ one.weights_NV + sp.diags(shares_N) @ other.weights_NV
    return Mixture(sp.csr_matrix(weights), (1 - shares_N) * one.mean_N + shares_N * other.mean_N)


def softmax(values: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Shares that grow with the exponential of values over the temperature."""
    raised = np.exp((values - values.max()) / temperature)
    return raised / raised.sum()


def sparsemax(values_NK: np.ndarray) -> np.ndarray:
    """The point of the simplex nearest to each row ("From Softmax to Sparsemax", Martins and Astudillo,
    2016)."""
    sorted_NK = -np.sort(-values_NK, axis=1)
    sums_NK = sorted_NK.cumsum(1) - 1
    ranks_K = np.arange(1, values_NK.shape[1] + 1)
    kept_N = (sorted_NK * ranks_K > sums_NK).sum(1)
    level_N = sums_NK[np.arange(len(kept_N)), kept_N - 1] / kept_N
    return np.maximum(values_NK - level_N[:, None], 0)
