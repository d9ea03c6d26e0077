"""One stage where ours and the official tensor part, and the marks that several traps leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from regraft.reference.stage_compare import MASKED

CLOSE = 1e-3
"""Relative difference up to which a mark is taken as found: far above rounding, far below every known
trap."""


ROUNDING = 1e-5
"""Differences up to here are no trap."""


@dataclass(frozen=True)
class StageCase:
    """One stage that parted: both tensors in float64, the official stages before it, and the checkpoint's
    tensors."""

    stage: str
    ours: Tensor
    official: Tensor
    before: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    heads: int

    @property
    def allowed(self) -> Tensor:
        """Where no mask rules a score out: the same places on both sides, or `mask` has spoken before."""
        return self.official > MASKED

    def neighbour(self, kind: str) -> Tensor | None:
        """The official tensor of the same block's other stage, for example q beside scores."""
        found = self.before.get(self.stage[: len(self.stage) - len(self.kind)] + kind)
        return None if found is None else found.double()

    @property
    def kind(self) -> str:
        """The stage's name without its block."""
        return self.stage.rpartition(".")[2].removeprefix("cross_")

    @property
    def final(self) -> Tensor | None:
        """What the head is given: the last stage before the logits."""
        return list(self.before.values())[-1] if self.kind == "logits" and self.before else None


def constant_ratio(case: StageCase) -> str:
    """One factor everywhere."""
    real = case.allowed
    ratio = constant(case.official[real], case.ours[real])
    if ratio is None or abs(ratio - 1) < 5 * CLOSE:
        return ""
    return f"the official values are {ratio:.6g} times these everywhere{_named(ratio, case)}"


def constant(a: Tensor, b: Tensor) -> float | None:
    """The one number r with a = r b, or None."""
    size = float((b * b).sum())
    if size == 0:
        return None
    ratio = float((a * b).sum()) / size
    return ratio if float((a - ratio * b).abs().max()) <= CLOSE * max(float(a.abs().max()), 1e-30) else None


def _named(ratio: float, case: StageCase) -> str:
    width, found = case.official.shape[-1], []
    q = case.neighbour("q")
    sizes = {"the width": width}
    if q is not None:
        sizes = {"a head's width": q.shape[-1] // case.heads, **sizes}
    if case.final is not None:
        sizes = {"the model's width": case.final.shape[-1], **sizes}
    if case.kind == "scores" and q is None and case.neighbour("qkv") is not None:
        sizes = {"a head's width": case.neighbour("qkv").shape[-1] // 3 // case.heads}  # type: ignore[union-attr]
    for what, size in sizes.items():
        for power, words in ((0.5, "√"), (-0.5, "1/√"), (1.0, ""), (-1.0, "1/")):
            if abs(ratio / size**power - 1) < CLOSE:
                found.append(f"{words}{size}, {'the root of ' if '√' in words else ''}{what}")
    sentence = f" = {found[0]}" if found else ""
    if case.kind in ("logits", "scaled"):
        return f"{sentence}: a tied head that scales the stream before it, or does not"
    if case.kind == "scores":
        return f"{sentence}: the division of the scores by the root of a head's width"
    return f"{sentence}: a scale is missing or applied twice"


def same_vector(case: StageCase) -> str:
    """One vector more or less at every position: a bias or a row of a table."""
    difference = case.official - case.ours
    flat = difference.reshape(-1, difference.shape[-1])
    vector = flat.mean(0)
    if float((flat - vector).abs().max()) > CLOSE * float(vector.abs().max()) or len(flat) < 2:
        return ""
    name = _in_checkpoint(vector, case.weights) or _in_checkpoint(-vector, case.weights)
    what = (
        f"{name}{' (the type of the tokens, added to every one)' if 'type' in name else ''}"
        if name
        else "a vector that the checkpoint does not hold"
    )
    return f"the two differ by one and the same vector at every position: {what} is missing or twice there"


def _in_checkpoint(vector: Tensor, weights: Mapping[str, Tensor]) -> str:
    """The name of the checkpoint's vector, or row of a small table, that is this one."""
    for name, tensor in weights.items():
        if tensor.shape[-1:] != vector.shape or tensor.dim() > 2 or tensor.numel() > 64 * vector.numel():
            continue
        for number, row in enumerate(tensor.double().reshape(-1, vector.shape[0])):
            if float((row - vector).abs().max()) <= CLOSE * float(vector.abs().max()):
                return name if tensor.dim() == 1 else f"row {number} of {name}"
    return ""


def near(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return a.shape == b.shape and float((a - b).abs().max()) <= CLOSE * max(float(b.abs().max()), 1e-30)
