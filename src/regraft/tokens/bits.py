"""Bits per byte of text, comparable between vocabularies: every tokenizer cuts the same pieces, every byte of them counts.

Shapes: B pieces, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest

import torch
from torch import Tensor, nn

from regraft.graft.placing import logits_of
from regraft.model.opened import Model
from regraft.model.progress import advance
from regraft.tokens.byte_ids import ByteIds

PIECE = 800
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Score:
    """What a model makes of some text: nats over all tokens that were predicted, their number, and the bytes they stand for."""

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of the text."""
        return self.nats / math.log(2) / self.bytes


def pieces(texts: Iterable[str], most: int, size: int = PIECE) -> list[str]:
    """At most `most` pieces of about `size` characters, in their order, drawn evenly from all the texts in one pass.

    Raises:
        ValueError: the text is empty, or no piece is asked for.
    """
    if most < 1:
        raise ValueError("at least one piece of text is needed")
    draw = random.Random(0)
    drawn = nsmallest(most, ((draw.random(), number, piece) for number, piece in enumerate(_cut(texts, size))))
    if not drawn:
        raise ValueError("there is no text to measure on: give a file or a folder with some")
    return [piece for _, _, piece in sorted(drawn, key=lambda one: one[1])]


def _cut(texts: Iterable[str], size: int) -> Iterator[str]:
    """Each text in pieces, cut at white space where there is some."""
    for text in texts:
        start = 0
        while start < len(text):
            stop = start + size
            if stop < len(text):
                space = max(text.rfind(" ", start + 1, stop), text.rfind("\n", start + 1, stop))
                stop = space if space > 0 else stop
            yield text[start:stop]
            start = stop


@torch.no_grad()
def score(model: Model, reader: ByteIds, texts: Sequence[str]) -> Score:
    """Score pieces of text behind the tokenizer's start token; without one, the first token of each piece is not predicted.

    An encoder-decoder reads the first half of a piece's tokens and is scored on the second.

    Raises:
        ValueError: the model predicts no next tokens, or a piece is longer than its positions.
    """
    if model.parts.head is None or not (model.causal or model.two_stacks):
        raise ValueError(f"{model.name} predicts no next tokens, so it has no bits per byte")
    start = reader.tokenizer.bos_token_id if reader.tokenizer.bos_token_id is not None else reader.tokenizer.eos_token_id
    encoded = [reader.encode(text.encode()) for text in texts]
    rows = [ids if start is None else [start, *ids] for ids in encoded]
    limit = getattr(model.hf.config, "max_position_embeddings", None) or getattr(model.hf.config, "n_positions", None)
    longest = max(map(len, rows))
    if limit and longest > limit and not model.two_stacks:
        raise ValueError(f"a piece of text has {longest:,} tokens, the model {limit:,} positions: give shorter pieces")
    nats, tokens, bytes_ = 0.0, 0, 0
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    done = 0
    while done < len(order):
        size = 1 if model.two_stacks else max(1, BATCH_TOKENS // len(rows[order[min(done + 31, len(order) - 1)]]))
        some = order[done : done + size]
        losses_BT = _losses(model, [rows[i] for i in some])
        for row, index in enumerate(some):
            first = len(rows[index]) // 2 if model.two_stacks else 0
            scored = rows[index][first + 1 :]
            nats += float(losses_BT[row, : len(scored)].double().sum())
            tokens += len(scored)
            unread = rows[index][: first + 1]
            bytes_ += len(texts[index].encode()) - len(reader.decode(unread))
        done += len(some)
        advance("bits per byte", done, len(order))
    return Score(nats, tokens, bytes_)


def _losses(model: Model, rows: list[list[int]]) -> Tensor:
    """Loss in nats of each token but the first that is written, (B, T); what stands behind a row's end means nothing."""
    ids_BT = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(model.device)
    inputs = {"input_ids": ids_BT}
    if model.two_stacks:
        half = ids_BT.shape[1] // 2
        inputs = {"input_ids": ids_BT[:, :half], "decoder_input_ids": ids_BT[:, half:]}
        ids_BT = ids_BT[:, half:]
    logits_BTV = logits_of(model, inputs)
    assert logits_BTV is not None
    return nn.functional.cross_entropy(logits_BTV[:, :-1].float().transpose(1, 2), ids_BT[:, 1:], reduction="none")
