"""A source by name as a folder: a specimen, a folder, or a hub's repository, which is downloaded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from regraft.checkpoint.locate import CheckpointError, located

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]


def resolve(source: str | Path | None) -> tuple[Path, str]:
    """The folder that a source names, downloaded from the hub where it is an id, and the name to show.

    Raises:
        CheckpointError: there is no such specimen, folder or hub repository.
    """
    folder, text = located(source)
    if folder is not None:
        return folder, text
    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES)), text
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{text} is neither a folder here nor a model that the hub gave us ({reason}): write the id as"
            " the hub has it, or, without a connection, the folder of a model"
        ) from error
