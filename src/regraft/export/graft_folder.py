"""A graft alone in a folder, without the trunk: its tensors, what it is, and the hash of the model that it
belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from regraft.checkpoint.checksums import digest
from regraft.checkpoint.locate import CheckpointError
from regraft.core.files import check_empty, expanded, read_text, whole_file, whole_folder
from regraft.core.strict_json import json_text, numbers_again
from regraft.data.token_bytes import token_bytes
from regraft.export.graft_description import ABOUT, CERTIFICATE, MEASURE, check_certified, read_about
from regraft.model.model import Model
from regraft.modules.backbone import mlps_of
from regraft.modules.byte_codes import byte_embedding
from regraft.modules.byte_embedding import ByteConfig, ByteEmbedding
from regraft.modules.graft_kinds import EMBEDDING, TRANSCODER, Graft, fresh, kind_of, sizes, standing
from regraft.modules.placement import Swaps, put
from regraft.modules.tree_head import TreeHead, check_tree

WEIGHTS = "graft.safetensors"


def make_embedding(model: Model, config: ByteConfig) -> ByteEmbedding:
    """A fresh byte embedding that fits a model.

    Returns:
        The module, not trained yet.

    Raises:
        ValueError: sizes that do not fit, or a tokenizer whose bytes cannot be told.

    Examples:
        >>> embedding = regraft.make_embedding(model, regraft.ByteConfig())
        >>> sum(p.numel() for p in embedding.parameters()), model.parts.embedding.weight.numel()
        (410976, 786432)
    """
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name} has no tokenizer, so its tokens' bytes cannot be told: name one with --tokenizer"
        )
    table = token_bytes(model.tokenizer, model.table_rows)
    graft = byte_embedding(table, model.parts.embedding.embedding_dim, config).to(model.device)
    graft.answers_in = None if model.dtype == torch.float32 else model.dtype
    return graft


def swaps_of(model: Model, grafts: Sequence[Graft]) -> Swaps:
    """Every part of the model that a graft takes the place of, with what stands there then.

    Returns:
        Modules of the model with the modules that take their places.

    Raises:
        ValueError: two grafts for one part, or the model lacks the part.

    Examples:
        >>> few = regraft.TrainingPlan(steps=2, batch=2)
        >>> made = regraft.fit_embedding(model, "to-swap", plan=few, warm=2, length=16)
        >>> swaps = regraft.swaps_of(model, [regraft.attach(pathlib.Path("to-swap/graft"), model)])
        >>> [(type(part).__name__, type(graft).__name__) for part, graft in swaps]
        [('Embedding', 'ByteEmbedding')]
    """
    kinds = [kind_of(graft) for graft in grafts]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"two grafts of the kind {kinds[0]} cannot stand in one place")
    found: list[tuple[nn.Module, nn.Module]] = []
    for graft in grafts:
        olds = parts_of(model, graft)
        found += zip(olds, standing(graft, olds), strict=True)
    return found


def parts_of(model: Model, graft: Graft) -> list[nn.Module]:
    """The parts of a model that a graft takes the place of.

    Raises:
        ValueError: the model lacks one.
    """
    kind = kind_of(graft)
    if kind == TRANSCODER:
        return mlps_of(model)
    old = model.parts.embedding if kind == EMBEDDING else model.parts.head
    if old is None:
        raise ValueError(f"{model.name} has no output matrix that a tree could replace")
    return [old]


def save_graft(graft: Graft, model: Model, folder: Path, weights: str = "", **stated: Any) -> None:
    """Write a graft into a new folder; `said` is added to what is written about it.

    `weights` is the hash of the model's weights, where it was told before they were spread over processes.

    Raises:
        RunFolderError: the folder is not empty.
    """
    check_empty(folder, "--out")
    with whole_folder(folder) as new:
        write_graft(graft, model, new, weights, **stated)


def write_graft(graft: Graft, model: Model, folder: Path, weights: str = "", **stated: Any) -> None:
    """Write a graft's files into a folder that is there; a certificate of what stood there before is gone."""
    (folder / CERTIFICATE).unlink(missing_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in graft.state_dict().items()}
    with whole_file(folder / WEIGHTS) as part:
        save_file(tensors, part)
    about = {
        **sizes(graft),
        **stated,
        "model": model.name,
        "source": model.source or model.name,
        "weights_sha256": weights or model.weights_sha256,
        "parameters": sum(p.numel() for p in graft.parameters()),
    }
    with whole_file(folder / ABOUT) as part:
        part.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


