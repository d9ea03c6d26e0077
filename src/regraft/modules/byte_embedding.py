"""A token embedding that is computed from each token's bytes, in place of a table with a row for every token.

Every token is embedded alone: its bytes, each with its place, go through transformer blocks over the byte
axis and an MLP to the model's width. Tokens without bytes (special, reserved) have an entry of their own.
Being free of context, the trained embedding can be baked back into an ordinary table. Shapes: N tokens, G
bytes kept of each, E width of a byte, D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

PAD = 256
"""Behind the 256 values of a byte."""


@dataclass(frozen=True)
class ByteConfig:
    """Sizes of a byte embedding: bytes kept of a token, width of a byte, blocks over bytes, neurons of the
    MLP, readout.

    `flatten` lays the bytes side by side; `pool` lets one learnt query per head attend to them.

    Examples:
        >>> config = regraft.ByteConfig(byte_width=32, neurons=256)
        >>> config.group  # bytes kept of a token
        16
    """

    group: int = 16
    """Bytes kept of each token; flattened, it must divide the model's width."""
    byte_width: int = 48
    """Width of a byte."""
    blocks: int = 1
    """Transformer blocks over the bytes."""
    heads: int = 4
    """Heads of their attention."""
    neurons: int = 384
    """Neurons of the MLP."""
    readout: Literal["flatten", "pool"] = "flatten"
    """Bytes side by side, or pooled by attention."""

    def check(self, width: int) -> None:
        """Make sure that the sizes fit together and to a model's width.

        Raises:
            ValueError: they do not.
        """
        if min(self.group, self.byte_width, self.heads, self.neurons) < 1 or self.blocks < 0:
            raise ValueError("a byte embedding needs at least one byte, one channel, one head and one neuron")
        if self.byte_width % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide a byte's width of {self.byte_width}: choose another number"
            )
        if self.readout == "flatten" and width % self.group:
            raise ValueError(
                f"{self.group} bytes side by side do not divide the model's width of {width}: "
                f"choose {_near(width, self.group)}, or the readout pool"
            )
        if self.readout not in ("flatten", "pool"):
            raise ValueError(f"the readout {self.readout!r} is not known: choose flatten or pool")


def _near(width: int, group: int) -> str:
    """The divisors of a width on both sides of a number."""
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    near = [
        max((d for d in divisors if d < group), default=None),
        min((d for d in divisors if d > group), default=None),
    ]
    return " or ".join(str(d) for d in near if d is not None)


class ByteEmbedding(nn.Module):
    """The function from token ids to vectors; takes the place of an `nn.Embedding`.

    Examples:
        >>> embedding = regraft.make_embedding(model, regraft.ByteConfig())
        >>> type(embedding).__name__, embedding(model.record("It is dark").ids_BT).shape  # (B, T, D)
        ('ByteEmbedding', torch.Size([1, 3, 192]))
    """

    codes_VG: Tensor
    own_V: Tensor

    def __init__(self, config: ByteConfig, width: int, tokens: int, own: int):
        """`own` of the tokens have an entry of their own; which, and the bytes of all others, is read from
        the buffers."""
        super().__init__()
        config.check(width)
        self.config, self.width = config, width
        self.embedding_dim, self.num_embeddings, self.owners = width, tokens, own
        self.answers_in: torch.dtype | None = None
        self.register_buffer("codes_VG", torch.full((tokens, config.group), PAD, dtype=torch.int16))
        self.register_buffer("own_V", torch.full((tokens,), -1, dtype=torch.int32))
        self.bytes = nn.Embedding(PAD + 1, config.byte_width)
        self.places = nn.Parameter(torch.randn(config.group, config.byte_width) * 0.02)
        self.over_bytes = nn.ModuleList(
            ByteBlock(config.byte_width, config.heads) for _ in range(config.blocks)
        )
        inner = (
            config.group * config.byte_width
            if config.readout == "flatten"
            else config.heads * config.byte_width
        )
        self.queries = (
            nn.Parameter(torch.randn(config.heads, config.byte_width) * 0.02)
            if config.readout == "pool"
            else None
        )
        self.up = nn.Linear(inner, config.neurons)
        self.down = nn.Linear(config.neurons, width)
        self.own = nn.Embedding(max(1, own), width)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of these tokens, (..., D); each token that occurs is computed once."""
        different, back = ids.unique(return_inverse=True)
        made = self.embed(different)[back]
        return made if self.answers_in is None else made.to(self.answers_in)

    def embed(self, ids_N: Tensor) -> Tensor:
        """Vectors (N, D) of the given tokens."""
        codes_NG = self.codes_VG[ids_N].long()
        x_NGE = self.bytes(codes_NG) + self.places
        real_NG = codes_NG != PAD
        for block in self.over_bytes:
            x_NGE = block(x_NGE, real_NG)
        x_NGE = x_NGE * real_NG[..., None]
        made_ND = self.down(nn.functional.gelu(self.up(self._read(x_NGE, real_NG))))
        own_N = self.own_V[ids_N].long()
        return torch.where((own_N >= 0)[:, None], self.own(own_N.clamp(min=0)), made_ND)

    def _read(self, x_NGE: Tensor, real_NG: Tensor) -> Tensor:
        if self.queries is None:
            return x_NGE.flatten(1)
        scores_NHG = torch.einsum("nge,he->nhg", x_NGE, self.queries) * x_NGE.shape[-1] ** -0.5
        scores_NHG = scores_NHG.masked_fill(~real_NG[:, None, :], torch.finfo(scores_NHG.dtype).min)
        return torch.einsum("nhg,nge->nhe", scores_NHG.softmax(-1), x_NGE).flatten(1)

    @torch.no_grad()
    def table(self, rows: int = 4096) -> Tensor:
        """The whole table (V, D), computed a few thousand rows at a time."""
        every = torch.arange(self.num_embeddings, device=self.places.device)
        return torch.cat([self.embed(part) for part in every.split(rows)])


class ByteBlock(nn.Module):
    """Attention over a token's bytes and an MLP, both on a normed stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_NGE: Tensor, real_NG: Tensor) -> Tensor:
        """Padding is never looked at."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm_attention(x_NGE)).chunk(3, -1)
        )
        seen = real_NG[:, None, None, :] | ~real_NG.any(1)[:, None, None, None]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x_NGE = x_NGE + self.out(mixed.transpose(1, 2).flatten(2))
        return x_NGE + self.down(nn.functional.gelu(self.up(self.norm_mlp(x_NGE))))


def parameters(modules: Sequence[nn.Module]) -> int:
    """Trainable numbers of some modules."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
