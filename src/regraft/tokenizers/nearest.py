"""The nearest vectors by cosine: exact by matrix products in blocks, or approximate by faiss where there are
many.

Shapes: N asked, V known, D width, K nearest.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regraft.core.progress import advance

Search = Literal["exact", "approximate"]
BLOCK_FLOATS = 1 << 26
"""Similarities that are held at once: 256 MiB in float32."""


def nearest(
    asked_ND: Tensor, known_VD: Tensor, count: int, search: Search = "exact"
) -> tuple[Tensor, Tensor]:
    """Cosines and places (N, K) of the nearest known vectors, nearest first.

    Raises:
        ImportError: approximate search without faiss.
    """
    asked_ND, known_VD = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (asked_ND, known_VD))
    count = min(count, len(known_VD))
    if search == "approximate":
        return _approximate(asked_ND, known_VD, count)
    rows = max(1, BLOCK_FLOATS // max(1, len(known_VD)))
    found = []
    for start in range(0, len(asked_ND), rows):
        found.append((asked_ND[start : start + rows] @ known_VD.T).topk(count, dim=-1))
        advance("nearest tokens", min(start + rows, len(asked_ND)), len(asked_ND))
    if not found:
        return torch.zeros(0, count), torch.zeros(0, count, dtype=torch.long)
    return torch.cat([values for values, _ in found]), torch.cat([places for _, places in found])


def _approximate(asked_ND: Tensor, known_VD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Inverted lists of faiss: the vectors in the 32 nearest of about four times the root of V cells are
    compared."""
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "approximate search needs faiss: pip install 'regraft[tokens]', or choose exact search"
        ) from error
    cells = max(1, min(4 * int(len(known_VD) ** 0.5), len(known_VD) // 39))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(known_VD.shape[1]), known_VD.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.train(known_VD.numpy())
    index.add(known_VD.numpy())
    index.nprobe = min(cells, 32)
    values, places = index.search(asked_ND.numpy(), count)
    return torch.from_numpy(values), torch.from_numpy(places)
