"""What every intervention reports beside its numbers: the control row's deviation and the work that was counted."""

from __future__ import annotations

from typing import Any

from regraft.engine.sweep import SweepResult


def sweep_attributes(result: SweepResult) -> dict[str, Any]:
    """Attributes for a dataset: deviation of the control row, and work in rows x prompts x positions through a block."""
    work = result.work
    return {
        "control_deviation": result.deviation,
        "work_planned": work.planned,
        "work_preparation": work.preparation,
        "work_naive": work.naive,
        "work_executed": work.executed,
        "work_saved": round(work.saved, 3),
        "notes": "; ".join(result.notes),
        "work_unit": "rows x prompts x positions through one block",
    }
