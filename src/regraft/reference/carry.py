"""The official tensor in the place of one that parted, so that what stands behind it is computed from the
right numbers.

A stage is a tensor that the rebuilt code yields and goes on with. Its numbers are exchanged where they lie,
so that views of it see the official ones too; a tensor that lies in a weight's memory is given memory of its
own instead, so that no weight changes. Code that yields a copy of what it goes on with is not reached: there
the next stages part as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def carried(ours: Tensor, official: Tensor, weights: Iterable[Tensor]) -> str:
    """Put an official tensor into the place of a rebuilt one; returns why it cannot stand there, or nothing.

    Args:
        ours: the rebuilt tensor, changed in place; one row for all texts stands for the same row for each.
        official: the official tensor, which is copied.
        weights: tensors whose numbers must stay.
    """
    if ours.dim() == official.dim() and ours.shape[0] == 1 and bool((official == official[:1]).all()):
        official = official[:1]
    one_for_all = ours.dim() == official.dim() and ours.shape[0] == 1
    if ours.shape[1 if one_for_all else 0 :] != official.shape[1 if one_for_all else 0 :]:
        return f"the official tensor has the shape {_shape(official)}, here {_shape(ours)} is gone on with"
    fresh = official.detach().to(ours.dtype).clone()
    memory = ours.untyped_storage().data_ptr()
    own = all(memory != weight.untyped_storage().data_ptr() for weight in weights)
    with torch.no_grad():
        if own and ours.shape == fresh.shape and ours.is_contiguous():
            ours.copy_(fresh)
        else:
            ours.set_(fresh.untyped_storage(), 0, fresh.shape, fresh.stride())
    return ""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
