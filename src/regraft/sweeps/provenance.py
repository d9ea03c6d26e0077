"""What every result says beside its numbers: where they come from, the control row's deviation, the work that
was counted."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from regraft.core.files import expanded
from regraft.model.model import Model
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
    time; what bears it can be drawn."""
    from regraft.core.results import offer_figures  # xarray, which an import of regraft does without

    offer_figures()
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
    read = [model.tokenizer, model.target_tokenizer] if isinstance(model, Model) else []
    tokenizers = {"tokenizers": [_vocabulary(one) for one in read]} if read else {}
    return {"seed": seed, **{key: proof[key] for key in same if key in proof}, **tokenizers}


def _vocabulary(tokenizer: Any) -> str:
    """A digest of a tokenizer's tokens and their numbers; nothing where there is none."""
    if tokenizer is None:
        return ""
    told = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{type(tokenizer).__name__} {told}".encode()).hexdigest()


def option_told(annotation: str, value: Any) -> Any:
    """An option as it counts for a run's identity: of a file or a folder its bytes, not its name alone."""
    if annotation not in ("TextFile", "ModelName") or not value:
        return value
    place = expanded(value)
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    found = hashlib.sha256()
    for file in files:
        if file.is_file():
            found.update(file.read_bytes())
    return f"{value} ({found.hexdigest()})"
