"""Checkpoints of packed integers (compressed-tensors), read one matrix at a time as plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.checkpoint.locate import CheckpointError
from regraft.core.silence import silent
from regraft.streaming.empty_model import empty_model
from regraft.streaming.shards import Shards, TensorPlace

CODES = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
"""What the format writes in a matrix's place."""


class PackedShards(Shards):
    """Shards whose packed matrices bear the plain name `weight` and are written out as they are read.

    Args:
        folder: of the checkpoint.
        config: its configuration, which says how they are packed; it loses that word.
        make: builds the model from the configuration.

    Raises:
        CheckpointError: the configuration cannot be used, or says nothing of a module whose matrix is packed.
    """

    def __init__(self, folder: Path, config: Any, make: Callable[[], Any]):
        super().__init__(folder)
        stated = config.quantization_config
        del config.quantization_config
        self.schemes = _schemes(stated, make)
        self.codes: dict[str, dict[str, TensorPlace]] = {}
        for name in list(self.places):
            module, _, leaf = name.rpartition(".")
            if leaf in CODES:
                self.codes.setdefault(module, {})[leaf] = self.places.pop(name)
        for module, codes in self.codes.items():
            if module not in self.schemes or "weight_shape" not in codes:
                raise CheckpointError(f"{folder.name}: nothing says how {module} is packed")
            shape = tuple(self.read_at(codes["weight_shape"]).tolist())
            first = next(iter(codes.values()))
            self.places[f"{module}.weight"] = TensorPlace(first.file, first.begin, torch.float32, shape)

    def read(self, name: str) -> Tensor:
        """A whole tensor; a packed one as plain numbers."""
        module = name.removesuffix(".weight")
        if module not in self.codes:
            return super().read(name)
        from compressed_tensors.compressors import BaseCompressor

        scheme = self.schemes[module]
        given: dict[str, Tensor | None] = {
            leaf: self.read_at(place) for leaf, place in self.codes[module].items()
        }
        unpacker = BaseCompressor.get_value_from_registry(str(scheme.format.value))
        found = unpacker.decompress(given, scheme)["weight"]
        assert found is not None
        return found


def _schemes(stated: Any, make: Callable[[], Any]) -> dict[str, Any]:
    """How each module's matrix is packed, by the library's own reading of the configuration."""
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    told = stated if isinstance(stated, dict) else stated.to_dict()
    known = {key: value for key, value in told.items() if key in QuantizationConfig.model_fields}
    config = QuantizationConfig.model_validate(known)
    scratch = empty_model(make)
    with silent():
        apply_quantization_config(scratch, config)
    found = {}
    for name, module in scratch.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            found[name] = scheme.model_copy(update={"format": _format(scheme, config)})
    return found


def _format(scheme: Any, config: Any) -> Any:
    from compressed_tensors.config import CompressionFormat

    return CompressionFormat(scheme.format or config.format)
