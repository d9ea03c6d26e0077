"""Where metrics read: the pairs of (prompt, position) of all of them together, and each one's name.

Shapes: n rows, B prompts, P pairs, D width, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regraft.model.recording import Recording
from regraft.sweeps.metric_kinds import Metric
from regraft.sweeps.metrics import AnyMetric, resolved
from regraft.sweeps.region_metrics import with_regions


def named_metrics(metrics: Sequence[AnyMetric], recording: Recording) -> list[Metric]:
    """The metrics as they are measured on a recording: several of one kind told apart, each region by
    itself."""
    return with_regions(_told_apart([resolved(m, recording) for m in metrics]), recording)


def _told_apart(metrics: list[Metric]) -> list[Metric]:
    """Metrics of one kind bear their targets, or a number behind their name, so that several can be measured
    at once."""
    names = [m.name for m in metrics]
    labels = [m.label for m in metrics]
    seen: dict[str, int] = {}
    told = []
    for m in metrics:
        seen[m.name] = seen.get(m.name, 0) + 1
        own = m.label if m.label and labels.count(m.label) == 1 else f"{m.name}_{seen[m.name]}"
        told.append(replace(m, name=own) if names.count(m.name) > 1 else m)
    return told


class ReadPairs:
    """The union of all (prompt, position) pairs that the metrics read, and each metric's own among them."""

    def __init__(self, recording: Recording, metrics: list[Metric]):
        wanted = {m.name: torch.stack(m.pairs(recording), 1) for m in metrics}
        union = torch.cat(list(wanted.values())).unique(dim=0)
        self.prompt, self.position = union[:, 0], union[:, 1]
        self.prompts = recording.prompts
        self.own_index, self.places, self.counts = {}, {}, {}
        self.clean_PD = torch.empty(0)
        code = self.prompt * recording.positions + self.position
        for name, pairs in wanted.items():
            own = pairs[:, 0] * recording.positions + pairs[:, 1]
            place = torch.searchsorted(code, own)
            index = torch.full_like(code, -1)
            index[place] = torch.arange(len(own), device=own.device)
            self.own_index[name], self.places[name] = index, place
            self.counts[name] = torch.bincount(pairs[:, 0], minlength=self.prompts).float()

    def gather(self, streams_nBTD: Tensor, start: int, clean_BTD: Tensor) -> Tensor:
        """The stream at the pairs, (n, P, D); in front of `start` the clean one."""
        inside = self.position >= start
        got = streams_nBTD[:, self.prompt, (self.position - start).clamp_min(0)]
        return (
            got
            if start == 0
            else torch.where(inside[None, :, None], got, clean_BTD[self.prompt, self.position])
        )

    def per_prompt(self, name: str, scores_nP: Tensor) -> Tensor:
        """Mean over each prompt's pairs, (n, B)."""
        keep = self.own_index[name] >= 0
        total = torch.zeros(len(scores_nP), self.prompts, device=scores_nP.device, dtype=scores_nP.dtype)
        total.index_add_(1, self.prompt[keep], scores_nP[:, keep])
        return total / self.counts[name]
