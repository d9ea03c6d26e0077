"""Keys and values in fewer numbers: heads that are one, few directions, one latent for all heads.

Shapes: B prompts, H query heads, G key heads, P tokens of the prefix, K width of a head, r directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.systems.cache_past import KeptPast, Past, StrategyError, decoded

LEAST = 1e-6
"""Of the mean square of what queries ask for, added in every direction: some directions nobody asks for."""


def merged(past: Past, together: int, fitted: bool) -> KeptPast:
    """Neighbouring key heads as one, read by all queries of both: their mean, or the key whose products with
    the prefix's own queries are nearest to theirs (least squares, token by token); values are the mean.

    Raises:
        StrategyError: so many heads do not divide the block's.
    """
    groups = past.keys_BGPK.shape[1]
    if groups % together:
        raise StrategyError(f"heads:merge={together} does not divide {groups} key heads")
    apart_BgmPK = past.keys_BGPK.unflatten(1, (-1, together))
    keys = _nearest(past, together) if fitted else apart_BgmPK.mean(2)
    values = past.values_BGPK.unflatten(1, (-1, together)).mean(2)
    return decoded(
        [keys, values],
        lambda: (keys.repeat_interleave(together, dim=1), values.repeat_interleave(together, dim=1)),
    )


def _nearest(past: Past, together: int) -> Tensor:
    """One key for several heads: the sum over heads m of Q_m (k - k_m) is 0, with Q_m the second moment of
    the queries that read head m."""
    assert past.queries is not None
    groups = past.keys_BGPK.shape[1]
    queries_BGRK = past.queries().double().unflatten(1, (groups, -1)).flatten(2, 3)
    moments = (queries_BGRK.mT @ queries_BGRK).unflatten(1, (-1, together))
    keys = past.keys_BGPK.double().unflatten(1, (-1, together))
    wanted = (keys @ moments).sum(2)
    whole = moments.sum(2)
    ridge = LEAST * whole.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    some = whole + ridge * torch.eye(whole.shape[-1], dtype=whole.dtype, device=whole.device)
    wanted = wanted + ridge * keys.mean(2)
    return torch.linalg.solve(some, wanted.mT).mT.to(past.keys_BGPK.dtype).contiguous()


def low_rank(past: Past, rank: int, undone: bool) -> KeptPast:
    """Keys and values of each head through their own first singular directions; keys as they are kept, or
    with the rotation of their positions undone, which is done again when they are read."""
    turn = past.rotation() if undone and past.rotation else None
    keys_BGPK = turn.undone(past.keys_BGPK) if turn else past.keys_BGPK
    pairs = [_directions(numbers, rank) for numbers in (keys_BGPK, past.values_BGPK)]

    def read() -> tuple[Tensor, Tensor]:
        keys = pairs[0][0] @ pairs[0][1]
        return (turn.done(keys) if turn else keys), pairs[1][0] @ pairs[1][1]

    return decoded([tensor for pair in pairs for tensor in pair], read)


def latent(past: Past, rank: int) -> KeptPast:
    """One latent a token for keys (their rotation undone) and values of all heads, with directions that all
    prompts share: what latent attention (DeepSeek-V2) keeps, found after training."""
    assert past.rotation is not None
    turn, (prompts, groups, length, width) = past.rotation(), past.keys_BGPK.shape
    both = torch.cat([turn.undone(past.keys_BGPK), past.values_BGPK], dim=1)
    rows = both.transpose(1, 2).reshape(1, 1, prompts * length, 2 * groups * width)
    coordinates, directions = _directions(rows, rank)

    def read() -> tuple[Tensor, Tensor]:
        found = (coordinates @ directions).view(prompts, length, 2 * groups, width).transpose(1, 2)
        return turn.done(found[:, :groups]), found[:, groups:]

    return decoded([coordinates, directions], read)


def _directions(numbers: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Coordinates (..., P, r) along the first singular directions, and those (..., r, K)."""
    left, sizes, right = torch.linalg.svd(numbers.double(), full_matrices=False)
    some = min(rank, sizes.shape[-1])
    coordinates = left[..., :some] * sizes[..., None, :some]
    return coordinates.to(numbers.dtype), right[..., :some, :].to(numbers.dtype)
