"""What every result of sweeps reports beside its numbers: the control row's deviation and the work that was counted."""

from __future__ import annotations

from typing import Any

from regraft.sweeps.plan import Work
from regraft.sweeps.sweep import SweepResult


def sweep_attributes(*results: SweepResult) -> dict[str, Any]:
    """Attributes for a dataset from one sweep or several: largest deviation of a control row, and the work of all of them."""
    work = Work.joined([result.work for result in results])
    return {
        "control_deviation": max(result.deviation for result in results),
        "work_planned": work.planned,
        "work_preparation": work.preparation,
        "work_naive": work.naive,
        "work_executed": work.executed,
        "work_saved": round(work.saved, 3),
        "notes": "; ".join(dict.fromkeys(note for result in results for note in result.notes)),
        "work_unit": "rows x prompts x positions through one block",
    }
