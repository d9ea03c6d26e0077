"""Metrics of one's own: any function of the logits at the positions that are read.

Shapes: c logits of one chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from regraft.model.recording import Recording
from regraft.sweeps.metric_kinds import AtPosition, Clean, Metric, full, predicted_pairs


@dataclass(frozen=True)
class OwnMetric(AtPosition):
    """A function of one's own, from logits (c, V) to a number for each row."""

    function: Callable[[Tensor], Tensor] | None = None
    scored: bool = False

    def pairs(self, recording: Recording) -> tuple[Tensor, Tensor]:
        """One position of each prompt, or all that predict a scored token."""
        return predicted_pairs(recording) if self.scored else super().pairs(recording)

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        """What the function returns.

        Raises:
            ValueError: another shape than one number for each row, or one that is not finite.
        """
        assert self.function is not None
        found, rows = self.function(full(logits_cV)), len(logits_cV)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != (rows,):
            raise ValueError(
                f"the metric {self.name} returned {shape} for logits of {tuple(logits_cV.shape)}: it must"
                f" return a number for each row, ({rows},)"
            )
        assert isinstance(found, Tensor)
        if not bool(found.isfinite().all()):
            raise ValueError(f"the metric {self.name} returned a number that is not finite")
        return found


def metric(
    function: Callable[[Tensor], Tensor],
    unit: str,
    *,
    name: str = "",
    position: int | None = None,
    scored: bool = False,
    larger_is_better: bool = True,
) -> Metric:
    """A metric of one's own: any function of the logits at the positions that are read.

    Args:
        function: from logits (c, V) of some rows and positions to a number for each, (c,).
        unit: what goes with every number.
        name: by default the function's own.
        position: which position is read, by default the last.
        scored: read every position that predicts a scored token, and average over a prompt's.
        larger_is_better: which way is better.

    Returns:
        A metric for `sweep`, which answers with (variants, prompts).

    Raises:
        ValueError: no function, or both a position and all that are scored. When it is measured: it returns
            another shape, or a number that is not finite.

    Examples:
        >>> in_nats = lambda logits: -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        >>> entropy = regraft.metric(in_nats, "nats", name="entropy")
        >>> result = regraft.sweep(model.record("It is dark"), regraft.Zero("6.mlp_out"), entropy)
        >>> result.values["entropy"].shape, result.units["entropy"]
        (torch.Size([1, 1]), 'nats')
    """
    if not callable(function) or (scored and position is not None):
        what = f"a {type(function).__name__} is no function of the logits" if not callable(function) else ""
        raise ValueError(what or "read one position, or all that are scored: not both")
    told = name or getattr(function, "__name__", "").strip("<>") or type(function).__name__
    return OwnMetric(told, unit, larger_is_better, position, function, scored)
