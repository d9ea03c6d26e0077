"""What a sweep measured: numbers for each variant and prompt, their weights, and the work.

Shapes: variants by prompts, B prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor

from regraft.sweeps.changed_reads import joined_reads
from regraft.sweeps.plan import Work


class SweepError(RuntimeError):
    """A sweep whose numbers cannot be trusted; the message says why."""


@dataclass(repr=False)
class SweepResult:
    """What a sweep measured.

    `values[metric]` is (variants, prompts), `clean[metric]` (prompts,); `weights[metric]` (prompts,) says how
    many positions stand behind a prompt's mean; one with none has no value (NaN) and counts nothing.
    `deviation` is the largest difference of the control row's stream from the recorded one, relative to the
    stream's largest value, and `control[metric]` what was measured on the control row. `reads[address]` is
    what was read at a site in every variant, (variants, prompts, positions, width) or (variants, prompts,
    positions, heads, width).
    """

    values: dict[str, Tensor]
    clean: dict[str, Tensor]
    control: dict[str, Tensor]
    weights: dict[str, Tensor]
    units: dict[str, str]
    work: Work
    deviation: float = 0.0
    notes: list[str] = field(default_factory=list)
    reads: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        variants, prompts = next(iter(self.values.values())).shape
        lines = [
            f"SweepResult of {variants} variants on {prompts} prompts, {self.work.executed:,} block calls"
        ]
        for name, unit in self.units.items():
            mean = self.mean(name)
            span = f"{float(mean.min()):.4g} to {float(mean.max()):.4g}" if variants else "no variants"
            lines.append(f"  {name}: {span} {unit}; clean {self.clean_mean(name):.4g}")
        return "\n".join(
            [*lines, f"  control row within {self.deviation:.0e}", *(f"  {n}" for n in self.notes)]
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"

    def mean(self, metric: str) -> Tensor:
        """Mean over prompts, each weighted by its positions: (variants,)."""
        weight = self.weights[metric]
        return (self.values[metric] * weight).where(weight > 0, 0.0).sum(1) / weight.sum()

    def clean_mean(self, metric: str) -> float:
        """The clean run's mean over prompts."""
        weight = self.weights[metric]
        return float((self.clean[metric] * weight).where(weight > 0, 0.0).sum() / weight.sum())


def joined(parts: list[SweepResult]) -> SweepResult:
    """Results of several recordings as one."""
    first = parts[0]
    work = Work.joined([part.work for part in parts])
    return SweepResult(
        {name: torch.cat([p.values[name] for p in parts], dim=1) for name in first.values},
        {name: torch.cat([p.clean[name] for p in parts]) for name in first.clean},
        {name: torch.cat([p.control[name] for p in parts]) for name in first.control},
        {name: torch.cat([p.weights[name] for p in parts]) for name in first.weights},
        first.units,
        work,
        max(p.deviation for p in parts),
        list(dict.fromkeys(note for part in parts for note in part.notes)),
        joined_reads([p.reads for p in parts]),
    )
