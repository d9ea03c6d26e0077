"""Published transcoder adapters: a whole Hugging Face folder, frozen model and adapters together, whose class
plain transformers does not know.

Format: `model.layers.{i}.mlp.transcoder_enc.weight` (F, D), `.transcoder_enc.bias`, `.transcoder_dec.weight`
(D, F) and perhaps `.transcoder_dec.bias`; `transcoder_n_features` and `transcoder_dec_bias` in the
configuration.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from regraft.checkpoint.locate import CheckpointError, weight_files
from regraft.model.from_files import ADAPTER_WEIGHTS, read_checkpoint
from regraft.model.load import load, read_tokenizer
from regraft.model.model import Model
from regraft.modules.backbone import mlp_paths
from regraft.modules.transcoder import Transcoders, TranscoderShape


def is_published(folder: Path) -> bool:
    """Whether a folder says that it has such adapters."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "transcoder_n_features" in config


def read_published(folder: Path, device: str = "cpu") -> tuple[Model, Transcoders]:
    """The frozen model of a folder, without adapters, and the adapters.

    Raises:
        CheckpointError: blocks lack adapters, or their shapes do not fit the configuration.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            tensors |= {n: opened.get_tensor(n) for n in opened.keys() if ADAPTER_WEIGHTS.search(n)}  # noqa: SIM118
    hf = read_checkpoint(folder, device, None, None)
    tokenizer = read_tokenizer(folder, False)
    source: Any = hf if tokenizer is None else (hf, tokenizer)
    model = load(source, pack=False)
    model.name = folder.name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    places = mlp_paths(model)
    features = int(config["transcoder_n_features"])
    biased = any(name.endswith("transcoder_dec.bias") for name in tensors)
    graft = Transcoders(TranscoderShape(model.width, features, len(places), biased))
    for place, adapter in zip(places, graft, strict=True):
        wanted = {
            f"{place}.transcoder_{part}.{name}": own
            for part, layer in (("enc", adapter.enc), ("dec", adapter.dec))
            for name, own in layer.named_parameters()
        }
        for name, own in wanted.items():
            if name not in tensors:
                raise CheckpointError(f"{folder.name} lacks {name}: not every block has its adapter")
            if tensors[name].shape != own.shape:
                raise CheckpointError(
                    f"{name} of {folder.name} has shape {tuple(tensors[name].shape)}, its config calls for"
                    f" {tuple(own.shape)}"
                )
            own.data.copy_(tensors[name])
    unknown = [name for name in tensors if re.sub(r"\.transcoder_.*", "", name) not in places]
    if unknown:
        raise CheckpointError(f"{folder.name} holds {unknown[0]}, and the model has no such MLP")
    return model, graft.to(model.device)
