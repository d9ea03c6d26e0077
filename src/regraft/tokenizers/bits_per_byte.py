"""Bits per byte of text, comparable between vocabularies: every tokenizer cuts the same pieces, every byte of
them counts.

Shapes: B pieces, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.data.evaluation import batched
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.modules.placement import logits_of
from regraft.tokenizers.byte_codec import ByteIds

PIECE = 800
"""Characters of a piece that is scored: some two hundred tokens."""
LARGEST_EXPONENT = 700.0
"""Nats per token beyond which a perplexity is no double; no tokens are that improbable but by mistake."""
BATCH_TOKENS = 2048
"""Tokens that are scored together."""


@dataclass(frozen=True)
class Score:
    """What a model makes of some text: nats over all tokens that were predicted, their number, and the bytes
    they stand for.

    `exact` is the share of pieces that the tokenizer keeps as they are; below 1 the tokens stand for less
    than the text, and bits per byte are not comparable.
    """

    nats: float
    tokens: int
    bytes: int
    exact: float

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of the text."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """The exponential of nats per token: of how many equally probable tokens each is one.

        Tokens of another tokenizer are other tokens, so it compares models with the same one alone.
        """
        return float(np.exp(min(self.nats / self.tokens, LARGEST_EXPONENT)))


@dataclass(frozen=True)
class _Row:
    """A piece as ids: what an encoder reads, what is predicted behind its first id, and the bytes that are
    predicted."""

    read: list[int]
    ids: list[int]
    bytes: int
    exact: bool


def pieces(texts: Iterable[str], most: int, size: int = PIECE) -> list[str]:
    """At most `most` pieces of about `size` characters, in their order, drawn evenly from all the texts in
    one pass.

    Raises:
        ValueError: the text is empty, or no piece is asked for.
    """
    if most < 1:
        raise ValueError("at least one piece of text is needed")
    draw = random.Random(0)
    drawn = nsmallest(
        most, ((draw.random(), number, piece) for number, piece in enumerate(_cut(texts, size)))
    )
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


def fitted(texts: Iterable[str], readers: Sequence[ByteIds], limit: int) -> list[str]:
    """The same texts in pieces that have less than `limit` tokens for every reader (0: no limit), cut at
    white space if any.

    Letters of other scripts are two or three bytes, and so as many tokens to a tokenizer that does not know
    them.
    """
    found: list[str] = []
    waiting = list(texts)[::-1]
    while waiting:
        text = waiting.pop()
        if (
            limit
            and len(text) > 1
            and max(len(reader.encode(text.encode())) for reader in readers) >= limit - 1
        ):
            waiting += list(_cut([text], -(-len(text) // 2)))[::-1]
        else:
            found.append(text)
    return found


@torch.no_grad()
def score(model: Model, reader: ByteIds, texts: Sequence[str], begin: int | None = None) -> Score:
    """Score pieces of text behind the tokenizer's start token; without one, the first token of each piece is
    not predicted.

    An encoder-decoder reads the first half of a piece's characters and is scored on the second, behind
    `begin`, by default what its config says that its decoder begins with. A piece of which nothing is left to
    predict does not count.

    Raises:
        ValueError: the model predicts no next tokens, a piece is longer than its positions, or nothing is
            left to predict.
    """
    if model.parts.head is None or not (model.causal or model.two_stacks):
        raise ValueError(f"{model.name} predicts no next tokens, so it has no bits per byte")
    if model.two_stacks:
        begin = getattr(model.hf.config, "decoder_start_token_id", None) if begin is None else begin
    else:
        begin = (
            reader.tokenizer.bos_token_id
            if reader.tokenizer.bos_token_id is not None
            else reader.tokenizer.eos_token_id
        )
    rows = [_row(reader, text, model.two_stacks, begin) for text in texts]
    rows = [row for row in rows if len(row.ids) > 1 and (row.read or not model.two_stacks)]
    limit = longest_input(model.hf.config) or None
    longest = max((len(row.ids) for row in rows), default=0)
    if limit and longest > limit and not model.two_stacks:
        raise ValueError(
            f"a piece of text has {longest:,} tokens, the model {limit:,} positions: give shorter pieces"
        )
    if not sum(row.bytes for row in rows):
        raise ValueError("no byte of the text is left to predict: give longer pieces")
    nats, done = 0.0, 0
    rows.sort(key=lambda row: len(row.ids))
    for some in batched(rows, [len(row.ids) for row in rows], 0 if model.two_stacks else BATCH_TOKENS):
        losses_BT = _losses(model, some)
        nats += sum(
            float(losses_BT[place, : len(row.ids) - 1].double().sum()) for place, row in enumerate(some)
        )
        done += len(some)
        advance("bits per byte", done, len(rows))
    tokens = sum(len(row.ids) - 1 for row in rows)
    return Score(nats, tokens, sum(row.bytes for row in rows), sum(row.exact for row in rows) / len(rows))


def _row(reader: ByteIds, text: str, two_stacks: bool, start: int | None) -> _Row:
    """A piece cut for a model; what the start token stands in front of is predicted whole."""
    half = len(text) // 2 if two_stacks else 0
    read, content = reader.encode(text[:half].encode()), text[half:].encode()
    spans = reader.spans(content)
    ids = reader.encode(content) if spans is None else [token for *_, token in spans]
    exact = spans is not None and reader.keeps(text[:half].encode(), read)
    if start is not None:
        return _Row(read, [start, *ids], len(content), exact)
    unread = spans[0][1] if spans else len(reader.decode(ids[:1]))
    return _Row(read, ids, max(0, len(content) - unread), exact)


def _losses(model: Model, rows: Sequence[_Row]) -> Tensor:
    """Loss in nats of each token but the first that is written, (B, T); what stands behind a row's end means
    nothing."""

    def padded(lists: Sequence[list[int]]) -> Tensor:
        return nn.utils.rnn.pad_sequence(
            [torch.tensor(ids, dtype=torch.long) for ids in lists], batch_first=True
        ).to(model.device)

    ids_BT = padded([row.ids for row in rows])
    inputs = {"input_ids": ids_BT}
    if model.two_stacks:
        inputs = {"input_ids": padded([row.read for row in rows]), "decoder_input_ids": ids_BT}
    logits_BTV = logits_of(model, inputs)
    assert logits_BTV is not None
    return nn.functional.cross_entropy(
        logits_BTV[:, :-1].float().transpose(1, 2), ids_BT[:, 1:], reduction="none"
    )
