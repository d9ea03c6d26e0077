"""Which optimiser moves which parameter of a graft: by what the parameter is, never by its name.

Matrices of linear layers are moved by Muon (orthogonalised momentum, "Muon is Scalable for LLM Training", Liu
et al., 2025; torch's own), which fits a byte embedding to its table in a fraction of Adam's steps; tables
whose gradients are sparse by SparseAdam, which touches only the rows used; everything else by AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer, SparseAdam

MUON_OVER_ADAM = 5.0
"""Muon's rate over AdamW's, with updates scaled to AdamW's size (`match_rms_adamw`)."""


def optimisers(
    graft: nn.Module, rate: float, weight_decay: float = 0.0, matrices: str = "muon"
) -> list[Optimizer]:
    """One optimiser for each kind of parameter that the graft has; every group says its highest rate under
    `highest`.

    `matrices` is what moves the matrices of linear layers: muon or adamw.

    Raises:
        ValueError: the optimiser is not known.
    """
    if matrices not in ("muon", "adamw"):
        raise ValueError(f"the optimiser {matrices!r} is not known: choose muon or adamw")
    linear, sparse, rest = kinds(graft)
    if matrices == "adamw":
        linear, rest = [], [*linear, *rest]
    found: list[Optimizer] = []
    if linear:
        found.append(
            Muon(linear, lr=MUON_OVER_ADAM * rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    if sparse:
        found.append(SparseAdam(sparse, lr=rate))
    if rest:
        found.append(AdamW(rest, lr=rate, weight_decay=weight_decay))
    for group in groups(found):
        group["highest"] = group["lr"]
    return found


def kinds(graft: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters: matrices of linear layers, tables with sparse gradients, and all others."""
    linear = {id(m.weight) for m in graft.modules() if isinstance(m, nn.Linear)}
    sparse = {id(m.weight) for m in graft.modules() if isinstance(m, nn.Embedding) and m.sparse}
    parameters = [p for p in graft.parameters() if p.requires_grad]
    return (
        [p for p in parameters if id(p) in linear],
        [p for p in parameters if id(p) in sparse],
        [p for p in parameters if id(p) not in linear | sparse],
    )


def groups(found: Sequence[Optimizer]) -> Iterator[dict[str, Any]]:
    """The parameter groups of several optimisers."""
    for optimiser in found:
        yield from optimiser.param_groups


def set_rates(found: Sequence[Optimizer], scale: float) -> None:
    """Every group's rate, as a share of its highest."""
    for group in groups(found):
        group["lr"] = group["highest"] * scale