ADDED = ("model", "source", "weights_sha256", "parameters", "tree", "pair")


def put_in(model: Model, grafts: Sequence[Graft]) -> Callable[[], None]:
    """Put grafts in the places of a model's parts, so that the live model can be opened again with them; what
    is returned takes them out.

    A byte embedding stands there as the table that it amounts to: it looks at one token at a time, so both
    give the same vectors, and a model is opened by its table.

    Raises:
        ValueError: two grafts for one part, or the model lacks the part.
    """
    with ExitStack() as undone:
        with model.held():
            for old, new in swaps_of(model, grafts):
                undone.callback(put(model.hf, old, as_table(model, new)))
        return undone.pop_all().close


def as_table(model: Model, part: nn.Module) -> nn.Module:
    """A byte embedding as a plain table in the model's own type; any other part as it is."""
    if not isinstance(part, ByteEmbedding):
        return part
    return nn.Embedding.from_pretrained(part.table().to(model.dtype))


def attach(folder: Path, model: Model, kind: str = "") -> Graft:
    """The graft of a folder, made for this very model.

    Args:
        folder: of the graft.
        model: an opened model, the one that the graft was made for.
        kind: which kind it must be; by default any.

    Returns:
        The graft: its module, its kind, and the part whose place it takes.

    Raises:
        CheckpointError: no graft (of that kind) is there, it was made for another model, or its tensors do
            not fit.

    Examples:
        >>> few = regraft.TrainingPlan(steps=2, batch=2)
        >>> made = regraft.fit_embedding(model, "to-attach", plan=few, warm=2, length=16)
        >>> graft = regraft.attach(pathlib.Path("to-attach/graft"), model)
        >>> type(graft).__name__
        'ByteEmbedding'
    """
    about = read_about(folder)
    if kind and about["kind"] != kind:
        raise CheckpointError(f"{folder} holds a {about['kind']}, not a {kind}")
    if about["weights_sha256"] != model.weights_sha256:
        raise CheckpointError(
            f"{folder} was made for {about['model']} (weights {about['weights_sha256'][:12]}), not for"
            f" {model.name} ({model.weights_sha256[:12]}): a graft fits only the weights that taught it"
        )
    try:
        graft = fresh({name: value for name, value in about.items() if name not in ADDED})
        graft.load_state_dict(load_file(expanded(folder) / WEIGHTS))
        if isinstance(graft, TreeHead):
            check_tree(graft)
    except (RuntimeError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the tensors of {folder} do not fit its configuration: {str(error).splitlines()[0]}"
        ) from error
    if isinstance(graft, ByteEmbedding):
        graft.answers_in = None if model.dtype == torch.float32 else model.dtype
    return graft.to(model.device)


def write_certificate(data: xr.Dataset, folders: Sequence[Path]) -> None:
    """Put a certificate beside the first of some grafts, with the hash of the tensors that it was measured
    on."""
    data.attrs["grafts_sha256"] = grafts_hash(folders)
    with whole_file(folders[0] / CERTIFICATE) as part:
        part.write_text(json_text(data.to_dict(), indent=1) + "\n", encoding="utf-8")


def read_certificate(folders: Sequence[Path]) -> xr.Dataset:
    """The certificate of some grafts together.

    Raises:
        CheckpointError: they have none, or one of other tensors.
    """
    check_certified(folders)
    text = read_text(expanded(folders[0]) / CERTIFICATE, f"measure the graft again, with {MEASURE}")
    try:
        data = numbers_again(xr.Dataset.from_dict(json.loads(text)))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"the certificate of {folders[0]} is damaged: measure again, with {MEASURE}"
        ) from error
    if data.attrs.get("grafts_sha256") != grafts_hash(folders):
        raise CheckpointError(
            f"the certificate of {folders[0]} was measured on other tensors: measure again, with {MEASURE}"
        )
    return data


def grafts_hash(folders: Sequence[Path]) -> str:
    """SHA-256 of some grafts' tensor files, in the order of their kinds."""
    return digest(
        sorted(
            (expanded(folder) / WEIGHTS for folder in folders),
            key=lambda file: read_about(file.parent)["kind"],
        )
    )
