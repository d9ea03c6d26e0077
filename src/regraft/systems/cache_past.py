"""Keys and values of one block for a prefix, and what is kept of them.

Shapes: B prompts, H query heads, G key heads, P tokens of the prefix, n of them that stay, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from regraft.systems.rotation import Rotation


class StrategyError(ValueError):
    """Words that are no strategy, or one that keeps nothing."""


@dataclass(frozen=True)
class Past:
    """Keys and values of one block for a prefix, and what its own queries looked at.

    `attention(last)` gives how much the prefix's last queries (None: all) look at each of its tokens, (B, H,
    P).
    """

    keys_BGPK: Tensor
    values_BGPK: Tensor
    attention: Callable[[int | None], Tensor]
    block: int = 0
    blocks: int = 1
    queries: Callable[[], Tensor] | None = None
    """(B, H, P, K), as they meet the keys."""
    rotation: Callable[[], Rotation] | None = None


Reads = Callable[[], tuple[Tensor, Tensor]]
"""Keys and values from what is held of them."""


@dataclass(frozen=True)
class KeptPast:
    """What stays of a block's past: keys and values as they are read, which tokens of each head are there
    (None: all), every tensor that is held for it, bytes that are moved for each token that is written, and
    how codes are read again."""

    keys_BGPK: Tensor
    values_BGPK: Tensor
    stays_BGP: Tensor | None
    held: Sequence[Tensor]
    moved: int = 0
    decoded: Reads | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held."""
        return sum(one.numel() * one.element_size() for one in self.held)

    @property
    def count(self) -> int:
        """How many tokens of each head are there."""
        return self.keys_BGPK.shape[2] if self.stays_BGP is None else int(self.stays_BGP[0, 0].sum())

    def reads(self) -> Reads:
        """Keys and values of the tokens that are there, (B, G, n, K), from what is held alone."""
        if self.decoded is not None:
            return self.decoded
        there = (self.keys_BGPK, self.values_BGPK) if self.stays_BGP is None else (self.held[0], self.held[1])
        return lambda: there


def decoded(held: Sequence[Tensor], read: Reads) -> KeptPast:
    """A past of which all tokens are there, as they are read from what is held."""
    keys_BGPK, values_BGPK = read()
    return KeptPast(keys_BGPK, values_BGPK, None, held, decoded=read)
