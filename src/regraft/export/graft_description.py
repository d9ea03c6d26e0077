"""What a graft's folder says about itself, read without anything heavy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.checkpoint.locate import NoCheckpointError
from regraft.core.files import expanded

ABOUT, CERTIFICATE = "graft.json", "certificate.json"
MEASURE = "`regraft graft embedding eval`, `head eval` or `transcoder eval`"


def read_about(folder: Path) -> dict[str, Any]:
    """What a folder's graft is.

    Raises:
        NoCheckpointError: there is none.
    """
    try:
        about = json.loads((expanded(folder) / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoCheckpointError(
            f"{folder} holds no graft: make one with `regraft graft embedding fit`, `head build` or"
            " `transcoder fit`"
        ) from error
    if not isinstance(about, dict) or not {"kind", "model", "weights_sha256"} <= set(about):
        raise NoCheckpointError(
            f"{folder} holds no graft: its {ABOUT} does not say of what kind and for which model it is"
        )
    return about


def model_of(folder: Path, named: str) -> str:
    """The model that a command on a graft opens: the one that is named, else the one that the graft was made
    for, as it was opened then.

    Raises:
        NoCheckpointError: there is no graft.
    """
    about = read_about(folder)
    return named or about.get("source") or about["model"]


def check_certified(folders: Sequence[Path], kind: str = "") -> None:
    """Make sure that some grafts (of one kind) are there and that a certificate stands beside the first.

    Raises:
        NoCheckpointError: they are not, or were never measured.
    """
    for folder in folders:
        found = read_about(folder)["kind"]
        if kind and found != kind:
            raise NoCheckpointError(f"{folder} holds a {found}, not a {kind}")
    if not (expanded(folders[0]) / CERTIFICATE).is_file():
        raise NoCheckpointError(f"{folders[0]} has no certificate: measure the graft first, with {MEASURE}")
