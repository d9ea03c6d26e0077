"""Marks of a norm that is missing or has another epsilon."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.reference.stage_case import StageCase, constant_ratio, same_vector

UNIT = 0.01
"""How far a mean square may be from 1 behind a norm: an epsilon makes it a little smaller."""

DRIFT = 1e-12, 100
"""Relative changes of a row's length that another epsilon makes: above the rounding of float64; a row of
nearly no variance may grow a hundredfold."""

ASIDE = 0.02
"""Share of the difference that may lie beside a row's direction."""


def not_normed(case: StageCase) -> str:
    """Rows that a norm has passed officially and not here."""
    if "norm" not in case.stage and not case.kind.startswith("resid"):
        return ""
    vectors = {name: t.double() for name, t in case.weights.items() if t.shape == case.ours.shape[-1:]}
    for name, weight in vectors.items():
        stem, _, last = name.rpartition(".")
        if last != "weight":
            continue
        shift = vectors.get(f"{stem}.bias", torch.zeros_like(weight))
        if _is_normed((case.official - shift) / weight) and not _is_normed((case.ours - shift) / weight):
            return (
                f"every row comes out of the norm {stem} officially, and not here: the norm stands elsewhere,"
                " or is left out"
            )
    return ""


def _is_normed(rows: Tensor) -> bool:
    """Whether every row's mean square is 1 but for an epsilon."""
    return bool(rows.isfinite().all()) and float((rows.pow(2).mean(-1) - 1).abs().max()) < UNIT


def epsilon(case: StageCase) -> str:
    """A norm whose rows have the official direction and a length that is a little off: another epsilon."""
    if (
        ("norm" not in case.stage and not case.kind.startswith("resid"))
        or constant_ratio(case)
        or same_vector(case)
    ):
        return ""
    for bias in [
        None,
        *(t for n, t in case.weights.items() if t.shape == case.ours.shape[-1:] and n.endswith("bias")),
    ]:
        a, b = case.ours, case.official
        if bias is not None:
            a, b = a - bias.double(), b - bias.double()
        ratio = ((a * b).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True)).nan_to_num(nan=1.0)
        drift = float((ratio - 1).abs().max())
        rest = float((b - ratio * a).abs().max())
        if DRIFT[0] < drift < DRIFT[1] and rest <= ASIDE * float((b - a).abs().max()):
            return (
                f"every row has the official direction and another length, by up to {drift:.1e} of it: the"
                " epsilon of a norm differs (the smaller a row's variance, the larger the drift)"
            )
    return ""
