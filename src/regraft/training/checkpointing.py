"""Checkpoints of a training run: graft, optimiser and random state, written whole or not at all, in
safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regraft.checkpoint.locate import CheckpointError
from regraft.core.files import BEGUN, whole_folder

STATE, NUMBERS = "state.safetensors", "state.json"
PREFIX = "step-"


def write_checkpoint(
    folder: Path, step: int, graft: nn.Module, found: Sequence[torch.optim.Optimizer], scaler: Any = None
) -> Path:
    """Write the state behind `step` steps; older checkpoints, and one that was broken off, go once it
    stands."""
    target = folder / f"{PREFIX}{step:07d}"
    tensors: dict[str, Tensor] = {
        f"graft.{name}": p.detach().cpu().contiguous() for name, p in graft.state_dict().items()
    }
    numbers: dict[str, float] = {}
    for place, name, value in _states(found):
        if isinstance(value, Tensor):
            tensors[f"optimiser.{place}.{name}"] = value.detach().cpu().contiguous().clone()
        else:
            numbers[f"{place}.{name}"] = value
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    stated = json.dumps(
        {"step": step, "optimiser": numbers, "scaler": scaler.state_dict() if scaler else None}
    )
    with whole_folder(target) as fresh:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, fresh / STATE)
        (fresh / NUMBERS).write_text(stated, encoding="utf-8")
    for old in [*checkpoints(folder), *folder.glob(f"{BEGUN}*")]:
        if old != target:
            shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / NUMBERS).is_file())


def newest(folder: Path) -> Path | None:
    """The last whole checkpoint, or None."""
    return next(reversed(checkpoints(folder)), None)


def restore(
    checkpoint: Path | None, graft: nn.Module, found: Sequence[torch.optim.Optimizer], scaler: Any = None
) -> int:
    """Put a checkpoint's state back; returns the number of steps behind it.

    Raises:
        CheckpointError: its file is damaged.
    """
    assert checkpoint is not None
    try:
        tensors = load_file(checkpoint / STATE)
    except SafetensorError as error:
        raise CheckpointError(
            f"{checkpoint} is damaged ({error}): remove it to start the run anew"
        ) from error
    stated = json.loads((checkpoint / NUMBERS).read_text(encoding="utf-8"))
    graft.load_state_dict(
        {name.removeprefix("graft."): t for name, t in tensors.items() if name.startswith("graft.")}
    )
    values: dict[str, Tensor | float] = {
        **{
            name.removeprefix("optimiser."): t for name, t in tensors.items() if name.startswith("optimiser.")
        },
        **stated["optimiser"],
    }
    for number, optimiser in enumerate(found):
        state: dict[int, dict[str, Any]] = {}
        for key, value in values.items():
            which, place, name = key.split(".", 2)
            if int(which) == number:
                state.setdefault(int(place), {})[name] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    if scaler is not None and stated["scaler"]:
        scaler.load_state_dict(stated["scaler"])
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return stated["step"]


def _states(found: Sequence[torch.optim.Optimizer]) -> Iterator[tuple[str, str, Tensor | float]]:
    """Everything that some optimisers remember: optimiser and parameter by number, name, value."""
    for number, optimiser in enumerate(found):
        for place, state in optimiser.state_dict()["state"].items():
            for name, value in state.items():
                yield f"{number}.{place}", name, value
