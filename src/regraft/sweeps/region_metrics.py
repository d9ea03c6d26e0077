"""Every metric of several positions, for every region of a text, from the same run.

Shapes: P pairs of (prompt, position), c logits of one chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regraft.model.recording import Recording
from regraft.sweeps.metric_kinds import AtPosition, Clean, Metric


@dataclass(frozen=True)
class InRegion(Metric):
    """A metric at those of its positions that predict a token of one region; a prompt that has none there has
    no number."""

    whole: Metric | None = None
    region: int = 0

    @property
    def reads(self) -> Literal["logits", "stream"]:
        """What the metric reads."""
        assert self.whole is not None
        return self.whole.reads

    def _kept(self, recording: Recording) -> Tensor:
        """Which of the whole metric's pairs are of this region."""
        assert self.whole is not None
        assert recording.regions is not None
        prompt, position = self.whole.pairs(recording)
        shift = 1 if recording.model.causal else 0
        return (recording.regions.of(prompt, position + shift) == self.region).nonzero()[:, 0]

    def pairs(self, recording: Recording) -> tuple[Tensor, Tensor]:
        """The whole metric's pairs in the region."""
        assert self.whole is not None
        prompt, position = self.whole.pairs(recording)
        kept = self._kept(recording)
        return prompt[kept], position[kept]

    def score(self, logits_cV: Tensor, pair_c: Tensor, recording: Recording, clean: Clean) -> Tensor:
        """What the whole metric says of these pairs."""
        assert self.whole is not None
        kept = self._kept(recording)

        def of_whole(whole_c: Tensor) -> Tensor:
            return clean(torch.searchsorted(kept, whole_c))

        return self.whole.score(logits_cV, kept[pair_c], recording, of_whole)


def with_regions(metrics: Sequence[Metric], recording: Recording) -> list[Metric]:
    """The metrics, and behind each that reads what predicts scored tokens the same for every region: `loss`,
    `loss[think]`, `loss[outside]`."""
    if recording.regions is None:
        return list(metrics)
    found = []
    for metric in metrics:
        found.append(metric)
        if _splits(metric, recording):
            found += [
                InRegion(
                    f"{metric.name}[{name}]",
                    metric.unit,
                    metric.larger_is_better,
                    whole=metric,
                    region=number,
                )
                for number, name in enumerate(recording.regions.names)
            ]
    return found


def _splits(metric: Metric, recording: Recording) -> bool:
    """Whether a metric reads positions in front of scored tokens, rather than one place of each prompt."""
    if isinstance(metric, AtPosition) and metric.position is not None:
        return False
    prompt, position = metric.pairs(recording)
    shift = 1 if recording.model.causal else 0
    inside = position + shift < recording.positions
    return bool(inside.all()) and bool(recording.scored_BT[prompt, position + shift].all())
