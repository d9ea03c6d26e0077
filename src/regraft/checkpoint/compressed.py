"""Checkpoints whose matrices are packed integers (compressed-tensors), opened as plain matrices of the same
values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

METHOD = "compressed-tensors"


def holds_integers(hf: nn.Module) -> bool:
    """Whether transformers opened a checkpoint of packed integers."""
    return states_integers(getattr(hf, "config", None))


def states_integers(config: Any) -> bool:
    """Whether a configuration says so.

    Raises:
        CheckpointError: it tells of another kind of codes, which nothing here writes out as numbers.
    """
    stated = getattr(config, "quantization_config", None)
    told = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    return told == METHOD


def with_plain_weights(hf: Any, config: Any, attention: str | None) -> nn.Module:
    """The same model with every matrix written out as numbers, free of what the format hung on its layers.

    `config` is the checkpoint's configuration, read anew; it loses its word on quantization.
    """
    hf.hf_quantizer.compressor.decompress_model(hf)
    del config.quantization_config
    extra = {"attn_implementation": attention} if attention else {}
    plain = type(hf)._from_config(config, dtype=hf.dtype, **extra)
    held = hf.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in plain.state_dict(keep_vars=True).items():
            tensor.copy_(held[name])
    plain.generation_config = hf.generation_config
    return plain.eval()
