"""A model's probabilities for the next token of many texts, one token of each after the other.

Both sides of the codec run these very steps with the same batch, so they see the same numbers. Shapes: B
texts, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from regraft.data.own_texts import writes_on
from regraft.model.block_call import longest_input, text_config
from regraft.model.model import Model
from regraft.tokenizers.byte_codec import ByteIds

WINDOW = 256
"""Tokens that a text is read with, unless the model reads fewer."""


def check_codes(model: Model) -> None:
    """Make sure that a model can be coded with: it predicts the next token, on the CPU, and has a tokenizer.

    Raises:
        ValueError: it cannot.
    """
    if not writes_on(model):
        raise ValueError(f"{model.name} does not predict the next token of a text: choose a decoder")
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer: name one with --tokenizer")
    if model.device.type != "cpu":
        raise ValueError("the codec computes on the CPU: open the model with --device cpu")


def symbols_of(model: Model) -> tuple[ByteIds, np.ndarray]:
    """The tokens' bytes, and which of the V scores may be coded: tokens that stand for bytes."""
    rows = model.vocabulary
    ids = ByteIds(model.tokenizer, rows)
    may_V = np.zeros(rows, np.bool_)
    for number, (content, kind) in enumerate(zip(ids.table.bytes_V, ids.table.kind_V, strict=True)):
        may_V[number] = kind == "text" and len(content) > 0
    return ids, may_V


class Steps:
    """The model reads one token of each text at a time; a window that is full goes on with its later half."""

    def __init__(self, model: Model, texts: int, window: int):
        self.hf: Any = model.hf
        self.window = window
        self.read: list[Tensor] = []
        self.cache: Any = None
        self.held = 0
        begin = text_config(model.hf.config).bos_token_id
        self.begin_B = torch.full((texts,), begin) if type(begin) is int else None
        self.flat_BV = torch.full((texts, model.vocabulary), 1.0 / model.vocabulary)

    def first(self) -> Tensor:
        """Probabilities (B, V) of each text's first token: behind the token that begins texts, or even."""
        return self.flat_BV if self.begin_B is None else self.next(self.begin_B)

    def next(self, tokens_B: Tensor) -> Tensor:
        """Probabilities (B, V) behind one more token of each text."""
        self.read.append(tokens_B)
        if self.held == self.window:
            self.read = self.read[-(self.window // 2) :]
            self.held = 0
        if self.held == 0:
            self.cache = DynamicCache(config=self.hf.config)
            fed_BT = torch.stack(self.read, 1)
        else:
            fed_BT = tokens_B[:, None]
        logits_BV = self.hf(
            input_ids=fed_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        self.held += fed_BT.shape[1]
        probabilities_BV = torch.softmax(logits_BV.float(), -1)
        if not bool(torch.isfinite(probabilities_BV).all()):
            raise ValueError("the model's scores are not finite: nothing can be coded with them")
        return probabilities_BV


def window_of(model: Model, asked: int | None) -> int:
    """Tokens of a window: as asked for, or `WINDOW`, or what the model reads.

    Raises:
        ValueError: the model does not read so many, or there are too few for a half.
    """
    most = longest_input(model.hf.config)
    window = asked or min(WINDOW, most or WINDOW)
    if window < 4 or (most and window > most):
        raise ValueError(f"--window {window} tokens: {model.name} reads from 4 to {most or 'any number of'}")
    return window
