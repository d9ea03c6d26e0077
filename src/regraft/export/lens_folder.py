"""A tuned lens in a folder: its tensors, and what it was tuned for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from regraft.checkpoint.locate import CheckpointError, NoCheckpointError
from regraft.core.files import expanded, whole_folder
from regraft.model.model import Model
from regraft.modules.tuned_lens import KIND, TunedLens

LENS_ABOUT, LENS_WEIGHTS = "lens.json", "lens.safetensors"
MAKE = "make one with `regraft tuned-lens`"


def save_lens(lens: TunedLens, model: Model, folder: Path, weights: str = "", **stated: Any) -> None:
    """Write a lens into a folder, whose earlier lens it replaces; `stated` is added to what is said of it."""
    about = {
        "kind": KIND,
        "depths": lens.depths,
        "width": lens.width,
        "model": model.name,
        "weights_sha256": weights or model.weights_sha256,
        **stated,
    }
    with whole_folder(folder) as new:
        tensors = {name: t.detach().cpu().contiguous() for name, t in lens.state_dict().items()}
        save_file(tensors, new / LENS_WEIGHTS)
        (new / LENS_ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_lens_about(folder: Path | str) -> dict[str, Any]:
    """What a folder's lens is.

    Raises:
        NoCheckpointError: there is none.
    """
    try:
        about = json.loads((expanded(folder) / LENS_ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoCheckpointError(f"{folder} holds no tuned lens: {MAKE}") from error
    if not isinstance(about, dict) or about.get("kind") != KIND or "weights_sha256" not in about:
        raise NoCheckpointError(f"{folder} holds no tuned lens: its {LENS_ABOUT} describes none; {MAKE}")
    return about


def open_lens(folder: Path | str, model: Model) -> TunedLens:
    """The lens of a folder, tuned for this very model.

    Raises:
        CheckpointError: there is none, it was tuned for another model, or its tensors do not fit.
    """
    inside = expanded(folder) / "lens"
    folder = inside if (inside / LENS_ABOUT).is_file() else folder
    about = read_lens_about(folder)
    if about["weights_sha256"] != model.weights_sha256:
        raise CheckpointError(
            f"{folder} was tuned for {about.get('model')} (weights {str(about['weights_sha256'])[:12]}), not"
            f" for {model.name} ({model.weights_sha256[:12]}): a lens fits only the weights it was tuned on"
        )
    lens = TunedLens(len(model.main_blocks), model.width)
    try:
        lens.load_state_dict(load_file(expanded(folder) / LENS_WEIGHTS))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the tensors of {folder} are no tuned lens of {model.name}: {str(error).splitlines()[0]}"
        ) from error
    return lens.to(model.device)
