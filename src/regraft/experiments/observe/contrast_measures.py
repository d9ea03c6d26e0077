"""Beside the curves of contrastive trajectories: what stands before the first token that differs, whole
completions, and synonyms against antonyms.

Shapes: S depths, C relations, P places, G groups, n tokens of one completion, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from regraft.core.quantities import quantity
from regraft.experiments.observe.geometry import linear_cka

SUBSETS = ("all", "immediate", "shared prefix")
"""Groups that a contrast is taken over."""
DIRECTIONS = ("base to other", "other to base")
"""The two directions of the divergence."""
FEWEST_TOKENS = 2
"""Tokens under which two completions have no CKA, as published: their cosine stands in."""
MOST_CROSSINGS = 8
"""Sign changes that are kept."""
PUBLISHED = "contrastive-trajectories study of Qwen3-4B (hivaze/dl-experiments)"


def before_the_pivot(here_BTD: Tensor, pivots: Sequence[tuple[int, int]]) -> list[float]:
    """Cosine of base and each other at the last position that they share; NaN where there is none.

    A state that is equal to the bit has a cosine of exactly 1.
    """
    found = []
    for row, (base_at, other_at) in enumerate(pivots, 1):
        if min(base_at, other_at) < 1:
            found.append(float("nan"))
            continue
        base_D, other_D = here_BTD[0, base_at - 1], here_BTD[row, other_at - 1]
        same = torch.equal(base_D, other_D)
        found.append(1.0 if same else float(cosine_similarity(base_D, other_D, dim=0)))
    return found


def alternative_ranks(logits_CV: Tensor, ids_C: Sequence[int]) -> list[float]:
    """How many tokens the lens, where the two still agree, ranks above each alternative's first own token."""
    own_C1 = logits_CV.gather(1, torch.tensor(ids_C, device=logits_CV.device)[:, None])
    return (logits_CV > own_C1).sum(1).double().tolist()


def completion_cka(base_nD: Tensor, other_nD: Tensor) -> float:
    """Linear CKA over the tokens of two completions, cut to the shorter; of a single token the cosine."""
    shorter = min(len(base_nD), len(other_nD))
    base, other = base_nD[:shorter], other_nD[:shorter]
    if shorter < FEWEST_TOKENS:
        return float(cosine_similarity(base[0], other[0], dim=0))
    return float(linear_cka(torch.stack([base, other]))[0, 1])


def contrast_quantities(
    kl_CPGS: np.ndarray, reverse_CPGS: np.ndarray, kinds: Sequence[str], relations: Sequence[str]
) -> dict[str, Any]:
    """KL of synonyms less that of antonyms by depth, where its sign changes, and the 2 x 2 of relation and
    prefix, all at the pivot."""
    by_direction = np.stack([kl_CPGS[:, 0], reverse_CPGS[:, 0]])
    rows = {name: relations.index(name) for name in ("synonym", "antonym")}
    chosen = [np.array([name in ("all", kind) for kind in kinds]) for name in SUBSETS]
    contrast = np.stack(
        [
            [_mean(one[rows["synonym"], some]) - _mean(one[rows["antonym"], some]) for some in chosen]
            for one in by_direction
        ]
    )
    crossings = np.full((*contrast.shape[:2], MOST_CROSSINGS), np.nan)
    for place in np.ndindex(contrast.shape[:2]):
        behind = contrast[place].copy()
        behind[0] = (
            np.nan
        )  # the embedding's lens says nothing of the context: counted from depth 1, as published
        found = sign_changes(behind)[:MOST_CROSSINGS]
        crossings[place][: len(found)] = found
    by_prefix = np.stack([[_mean(one[some]) for some in chosen[1:]] for one in by_direction[1]])
    prefix_counts = [int(some.sum()) for some in chosen[1:]]
    nats = "nats, difference of the means over groups"
    return {
        "kl_contrast": quantity(
            ("direction", "subset", "depth"), contrast, nats,
            "Above 0 the lens parts synonyms further than antonyms: it tells words apart, not meanings.",
            PUBLISHED,
        ),
        "kl_crossings": quantity(
            ("direction", "subset", "crossing"), crossings, "depth at which the sign changes, interpolated",
            "Depths at which synonyms and antonyms change places, first to last.", PUBLISHED,
        ),
        "kl_by_prefix": quantity(
            ("relation", "prefix_kind", "depth"), by_prefix, "nats from the other's lens to the base's, mean",
            "Compare a relation with itself: what a shared prefix takes away was owed to the first word.",
            PUBLISHED,
        ),
        "groups_by_prefix": quantity(
            "prefix_kind", prefix_counts, "groups", "The number of groups behind each of the two columns.",
            PUBLISHED,
        ),
    }  # fmt: skip


def _mean(values_GS: np.ndarray) -> np.ndarray:
    """Mean over groups; NaN for none."""
    return values_GS.mean(0) if len(values_GS) else np.full(values_GS.shape[1], np.nan)


def sign_changes(curve_S: np.ndarray) -> list[float]:
    """Depths at which a curve crosses 0, interpolated; a depth at which it is 0 counts where the sign differs
    on its two sides."""
    known = [(depth, value) for depth, value in enumerate(curve_S) if np.isfinite(value) and value != 0]
    found = []
    for (at, a), (then, b) in pairwise(known):
        if (a < 0) != (b < 0):
            found.append(float(at + (then - at) * a / (a - b)))
    return found
