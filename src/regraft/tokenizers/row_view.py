"""Old and new rows of the embedding in two dimensions, and how long they are.

Shapes: V tokens, D width, S tokens that are shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from regraft.core.quantities import quantity
from regraft.tokenizers.comparison import shown
from regraft.tokenizers.transplantation import Transplant

EACH = 600
"""Tokens of each kind that are shown: more points cover each other, and every one weighs on the page."""
FITTED, TINY = 20_000, 1e-30
"""Old rows that the axes are fitted on; a variance that divides nothing by zero."""
SOURCE = "principal components of the embedding, as usual of embedding studies"
OLD, NEW = "taken over", "estimated"


def row_view(done: Transplant) -> dict[str, Any]:
    """Rows that were taken over and rows that were estimated, on the two directions in which the old table
    varies most.

    Nothing where no row is estimated. Both kinds are evenly spaced samples by id where there are more than
    600 of one.
    """
    taken = np.flatnonzero(done.matching.source_V >= 0)
    text_V = np.array([kind == "text" for kind in done.new.table.kind_V])
    groups = {OLD: taken[text_V[taken]], NEW: np.asarray(done.matching.missing)}
    if not len(groups[NEW]):
        return {}
    old_VD = done.model.parts.embedding.weight.detach().float().cpu()
    mean_D, axes_D2, share_2 = main_axes(old_VD[torch.from_numpy(spread(np.arange(len(old_VD)), FITTED))])
    table_VD = done.tables.embedding_VD.detach().float().cpu()
    shown_S = np.concatenate([spread(ids, EACH) for ids in groups.values()])
    kinds = [kind for kind, ids in groups.items() for _ in range(min(EACH, len(ids)))]
    places_S2 = (table_VD[torch.from_numpy(shown_S)] - mean_D) @ axes_D2
    sizes = [_middle(table_VD[torch.from_numpy(ids)]) for ids in groups.values()]
    tokens = [shown(done.new.table.bytes_V[int(i)]) for i in shown_S]
    return {
        "view": quantity(
            ("shown", "axis"), places_S2.numpy(), "numbers of the table, from the mean of the old rows",
            "New rows that lie together near the middle are means of many: they tell little of their"
            " tokens.", SOURCE,
        ),
        "view_kind": ("shown", kinds, {"units": "how the row came about"}),
        "view_token": ("shown", tokens, {"units": "token"}),
        "view_share": quantity(
            "axis", share_2.numpy(), "share of the old rows' variance along the axis",
            "Where the two shares are small, most of what tells rows apart is not in the picture.", SOURCE,
        ),
        "row_norm": quantity(
            "row_kind", sizes, "median length of a row of the embedding",
            "Means of rows that point apart are shorter than the rows: estimated ones are, by so much.",
            SOURCE,
        ),
    }  # fmt: skip


def spread(ids: np.ndarray, most: int) -> np.ndarray:
    """At most so many ids, evenly spaced."""
    if len(ids) <= most:
        return ids
    return ids[np.linspace(0, len(ids) - 1, most).astype(np.int64)]


def _middle(rows_ND: Tensor) -> float:
    return float(rows_ND.norm(dim=1).median()) if len(rows_ND) else float("nan")


def main_axes(rows_VD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean (D), the first two principal directions (D, 2) and their shares of the variance (2); of each
    direction the largest component is positive."""
    mean_D = rows_VD.mean(0)
    centred_VD = (rows_VD - mean_D).double().numpy()
    covariance_DD = centred_VD.T @ centred_VD
    # The first guess is fixed: by itself the solver draws one.
    values_2, axes_D2 = eigsh(covariance_DD, k=2, v0=np.ones(len(covariance_DD)))
    order = np.argsort(-values_2)
    axes_D2 = axes_D2[:, order]
    axes_D2 *= np.sign(axes_D2[np.abs(axes_D2).argmax(0), [0, 1]])
    shares_2 = values_2[order] / max(np.trace(covariance_DD), TINY)
    return mean_D, torch.from_numpy(axes_D2.copy()).float(), torch.from_numpy(shares_2).float()
