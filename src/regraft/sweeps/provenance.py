"""What every result says beside its numbers: where they come from, the control row's deviation, the work that
was counted."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from regraft.sweeps.plan import Work
from regraft.sweeps.sweep_result import SweepResult


def sweep_attributes(*results: SweepResult) -> dict[str, Any]:
    """Attributes for a dataset from one sweep or several: largest deviation of a control row, and the work of
    all of them."""
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


class Proved(Protocol):
    """What provenance is taken from: a model, its matrices, or a rebuilt one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def weights_sha256(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: D102
    @property
    def device(self) -> Any: ...  # noqa: D102
    def proof(self) -> dict[str, Any]: ...  # noqa: D102


def provenance(model: Proved) -> dict[str, Any]:
    """Where a number comes from: model and weights, versions, kind of arithmetic, self-check, command line,
    time."""
    return {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "regraft": version("regraft"),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        **model.proof(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def opened_told(model: Proved, seed: int) -> dict[str, Any]:
    """What every number of a run hangs on beside its options: seed, weights, versions, how the model was
    opened."""
    proof = provenance(model)
    same = ("weights_sha256", "regraft", "torch", "transformers", "dtype", "device", "attention")
    return {"seed": seed, **{key: proof[key] for key in same if key in proof}}
