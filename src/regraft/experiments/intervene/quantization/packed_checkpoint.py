"""A Hugging Face checkpoint whose blocks are packed integers, in the format of the package
compressed-tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regraft.experiments.intervene.quantization.libraries import (
    integer_weights,
    linears,
    missing,
    quiet,
    whole_group,
)
from regraft.experiments.intervene.quantization.rounding import matrix_axes
from regraft.model.parts import Block

PACKAGE, FORMAT = "compressed_tensors", "pack-quantized"
WIDEST = 8
"""Bits that compressed-tensors packs at most."""


def check_packable(blocks: Sequence[Block], width: int) -> None:
    """Make sure that every matrix of these blocks can be written as packed integers here.

    Raises:
        ValueError: the package is not installed, or a matrix is no plain linear layer.
    """
    reason = missing(PACKAGE)
    if reason:
        raise ValueError(
            f"{reason}: `pip install 'regraft[quantize]'`, or save rounded numbers with --format float"
        )
    for block in blocks:
        plain = {f"{name}.weight" for name, _ in linears(block.module)}
        other = sorted(set(matrix_axes(block, width)) - plain)
        if other:
            raise ValueError(
                f"{block.path}.{other[0]} cannot be packed: compressed-tensors knows plain linear layers"
                " only; save rounded numbers with --format float"
            )


def write_packed(
    changed: Any, folder: Path, blocks: Sequence[Block], plan: Sequence[int], group: int
) -> None:
    """Write a model whose blocks' matrices are integers of so many bits, with one float scale for each group
    of inputs.

    The numbers that come back are those of `round_to_nearest`. Where a group does not divide the inputs,
    scales are written for the longest part that divides both, so that the last, shorter group keeps its own.

    Raises:
        ValueError: more than 8 bits.
    """
    if max(plan) > WIDEST:
        raise ValueError(f"{max(plan)} bits cannot be packed: at most {WIDEST}, or save with --format float")
    with quiet(), torch.no_grad():
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

        groups: dict[str, dict[str, Any]] = {}
        scales: dict[str, torch.Tensor] = {}
        for block, bits in zip(blocks, plan, strict=True):
            for name, linear in linears(changed.get_submodule(block.path)):
                path, part = f"{block.path}.{name}", whole_group(linear.in_features, group)
                alike = {"weights": integer_weights(bits, part), "format": FORMAT, "targets": []}
                groups.setdefault(f"{bits}_bits_in_groups_of_{part}", alike)["targets"].append(
                    f"re:^{re.escape(path)}$"
                )
                scales[path] = steps(linear.weight, bits, group, part)
        config = {"config_groups": groups, "format": FORMAT, "quantization_status": "frozen"}
        apply_quantization_config(changed, QuantizationConfig.model_validate(config))
        for path, scale in scales.items():
            changed.get_submodule(path).weight_scale.data = scale
        compressor = ModelCompressor.from_pretrained_model(changed)
        compressor.compress_model(changed)
        changed.save_pretrained(folder)
        compressor.update_config(str(folder))


def steps(weight: torch.Tensor, bits: int, group: int, part: int) -> torch.Tensor:
    """The step of each group of `group` inputs, said once for every `part` of it: (outputs, inputs /
    part)."""
    levels = 2 ** (bits - 1) - 1
    found = []
    for piece in weight.detach().float().split(group, dim=-1):
        step = piece.abs().amax(-1, keepdim=True) / levels
        found.append(torch.where(step > 0, step, torch.ones_like(step)).repeat(1, piece.shape[-1] // part))
    return torch.cat(found, dim=-1)
