"""The Hugging Face model of a folder, refused where its files and its configuration do not make one whole."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from regraft.checkpoint.compressed import holds_integers, states_integers, with_plain_weights
from regraft.checkpoint.locate import CheckpointError, check_header, weight_files
from regraft.core.silence import silent
from regraft.core.sizes import bytes_of
from regraft.model.streamed import Streamed, open_streamed, own_type
from regraft.streaming.packed_shards import PackedShards
from regraft.streaming.shards import Shards

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def from_files(
    folder: Path,
    device: str,
    dtype: str | torch.dtype | None,
    attention: str | None,
    remote_code: bool,
    stream: bool,
    memory: str | int | None,
) -> tuple[nn.Module, Streamed | None]:
    """The model of a folder, read whole, or block by block where that is asked for or it does not fit."""
    if not stream and not memory:
        return read_checkpoint(folder, device, dtype, attention, remote_code), None
    check_device(device)
    wanted, limit = type_of(dtype, device), bytes_of(memory) if memory else None
    with silent():
        config = read_config(folder, remote_code)
        extra = {"attn_implementation": attention} if attention else {}
        shards = Shards(folder)
        kind = wanted or own_type(config, shards)
        make = partial(_model_class(config, remote_code)._from_config, config, dtype=kind, **extra)
        if states_integers(config):
            shards = PackedShards(folder, config, make)
    hf, streamed = open_streamed(shards, make, kind, torch.device(device), limit)
    if not stream and streamed.store.all_stay:
        return read_checkpoint(folder, device, dtype, attention, remote_code), None
    _refuse_truncated(folder, hf, {"unexpected_keys": streamed.unknown})
    return hf, streamed


ADAPTER_WEIGHTS = re.compile(r"\.transcoder_(enc|dec)\.(weight|bias)$")
"""Names of the tensors of published transcoder adapters, which stand in a folder with the whole model."""


def refuse_adapted_folder(folder: Path) -> None:
    """A folder whose adapters beside the MLPs plain transformers would drop without a word.

    Raises:
        CheckpointError: it is one.
    """
    names = [name for file in weight_files(folder) for name in check_header(file)]
    if any(ADAPTER_WEIGHTS.search(name) for name in names):
        raise CheckpointError(
            f"{folder.name} holds transcoder adapters beside its MLPs, which a plain model would drop: open"
            " it with regraft.open_transcoder"
        )


def type_of(dtype: str | torch.dtype | None, device: str) -> torch.dtype | None:
    """The floating type that somebody asks for; on a CPU float32 by default, None elsewhere for the
    checkpoint's own.

    Raises:
        ValueError: it has another name.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known: choose one of {', '.join(DTYPES)}")
    wanted = DTYPES[dtype] if isinstance(dtype, str) else dtype
    return wanted or (torch.float32 if device == "cpu" else None)


def read_checkpoint(
    folder: Path,
    device: str,
    dtype: str | torch.dtype | None,
    attention: str | None,
    remote_code: bool = False,
) -> nn.Module:
    """The Hugging Face model of a folder, by plain transformers, refused where it is not whole."""
    check_device(device)
    wanted = type_of(dtype, device) or "auto"
    extra = {"attn_implementation": attention} if attention else {}
    with silent():
        config = read_config(folder, remote_code)
        chosen = _model_class(config, remote_code)
        try:
            hf, info = chosen.from_pretrained(
                folder, config=config, dtype=wanted, use_safetensors=True, output_loading_info=True,
                trust_remote_code=remote_code, **extra,
            )  # fmt: skip
        except ImportError as error:
            if not attention:
                raise CheckpointError(
                    f"{folder.name} cannot be opened here: {str(error).splitlines()[0]}"
                ) from error
            raise ValueError(
                f"attention {attention!r} cannot be used here: {str(error).splitlines()[0]}"
            ) from error
        except SafetensorError as error:
            raise CheckpointError(
                f"a weight file of {folder.name} is damaged: {error}: fetch it again"
            ) from error
        except RuntimeError as error:
            if "size mismatch" in str(error) or "mismatch" in str(error).lower():
                raise CheckpointError(_mismatch_sentence(folder, error)) from error
            raise
    _refuse_incomplete(folder, info)
    _refuse_truncated(folder, hf, info)
    if holds_integers(hf):
        with silent():
            hf = with_plain_weights(hf, read_config(folder, remote_code), attention)
    return hf.to(device)


def check_device(device: str) -> None:
    """Make sure that there is such a device here.

    Raises:
        ValueError: there is not.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known: write cpu, cuda or cuda:1") from error
    if kind == "meta":
        raise ValueError("device 'meta' holds no numbers: write cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but this PyTorch sees no GPU: use --device cpu")


def read_config(folder: Path, remote_code: bool) -> Any:
    """The configuration of a folder; code that comes with it is run only where it is asked for.

    Raises:
        CheckpointError: transformers cannot use it.
    """
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        json.JSONDecodeError,
        StrictDataclassError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the config.json of {folder.name} cannot be used: {reason}") from error


def _model_class(config: Any, remote_code: bool) -> Any:
    """The class that the checkpoint names, else the first general one that knows this kind of config."""
    for architecture in config.architectures or ():
        named = getattr(transformers, architecture, None)
        if named is not None and issubclass(named, transformers.PreTrainedModel):
            return named
    for auto in (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModel,
    ):
        if type(config) in auto._model_mapping or (
            remote_code and auto.__name__ in getattr(config, "auto_map", {})
        ):
            return auto
    raise CheckpointError(f"transformers knows no model for a config of type {type(config).__name__}")


def _refuse_incomplete(folder: Path, info: Any) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        named = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise CheckpointError(
            f"{folder.name} lacks {len(missing)} tensors that its config calls for ({named}): they would be"
            " random, so the model is not opened"
        )
    wrong = sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{folder.name}: the shapes of {', '.join(wrong[:4])} disagree with its config.json"
        )


def _refuse_truncated(folder: Path, hf: nn.Module, info: Any) -> None:
    """Tensors of further blocks that the config does not call for: the config belongs to a smaller model."""

    def pattern(name: str) -> str:
        return re.sub(r"\.\d+\.", ".#.", name)

    known = {pattern(name) for name in hf.state_dict()}
    extra = sorted(
        name for name in info["unexpected_keys"] if ".#." in pattern(name) and pattern(name) in known
    )
    if extra:
        raise CheckpointError(
            f"{folder.name} holds {len(extra)} tensors of blocks that its config does not call for, first"
            f" {extra[0]}: the config belongs to a smaller model"
        )


def _mismatch_sentence(folder: Path, error: Exception) -> str:
    lines = [
        line.strip() for line in str(error).splitlines() if "torch.Size" in line or "shape" in line.lower()
    ]
    detail = lines[0] if lines else str(error).splitlines()[0]
    return f"{folder.name}: the shapes in its weights disagree with its config.json: {detail}"
