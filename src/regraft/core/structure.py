"""Nested arguments and outputs of a module call: find the tensors, replace them, keep the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Path = tuple[str | int, ...]
_LENGTHS = "_lengths_of_prompts"


def walk_tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield `(path, tensor)` for every tensor inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from walk_tensors(item, (*path, key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from walk_tensors(item, (*path, index))


def map_tensors(value: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """The same nesting with every tensor replaced by `change(path, tensor)`."""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change, (*path, key)) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map_tensors(item, change, (*path, index)) for index, item in enumerate(value))
    return value


def main_tensor(output: Any) -> Tensor | None:
    """The first tensor of a call's output: for a block, the residual stream that leaves it."""
    return next((tensor for _, tensor in walk_tensors(output)), None)


def with_main_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    first = next(path for path, _ in walk_tensors(output))
    return map_tensors(output, lambda path, old: tensor if path == first else old)


def from_prompts(tensor: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The tensor, bearing how many real tokens each prompt had that it was recorded from (arithmetic drops
    that)."""
    setattr(tensor, _LENGTHS, lengths)
    return tensor


def lengths_of_prompts(tensor: Tensor) -> tuple[int, ...] | None:
    """How long the prompts were that a recorded activation comes from, where that is known."""
    return getattr(tensor, _LENGTHS, None)


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two living tensors are the same numbers in the same memory."""
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel() and a.dtype == b.dtype


def version(tensor: Tensor) -> int:
    """How often a tensor was written to in place; -1 where PyTorch does not count (tensors made in inference
    mode)."""
    return -1 if tensor.is_inference() else tensor._version


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite where the shapes differ or a NaN stands on one side only."""
    a, b = a.detach().to(torch.float64), b.detach().to(torch.float64)
    if a.shape != b.shape or bool((a.isnan() != b.isnan()).any()):
        return float("inf")
    same_infinity = a == b
    difference = torch.where(same_infinity, torch.zeros_like(a), (a - b).abs())
    return float(difference.nan_to_num(nan=0.0, posinf=float("inf")).max()) if difference.numel() else 0.0
