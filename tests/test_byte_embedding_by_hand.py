"""Byte embeddings written out one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regraft.data.token_bytes import TokenBytes
from regraft.data.token_groups import TokenSums, groups
from regraft.modules.byte_codes import byte_embedding
from regraft.modules.byte_embedding import ByteBlock, ByteConfig, ByteEmbedding, _near, parameters

TABLE = TokenBytes(
    (b"", b"ab", b"b", b"abcde", b"", b"\xc3"),
    ("special", "text", "text", "text", "reserved", "text"),
    "byte-level",
)


@pytest.mark.parametrize("readout", ["flatten", "pool"])
def test_a_byte_embedding_written_out(readout):
    torch.manual_seed(0)
    graft = byte_embedding(TABLE, 12, ByteConfig(3, 8, 1, 2, 10, readout)).double()
    block = graft.over_bytes[0]
    for token, content in ((1, b"ab"), (2, b"b"), (3, b"abc"), (5, b"\xc3")):
        x = torch.stack(
            [graft.bytes.weight[byte] + graft.places[place] for place, byte in enumerate(content)]
        )
        normed = block.norm_attention(x)
        q, k, v = (part.view(len(content), 2, 4) for part in block.qkv(normed).split(8, -1))
        mixed = torch.cat([((q[:, h] @ k[:, h].T) / 2).softmax(-1) @ v[:, h] for h in range(2)], -1)
        x = x + block.out(mixed)
        x = x + block.down(nn.functional.gelu(block.up(block.norm_mlp(x))))
        if readout == "flatten":
            read = torch.cat([x, x.new_zeros(3 - len(content), 8)]).flatten()
        else:
            read = torch.cat([((x @ query) / 8**0.5).softmax(0) @ x for query in graft.queries])
        wanted = graft.down(nn.functional.gelu(graft.up(read)))
        torch.testing.assert_close(graft(torch.tensor([[token]]))[0, 0], wanted)
    assert torch.equal(graft(torch.tensor([0, 4])), graft.own.weight)
    assert graft.owners == 2
    torch.testing.assert_close(graft.table(rows=2), graft(torch.arange(6)))
    graft.answers_in = torch.bfloat16
    assert graft(torch.tensor([1])).dtype == torch.bfloat16
    graft.places.requires_grad_(False)
    assert parameters([graft]) == sum(p.numel() for p in graft.parameters()) - 24


def test_sizes_of_a_byte_embedding():
    for wrong in (
        dict(group=0),
        dict(byte_width=0),
        dict(heads=0),
        dict(neurons=0),
        dict(blocks=-1),
        dict(byte_width=10, heads=4),
        dict(group=5),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            ByteConfig(**{**dict(group=4, byte_width=8, heads=2, neurons=4), **wrong}).check(32)
    with pytest.raises(ValueError, match="readout"):
        ByteConfig(group=4, byte_width=8, heads=2, readout="other").check(32)
    ByteConfig(group=5, byte_width=8, heads=2, blocks=0, neurons=1, readout="pool").check(32)
    assert ByteEmbedding(ByteConfig(4, 8, 0, 2, 4), 32, 3, 0).own.num_embeddings == 1
    assert (_near(32, 12), _near(32, 1), _near(32, 32)) == ("8 or 16", "2", "16")
    assert ByteBlock(8, 2).up.out_features == 32


def test_groups_of_tokens():
    found = groups(TABLE, np.array([0, 1, 9, 10, 99, 100]))
    text = {name: np.flatnonzero(these).tolist() for name, these in found.items()}
    assert (text["1 byte"], text["2 bytes"], text["5 to 8 bytes"], text["longer"]) == ([2, 5], [1], [3], [])
    assert (text["below 10 times"], text["10 to 99 times"], text["100 times and more"]) == (
        [1, 2],
        [3, 4],
        [5],
    )
    assert (
        text["part of a character"],
        text["does not"],
        text["special tokens"],
        text["reserved tokens"],
    ) == (
        [5],
        [1, 2, 3],
        [0],
        [4],
    )
    logits = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    sums, ids = TokenSums(6), torch.tensor([[1, 2, 1, 3]])
    sums.add(logits[0], logits[1], ids)
    assert sums.read_V.tolist() == [0, 2, 1, 0, 0, 0]
    assert sums.wanted_V.tolist() == [0, 1, 1, 1, 0, 0]
    kl = [float((logits[0, 0, t].exp() * (logits[0, 0, t] - logits[1, 0, t])).sum()) for t in range(3)]
    assert sums.divergence_V.tolist() == pytest.approx([0, kl[0] + kl[2], kl[1], 0, 0, 0], rel=1e-5)
    excess = [float(logits[0, 0, t, ids[0, t + 1]] - logits[1, 0, t, ids[0, t + 1]]) for t in range(3)]
    assert sums.excess_V.tolist() == pytest.approx([0, excess[1], excess[0], excess[2], 0, 0], rel=1e-5)
    said = sums.by_group(TABLE)
    assert said["group_tokens"].sel(group="2 bytes") == 2
    assert float(said["group_kl"].sel(group="2 bytes")) == pytest.approx((kl[0] + kl[2]) / 2, rel=1e-5)
    assert float(said["group_excess"].sel(group="2 bytes")) == pytest.approx(excess[1], rel=1e-5)
    assert "5 to 8 bytes" not in said["group_tokens"].group
