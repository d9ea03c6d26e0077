"""A tokenizer's bytes as the codes that a byte embedding reads. Shapes: V tokens, G bytes kept of each."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.data.token_bytes import TokenBytes
from regraft.modules.byte_embedding import PAD, ByteConfig, ByteEmbedding


def byte_embedding(table: TokenBytes, width: int, config: ByteConfig) -> ByteEmbedding:
    """A fresh byte embedding for a tokenizer's tokens.

    Raises:
        ValueError: sizes that do not fit together.
    """
    codes_VG, own_V = coded(table, config.group)
    graft = ByteEmbedding(config, width, len(table), int((own_V >= 0).sum()))
    graft.codes_VG.copy_(codes_VG)
    graft.own_V.copy_(own_V)
    return graft


def coded(table: TokenBytes, group: int) -> tuple[Tensor, Tensor]:
    """Every token's first `group` bytes, padded with 256, (V, G); and the number of its own entry, or -1,
    (V,)."""
    codes = torch.full((len(table), group), PAD, dtype=torch.long)
    own = torch.full((len(table),), -1, dtype=torch.long)
    count = 0
    for number, (content, kind) in enumerate(zip(table.bytes_V, table.kind_V, strict=True)):
        if kind != "text" or not content:
            own[number], count = count, count + 1
            continue
        kept = content[:group]
        codes[number, : len(kept)] = torch.tensor(list(kept))
    return codes, own


def cut_share(table: TokenBytes, group: int) -> float:
    """Share of the tokens with bytes that have more of them than are kept."""
    lengths = [len(content) for content in table.bytes_V if content]
    return sum(length > group for length in lengths) / max(1, len(lengths))
