"""Put things in a row by how far they are from each other. Plain arrays; nothing here knows of models.

Shapes: n things, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr


def euclidean(features_nF: np.ndarray) -> np.ndarray:
    """Distance of every two rows, (n, n)."""
    difference = features_nF[:, None] - features_nF[None]
    return np.sqrt((difference**2).sum(-1))


def shortest_path(distance_nn: np.ndarray) -> list[int]:
    """The shortest open path found: nearest neighbour from every start, each improved by 2-opt."""
    paths = [two_opt(nearest_neighbour(distance_nn, start), distance_nn) for start in range(len(distance_nn))]
    return min(paths, key=lambda path: path_length(path, distance_nn))


def nearest_neighbour(distance_nn: np.ndarray, start: int) -> list[int]:
    """From a start always on to the nearest thing that is left."""
    path, left = [start], set(range(len(distance_nn))) - {start}
    while left:
        path.append(min(left, key=lambda k: distance_nn[path[-1], k]))
        left.remove(path[-1])
    return path


def two_opt(path: list[int], distance_nn: np.ndarray) -> list[int]:
    """Turn stretches of a path round as long as that makes it shorter."""
    best = path_length(path, distance_nn)
    improved = True
    while improved:
        improved = False
        for i in range(len(path) - 1):
            for j in range(i + 1, len(path)):
                turned = path[:i] + path[i : j + 1][::-1] + path[j + 1 :]
                length = path_length(turned, distance_nn)
                if length < best - 1e-12:
                    path, best, improved = turned, length, True
    return path


def path_length(path: list[int], distance_nn: np.ndarray) -> float:
    """Sum of the distances along a path."""
    return float(distance_nn[path[:-1], path[1:]].sum())


def fiedler_order(distance_nn: np.ndarray) -> list[int]:
    """Order by the second eigenvector of the Laplacian of a Gaussian kernel as wide as the median
    distance."""
    apart = distance_nn[np.triu_indices(len(distance_nn), 1)]
    if not (apart > 0).any():
        return list(range(len(distance_nn)))
    width = np.median(apart[apart > 0])
    near = np.exp(-((distance_nn / width) ** 2) / 2)
    np.fill_diagonal(near, 0.0)
    _, vectors = np.linalg.eigh(np.diag(near.sum(1)) - near)
    return [int(i) for i in np.argsort(vectors[:, 1], kind="stable")]


def oriented(path: list[int], weight_n: np.ndarray) -> list[int]:
    """The path in the direction in which the weight grows: sign of Spearman's correlation of place and
    weight."""
    along = weight_n[path]
    if np.ptp(along) == 0:
        return path
    found: Any = spearmanr(np.arange(len(path)), along)
    return path[::-1] if found.statistic < 0 else path


def scores(recovered: list[int]) -> dict[str, float]:
    """How near a recovered order, written in true places, is to 0, 1, 2, ...: tau, share in place, mean
    displacement."""
    order, places = np.array(recovered), np.arange(len(recovered))
    found: Any = kendalltau(places, order)
    return {
        "tau": float(found.statistic),
        "in_place": float((order == places).mean()),
        "displacement": float(np.abs(np.argsort(order) - places).mean()),
    }
