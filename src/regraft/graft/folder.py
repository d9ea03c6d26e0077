"""A graft alone in a folder, without the trunk: its tensors, what it is, and the hash of the model that it belongs to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr
from safetensors.torch import load_file, save_file

from regraft.data.token_bytes import token_bytes
from regraft.graft.byte_embedding import ByteConfig, ByteEmbedding
from regraft.model.files import CheckpointError
from regraft.model.opened import Model
from regraft.runs import check_empty, whole_folder

WEIGHTS, ABOUT, CERTIFICATE = "graft.safetensors", "graft.json", "certificate.json"
KIND = "byte embedding"


def make_embedding(model: Model, config: ByteConfig) -> ByteEmbedding:
    """A fresh byte embedding that fits a model.

    Raises:
        ValueError: sizes that do not fit, or a tokenizer whose bytes cannot be told.
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so its tokens' bytes cannot be told: name one with --tokenizer")
    table = token_bytes(model.tokenizer, model.table_rows)
    return ByteEmbedding(table, model.parts.embedding.embedding_dim, config).to(model.device)


def save_graft(graft: ByteEmbedding, model: Model, folder: Path) -> None:
    """Write a graft into a new folder.

    Raises:
        RunFolderError: the folder is not empty.
    """
    check_empty(folder, "--out")
    with whole_folder(folder) as fresh:
        save_file({name: t.detach().cpu().contiguous() for name, t in graft.state_dict().items()}, fresh / WEIGHTS)
        about = {
            "kind": KIND,
            "config": asdict(graft.config),
            "model": model.name,
            "weights_sha256": model.weights_sha256,
            "parameters": sum(p.numel() for p in graft.parameters()),
        }
        (fresh / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def attach(folder: Path, model: Model) -> ByteEmbedding:
    """The graft of a folder, made for this very model.

    Raises:
        CheckpointError: no graft is there, it was made for another model, or its tensors do not fit.
    """
    about = read_about(folder)
    if about["weights_sha256"] != model.weights_sha256:
        raise CheckpointError(
            f"{folder} was made for {about['model']} (weights {about['weights_sha256'][:12]}), not for {model.name} "
            f"({model.weights_sha256[:12]}): a graft fits only the weights that taught it"
        )
    graft = make_embedding(model, ByteConfig(**about["config"]))
    try:
        graft.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise CheckpointError(f"the tensors of {folder} do not fit its configuration: {str(error).splitlines()[0]}") from error
    return graft


def read_about(folder: Path) -> dict[str, Any]:
    """What a folder's graft is.

    Raises:
        CheckpointError: there is none.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no graft: make one with `regraft graft embedding fit`") from error
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise CheckpointError(f"{folder} holds no graft of the kind {KIND}")
    return about


def write_certificate(data: xr.Dataset, folder: Path) -> None:
    """Put a certificate beside a graft."""
    part = folder / f".{CERTIFICATE}"
    part.write_text(json.dumps(data.to_dict(), indent=1, default=_plain) + "\n", encoding="utf-8")
    part.replace(folder / CERTIFICATE)


def read_certificate(folder: Path) -> xr.Dataset:
    """The certificate of a graft.

    Raises:
        CheckpointError: it has none.
    """
    file = folder / CERTIFICATE
    if not file.is_file():
        raise CheckpointError(f"{folder} has no certificate: measure the graft first, with `regraft graft embedding eval`")
    return xr.Dataset.from_dict(json.loads(file.read_text(encoding="utf-8")))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
