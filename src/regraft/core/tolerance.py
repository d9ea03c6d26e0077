"""The one rule by which results are compared; CONTRIBUTING says it in words.

Weights and files are compared to the bit. The same call with the same shapes on the same tensors gives the
same bits. Whatever is computed twice in another batch, order, address or process may differ in the last ones,
because a matrix library chooses its kernel, and so the order of its sums, by all of these. How far is bounded
here from the kind of numbers, the depth and the size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.core.structure import largest_difference

SAFETY = 4.0
"""Five to forty times what other kernels were seen to do; a planted fault makes a hundred times more
(`test_comparison`)."""


def rounding(dtype: torch.dtype, depth: int, width: int) -> float:
    """How far two results of the same sums may lie apart, as a share of the largest value.

    Each of `depth` blocks rounds its sums of `width` terms once to the type of the stream (a share eps of the
    value) and on the way to the type in which sums are kept (eps of float32 for half precision), where errors
    of either sign add up as their square root. Blocks' errors add up likewise.

    Args:
        dtype: floating type of the weights.
        depth: number of blocks that the result has gone through.
        width: number of terms of the longest sum.

    >>> rounding(torch.float32, 12, 512) < 1e-4 < rounding(torch.bfloat16, 12, 512)
    True
    """
    stored = torch.finfo(dtype).eps
    summed = min(stored, torch.finfo(torch.float32).eps)
    return SAFETY * (depth + 1) ** 0.5 * (stored + summed * width**0.5)


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference as a share of the largest wanted value; infinite where shapes differ or one side
    alone is NaN."""
    difference = largest_difference(found, wanted)
    return difference / max(float(wanted.detach().abs().max()), 1e-30) if difference else 0.0
