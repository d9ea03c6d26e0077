"""What people hold in their hands: models inside other modules, adapters, weights that are elsewhere.

An adapter, a sentence encoder, a data-parallel or a compiled model is a module around one Hugging Face model,
which is what is opened. Layers that an adapter put into that model stay in effect.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from regraft.checkpoint.locate import CheckpointError
from regraft.model.parts import acts_linear, is_linear

OLD_LAYOUT = "0_Transformer"


def unwrapped(source: nn.Module) -> tuple[nn.Module, list[str]]:
    """The Hugging Face model that a module is or wraps, and what a reader should know of the wrapping.

    Raises:
        ValueError: there is none inside, or several, or virtual tokens stand before every text.
    """
    if "prompt_encoder" in dict(source.named_children()):
        raise ValueError(
            f"{type(source).__name__} puts virtual tokens before every text, which belong to no block: open"
            " the model that it wraps (get_base_model()), or an adapter that changes layers"
        )
    inner = source if _is_whole(source) else _only_inside(source)
    notes = (
        []
        if inner is source
        else [f"opened through {type(source).__name__}: what it wraps is a {type(inner).__name__}"]
    )
    own = {id(p) for p in inner.parameters()}
    if any(id(p) not in own for p in source.parameters()):
        notes.append("what stands behind the model in the wrapper, with weights of its own, is left out")
    adapted = [
        name for name, module in inner.named_modules() if acts_linear(module) and not is_linear(module)
    ]
    if adapted:
        notes.append(f"an adapter is in effect in {len(adapted)} layers, first {adapted[0]}")
    return inner, notes


def refuse_adapters(model: Any) -> None:
    """Matrices under an adapter are not what the model computes with.

    Raises:
        ValueError: an adapter is in effect.
    """
    adapted = [
        name for name, module in model.hf.named_modules() if acts_linear(module) and not is_linear(module)
    ]
    if adapted:
        raise ValueError(
            f"an adapter is in effect in {adapted[0]}: its matrices are not the model's own, so merge it"
            " first (merge_and_unload) and open the merged model"
        )


def _is_whole(source: nn.Module) -> bool:
    """Whether a module is a model itself and no wrapper that passes on its attributes."""
    inside = [m for m in source.modules() if isinstance(m, transformers.PreTrainedModel)]
    return isinstance(source, transformers.PreTrainedModel) or (not inside and hasattr(source, "config"))


def _only_inside(source: nn.Module) -> nn.Module:
    found: dict[str, nn.Module] = {}
    for name, module in source.named_modules():
        if isinstance(module, transformers.PreTrainedModel) and not any(
            name.startswith(f"{outer}.") for outer in found
        ):
            found[name] = module
    if len(found) == 1:
        return next(iter(found.values()))
    what = (
        f"holds {len(found)} Hugging Face models ({', '.join(found)}): give one of them"
        if found
        else "holds none"
    )
    raise ValueError(f"a Hugging Face model is wanted, and this {type(source).__name__} is none and {what}")


def refuse_elsewhere(hf: nn.Module) -> None:
    """Weights without numbers, or on several devices, cannot be run block by block.

    Raises:
        ValueError: there are some.
    """
    empty = [name for name, p in hf.named_parameters() if p.is_meta]
    if empty:
        raise ValueError(
            f"{len(empty)} weights of this {type(hf).__name__} hold no numbers here (first {empty[0]}): they"
            " were never read, or offloaded by others than accelerate; load it whole on one device"
        )
    devices = sorted({str(p.device) for p in hf.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"the weights of this {type(hf).__name__} lie on {' and '.join(devices)}: put them on one device"
        )


def refuse_adapter_folder(folder: Path) -> None:
    """A folder with an adapter would be opened as if the adapter were not there; one in an old layout has no
    config.

    Raises:
        CheckpointError: it is one of these.
    """
    if (folder / "adapter_config.json").is_file():
        base = _base_of(folder / "adapter_config.json")
        beside = "beside a model" if (folder / "config.json").is_file() else "and no model"
        raise CheckpointError(
            f"{folder.name} holds an adapter {beside} (adapter_config.json{base}): merge it into its model"
            " with peft (merge_and_unload, then save_pretrained) and open that folder, or open the live"
            " PeftModel from Python"
        )
    if (folder / OLD_LAYOUT / "config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder.name} is in an old layout of sentence-transformers: its model lies in"
            f" {folder.name}/{OLD_LAYOUT}, open that"
        )


def _base_of(file: Path) -> str:
    try:
        base: Any = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return f", for {base}" if base else ""
