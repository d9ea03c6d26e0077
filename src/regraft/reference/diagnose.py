"""What usually makes a stage part: known traps and the marks that each leaves in the difference of two
tensors.

A trap is named only where its mark is found in the numbers: a ratio that is one number everywhere, a
difference that is a row of the checkpoint, a tensor that belongs to another stage. Shapes: any; the last axis
is the width D or the keys P.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from regraft.reference.diagnose_norms import epsilon, not_normed
from regraft.reference.stage_case import (
    CLOSE,
    ROUNDING,
    StageCase,
    constant,
    constant_ratio,
    near,
    same_vector,
)
from regraft.reference.stage_compare import MASKED, unmasked

Trap = Callable[[StageCase], str]


DROPPED = 0.005, 0.95
"""Shares of values that a dropout may set to 0: one that drops less or more is not used."""


def causes(
    stage: str,
    ours: Tensor,
    official: Tensor,
    before: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    heads: int,
):
    """What usually causes such a difference, by the most telling mark; a sentence that says so where nothing
    is known."""
    if ours.dim() == official.dim() and ours.shape[0] == 1:
        ours = ours.expand(official.shape[0], *ours.shape[1:])
    if ours.shape != official.shape:
        return [_shapes(ours, official)]
    case = StageCase(stage, unmasked(ours), unmasked(official), before, weights, heads)
    found = next((sentence for trap in TRAPS if (sentence := trap(case))), "")
    return [
        found
        or "no known trap leaves such a mark: compare the code of this stage line by line, at its input first"
    ]


def _shapes(ours: Tensor, official: Tensor) -> str:
    turned = ours.dim() >= 2 and ours.transpose(-1, -2).shape == official.shape
    hint = ": the last two axes are exchanged (a matrix kept inputs first?)" if turned else ""
    return f"the shapes differ, {tuple(ours.shape)} here and {tuple(official.shape)} officially{hint}"


def not_a_number(case: StageCase) -> str:
    """NaN on one side: a row of scores that a mask rules out whole."""
    if bool(case.ours.isnan().any()) and not bool(case.official.isnan().any()):
        return (
            "NaN appears here: usually a row of scores that a mask rules out whole, or 0 divided by 0 in a"
            " norm"
        )
    return ""


def mask(case: StageCase) -> str:
    """One side rules out scores that the other allows."""
    ours, official = case.ours <= MASKED, case.official <= MASKED
    if not bool((ours ^ official).any()):
        return ""
    lacking = bool((official & ~ours).any())
    rule, other = ("the official model", "this one") if lacking else ("this one", "the official model")
    later = (official ^ ours).any(dim=0).any(dim=0) if ours.dim() == 4 else None
    causal = later is not None and not bool(later.tril().any())
    kind = (
        f"later tokens: the causal mask {'is missing' if lacking else 'has no place here'}"
        if causal
        else "tokens: a padding, window or causal mask differs"
    )
    return f"{rule} rules out scores that {other} allows, of {kind}"


def dropout(case: StageCase) -> str:
    """Zeros on one side only, and all else scaled by one number: a model left in training."""
    for one, other, where in ((case.ours, case.official, "here"), (case.official, case.ours, "officially")):
        gone = (one == 0) & (other != 0)
        share = float(gone.double().mean())
        kept = one != 0
        if DROPPED[0] < share < DROPPED[1] and bool(kept.any()):
            ratio = constant(one[kept], other[kept])
            if ratio is not None and ratio > 1 + CLOSE:
                return (
                    f"{share:.0%} of the values are 0 {where} and the rest {ratio:.3f} times as large:"
                    f" dropout is on (p = {1 - 1 / ratio:.2f}); the model is in train mode, not eval"
                )
    return ""


def score_scale(case: StageCase) -> str:
    """Scores with a bias: only their q·k part differs, by a factor."""
    q, k = case.neighbour("q"), case.neighbour("k")
    if case.kind != "scores" or q is None or k is None:
        return ""
    if q.shape[-1] != k.shape[-1]:
        return ""
    q_BHQK, k_BHPK = (x.unflatten(-1, (case.heads, -1)).transpose(1, 2) for x in (q, k))
    raw = q_BHQK @ k_BHPK.transpose(2, 3)
    real = case.allowed
    part = constant((case.official - case.ours)[real], raw[real])
    width = q_BHQK.shape[-1]
    if part is None or abs(part) < ROUNDING:
        return ""
    if abs(part - (1 - width**-0.5)) < CLOSE:
        return (
            f"q·k is divided by √{width} here and not officially: this architecture adds its bias to"
            " undivided scores"
        )
    if abs(part + (1 - width**-0.5)) < CLOSE:
        return f"q·k is divided by √{width} officially and not here"
    return f"the q·k part of the scores differs by {part:.4g} times itself: another scale of the scores"


def relative_bias(case: StageCase) -> str:
    """Scores that differ by what depends on head and distance alone."""
    if (
        case.kind != "scores"
        or case.ours.dim() != 4
        or case.ours.shape[2] != case.ours.shape[3]
        or case.ours.shape[2] < 3
    ):
        return ""
    real = case.allowed
    difference_BHQQ = torch.where(real, case.official - case.ours, torch.nan)
    length = difference_BHQQ.shape[-1]
    diagonals = [difference_BHQQ.diagonal(offset, dim1=2, dim2=3) for offset in range(1 - length, length)]
    varied = [d - d.nanmean(dim=(0, 2), keepdim=True) for d in diagonals if not bool(d.isnan().all())]
    spread = max(float(v.nan_to_num().abs().max()) for v in varied)
    largest = float(difference_BHQQ.nan_to_num().abs().max())
    if largest == 0 or spread > CLOSE * largest:
        return ""
    return (
        "the scores differ by what depends on head and distance alone: the relative bias, which only the"
        " first block holds and all blocks of its stack share, is missing or added twice"
    )


def positions(case: StageCase) -> str:
    """Sinusoids for learned positions, or positions that start at another number."""
    if "position" not in case.stage:
        return ""
    for name, table in _sinusoids(*case.ours.shape[1:]).items():
        if near(case.ours[0], table):
            return (
                f"these are sinusoids ({name}); this model's positions are learned, a table in the checkpoint"
            )
    for ours, official in zip(case.ours, case.official, strict=True):
        for shift in (1, 2, -1, -2):
            a, b = (ours[shift:], official[:-shift]) if shift > 0 else (ours[:shift], official[-shift:])
            if len(a) and near(a, b):
                return (
                    f"the positions start {abs(shift)} too {'high' if shift < 0 else 'low'}: shifted along"
                    " the table"
                )
    return ""


def _sinusoids(length: int, width: int) -> dict[str, Tensor]:
    speed = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
    woven = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]
    return {
        "sine and cosine in turn": woven,
        "sines, then cosines": torch.cat([angle.sin(), angle.cos()], 1)[:, :width],
    }


def other_stage(case: StageCase) -> str:
    """These are the official numbers of another stage: something was left out, or put in another place."""
    for name, tensor in case.before.items():
        if name != case.stage and near(case.ours, tensor.double()):
            placed = "norm" in case.kind or "norm" in name or case.kind.startswith("resid")
            why = (
                "a norm stands in another place, or it or an addition to the stream is left out"
                if placed
                else "a step between the two is left out"
            )
            return f"these are the official numbers of {name}: {why}"
    return ""


def other_head(case: StageCase) -> str:
    """Logits from another matrix of the checkpoint."""
    final = case.final
    if final is None:
        return ""
    shape = (case.ours.shape[-1], final.shape[-1])
    for name, matrix in case.weights.items():
        logits = final.double() @ matrix.double().T if tuple(matrix.shape) == shape else None
        if logits is not None and near(case.ours, logits) and not near(case.official, logits):
            return (
                f"these logits come from {name}: this model's head is not tied to it, it has a matrix of"
                " its own"
            )
    return ""


def activation(case: StageCase) -> str:
    """Which activation each side applied."""
    inner = case.neighbour("mlp_in") if case.neighbour("mlp_in") is not None else case.neighbour("mlp_gate")
    up = case.neighbour("mlp_up")
    if case.kind != "mlp_act" or inner is None:
        return ""
    known = {name: function(inner) * (1 if up is None else up) for name, function in ACTIVATIONS.items()}

    def called(tensor: Tensor) -> str:
        best = min(known, key=lambda name: float((known[name] - tensor).abs().max()))
        return (
            best
            if float((known[best] - tensor).abs().max()) < 1e-5 * max(1.0, float(tensor.abs().max()))
            else ""
        )

    mine, theirs = called(case.ours), called(case.official)
    return (
        f"the activation is {mine} here and {theirs} officially" if mine and theirs and mine != theirs else ""
    )


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU (exact)": torch.nn.functional.gelu,
    "GELU (tanh approximation)": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "SiLU": torch.nn.functional.silu,
    "ReLU": torch.relu,
}


def rotation(case: StageCase) -> str:
    """Rotated queries and keys whose coordinates were paired in another way, seen in the scores."""
    cos, sin = case.before.get("rope.cos"), case.before.get("rope.sin")
    parts = [
        case.neighbour(f"{n}_norm") if case.neighbour(f"{n}_norm") is not None else case.neighbour(n)
        for n in "qk"
    ]
    if case.kind != "scores" or cos is None or sin is None or any(part is None for part in parts):
        return ""
    width = cos.shape[-1]
    cos_TK, sin_TK = cos[0].double(), sin[0].double()
    heads = [
        (p if p.dim() == 4 else p.unflatten(-1, (-1, width))).transpose(1, 2) for p in parts if p is not None
    ]
    speeds = torch.arange(width // 2).repeat_interleave(2)

    def woven(x: Tensor) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        return x * cos_TK[:, speeds] + torch.stack([-odd, even], -1).flatten(-2) * sin_TK[:, speeds]

    real = case.allowed
    for name, turn in (("neighbours are paired (interleaved)", woven), ("nothing is rotated", lambda x: x)):
        q, k = turn(heads[0]), turn(heads[1]).repeat_interleave(heads[0].shape[1] // heads[1].shape[1], dim=1)
        scores = ((q @ k.transpose(2, 3)) * width**-0.5)[real]
        if near(case.ours[real], scores):
            return f"in these scores {name}; officially channel j turns against channel j + {width // 2}"
        if near(case.official[real], scores):
            return f"in the official scores {name}; here channel j turns against channel j + {width // 2}"
    return ""


def reordered(case: StageCase) -> str:
    """The same numbers in another order, to rounding, and far from where they should be."""
    real = case.allowed
    ours, official = case.ours[real], case.official[real]
    scale = float(official.abs().max())
    apart = float((ours - official).abs().max())
    sorted_apart = float((ours.sort().values - official.sort().values).abs().max())
    if apart < 0.01 * scale or sorted_apart > ROUNDING * scale:
        return ""
    return "the same numbers in another order: heads merged the wrong way, or axes exchanged before a reshape"


def rounding(case: StageCase) -> str:
    """A difference as small as float32 leaves."""
    relative = float((case.ours - case.official).abs().max()) / max(
        1.0, float(case.official[case.official > MASKED].abs().max())
    )
    if not relative < ROUNDING:
        return ""
    return (
        f"the difference is {relative:.1e} of the largest value, as rounding leaves it: --dtype float64 tells"
        " rounding from error"
    )


TRAPS: tuple[Trap, ...] = (
    not_a_number, mask, dropout, activation, positions, rotation, constant_ratio, score_scale, relative_bias,
    same_vector,
    other_head, other_stage, epsilon, not_normed, reordered, rounding,
)  # fmt: skip
