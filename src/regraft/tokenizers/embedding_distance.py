"""How far an encoder's embeddings of texts move when another tokenizer cuts them, beside how far texts are
from each other.

Shapes: B texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.core.progress import advance
from regraft.model.model import Model
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.encoder import pooled, pooling_of


@dataclass(frozen=True, eq=False)
class Embedded:
    """Texts as unit vectors, the tokens that they were cut into without special ones, and the bytes that they
    hold.

    `exact` is the share of texts that the tokenizer keeps as they are.
    """

    vectors_BD: Tensor
    tokens: int
    bytes: int
    exact: float


@torch.no_grad()
def embed(model: Model, reader: ByteIds, texts: Sequence[str]) -> Embedded:
    """Read each text as a sentence encoder does, with the tokenizer's special tokens around it, and pool the
    last states.

    The states are the mean of all tokens, or the first one where the model's folder says so. One text at a
    time: padding would move the positions of models that count them from the padding token.

    Raises:
        ValueError: there is no text, or one has no token.
    """
    if not texts:
        raise ValueError("there is no text to measure on: give a file or a folder with some")
    pooling = pooling_of(model.folder) if model.folder is not None else "mean"
    vectors: list[Tensor] = []
    inner = [reader.encode(text.encode()) for text in texts]
    for text in texts:
        ids_BT = torch.tensor(
            [reader.tokenizer(text, split_special_tokens=True)["input_ids"]], device=model.device
        )
        if not ids_BT.numel():
            raise ValueError("a piece of text has no token: give other text")
        with model.held():
            states_BTD = model.hf.base_model(input_ids=ids_BT)[0]
        vectors.append(pooled(states_BTD, torch.ones_like(ids_BT), pooling).double())
        advance("embeddings of texts", len(vectors), len(texts))
    exact = [reader.keeps(text.encode(), ids) for text, ids in zip(texts, inner, strict=True)]
    return Embedded(
        torch.cat(vectors),
        sum(map(len, inner)),
        sum(len(text.encode()) for text in texts),
        sum(exact) / len(exact),
    )


def distance(before: Embedded, after: Embedded) -> float:
    """One minus the cosine between a text's two embeddings, mean over texts."""
    return float(1 - (before.vectors_BD * after.vectors_BD).sum(-1).mean())


def apart(texts: Sequence[Embedded]) -> float:
    """One minus the cosine between two different texts, mean over all pairs of all the texts; NaN of a single
    one."""
    vectors_BD = torch.cat([one.vectors_BD for one in texts])
    count = len(vectors_BD)
    cosines_BB = vectors_BD @ vectors_BD.T
    return (
        float(1 - (cosines_BB.sum() - cosines_BB.trace()) / (count * (count - 1)))
        if count > 1
        else float("nan")
    )


def same_nearest(before: Sequence[Embedded], after: Sequence[Embedded]) -> float:
    """Share of texts whose nearest other text is the same before and after; NaN of a single one."""
    nearest = []
    for side in (before, after):
        vectors_BD = torch.cat([one.vectors_BD for one in side])
        if len(vectors_BD) < 2:
            return float("nan")
        nearest.append((vectors_BD @ vectors_BD.T).fill_diagonal_(-2).argmax(-1))
    return float((nearest[0] == nearest[1]).double().mean())
