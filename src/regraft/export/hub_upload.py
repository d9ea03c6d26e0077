"""A saved model sent to a hub, as it lies on disk: weights, configuration, tokenizer and its card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CARD = "README.md"
_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


def check_push(name: str) -> None:
    """Make sure, before any work, that something can be sent to a repository.

    Raises:
        ValueError: no name of one, or no token for the hub.
    """
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is no repository: write OWNER/NAME")
    from huggingface_hub import get_token

    if get_token() is None:
        raise ValueError(
            "there is no token for the hub: log in with `hf auth login`, or set HF_TOKEN, and try again"
        )


def push_folder(folder: Path, name: str) -> str:
    """Send a folder's files to a repository, which is made where it is not there; returns its address.

    Raises:
        ValueError: the folder is no saved model.
        OSError: the hub refuses, with its reason.
    """
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no weights: there is no saved model to send")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub: Any = HfApi()
    try:
        address = hub.create_repo(name, exist_ok=True)
        hub.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message="A model saved by regraft",
            ignore_patterns=["*.zarr/*"],
        )  # fmt: skip
    except HfHubHTTPError as error:
        raise OSError(f"the hub refuses {name}: {' '.join(str(error).split())[:300]}") from error
    return str(address)
