"""`lm`: arithmetic coding with a language model's own probabilities (METHODS.md, section 8).

A block is cut into texts that are read side by side, each with no other's context. What is stored: how many
texts, the tokens of each, then one arithmetic code of all tokens, step by step: the first of every text, the
second of every text, and so on. Encoding runs the very steps that decoding must run, in batches of the same
shape. Shapes: B texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from regraft.checkpoint.locate import SPECIMENS
from regraft.codecs.arithmetic import decode_start, decode_step, encode_end, encode_step
from regraft.codecs.block_stream import Prepared, UnpackBlock, prepared_blocks
from regraft.codecs.frame import DamagedFileError
from regraft.codecs.lm_machine import OtherMachineError, arithmetic, check_arithmetic, digest, with_threads
from regraft.codecs.lm_steps import Steps, check_codes, symbols_of, window_of
from regraft.model.load import load
from regraft.model.model import Model
from regraft.tokenizers.byte_codec import ByteIds

DEFAULT = "specimen:qwen3"
"""The model, unless another is given."""
BLOCK = 1 << 19
"""Bytes that are read side by side."""
TEXT = 1 << 12
"""Bytes of one of the texts in a block: each begins without context, so shorter ones cost more."""
MOST_TEXTS = 1 << 12
"""Texts of a block, at most."""
SEARCHED = 64
"""Bytes before the place of a cut in which a space is looked for."""
CONTINUES = 0x80
"""How the bytes of a character in UTF-8 begin that are not its first."""
SHAPES = (3, 8)
"""Texts and tokens of the fixed text whose scores the header keeps."""


class Coder:
    """A model as codec: what both directions share."""

    def __init__(self, model: Model, window: int, threads: int):
        check_codes(model)
        self.model, self.window, self.threads = model, window, threads
        self.ids, self.may_V = symbols_of(model)

    def probe(self) -> str:
        """A hash of the scores of a fixed text: equal where this machine computes as the other one did."""
        texts, tokens = SHAPES
        known = np.flatnonzero(self.may_V)
        steps = Steps(self.model, texts, self.window)
        with self.model.held(), with_threads(self.threads), torch.inference_mode():
            scores = [steps.first()]
            for step in range(tokens):
                chosen = [int(known[(7 * step + 31 * text) % len(known)]) for text in range(texts)]
                scores.append(steps.next(torch.tensor(chosen)))
        return digest(torch.stack(scores))

    def pack_block(self, raw: bytes) -> bytes:
        """A block packed."""
        texts = [tokens_of(self.ids, text) for text in cut(raw)]
        tokens_BT = np.full((len(texts), max(map(len, texts), default=0)), -1, np.int64)
        for row, tokens in zip(tokens_BT, texts, strict=True):
            row[: len(tokens)] = tokens
        # a symbol takes at most as many bits as TOTAL has, and its share of the bytes that are cut off
        out = np.empty(8 * tokens_BT.size + 64, np.uint8)
        state, write = np.array([0, 2**64 - 1], np.uint64), 0
        for step, weights_BV in self._steps(tokens_BT):
            write = encode_step(weights_BV, self.may_V, tokens_BT[:, step], state, out, write)
        write = encode_end(state, out, write)
        lengths = np.array([len(texts), *map(len, texts)], "<u4").tobytes()
        return lengths + out[:write].tobytes()

    def unpack_block(self, stored: bytes, raw: int) -> bytes:
        """A block of `raw` bytes.

        Raises:
            DamagedFileError: it is none.
        """
        lengths, code = _lengths_of(stored, raw)
        tokens_BT = np.full((len(lengths), max(lengths, default=0)), -1, np.int64)
        for row, length in zip(tokens_BT, lengths, strict=True):
            row[:length] = 0
        data, state = np.frombuffer(code, np.uint8), np.zeros(3, np.uint64)
        read = decode_start(data, state)
        for step, weights_BV in self._steps(tokens_BT):
            symbols_B = np.ascontiguousarray(tokens_BT[:, step])
            read = decode_step(weights_BV, self.may_V, symbols_B, state, data, read)
            if read < 0 or read > len(data) + 8:
                raise DamagedFileError("a block's code fits no text: the file is damaged")
            tokens_BT[:, step] = symbols_B
        return b"".join(
            self.ids.decode(row[:length].tolist()) for row, length in zip(tokens_BT, lengths, strict=True)
        )

    def _steps(self, tokens_BT: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Step by step the probabilities (B, V) of the next tokens; what a step is to read stands in
        `tokens_BT` by the time that the next is asked for, as it does for both directions."""
        texts, longest = tokens_BT.shape
        if not longest:
            return
        filler = int(np.flatnonzero(self.may_V)[0])
        steps = Steps(self.model, texts, self.window)
        with self.model.held(), with_threads(self.threads), torch.inference_mode():
            weights_BV = steps.first()
            for step in range(longest):
                yield step, weights_BV.numpy()
                if step + 1 < longest:
                    read_B = np.where(tokens_BT[:, step] < 0, filler, tokens_BT[:, step])
                    weights_BV = steps.next(torch.from_numpy(read_B))


def cut(raw: bytes) -> list[bytes]:
    """A block in texts of about `TEXT` bytes, each but the first beginning with a space or a line where there
    is one near, else at a whole character.

    >>> [len(text) for text in cut(b"word " * 2000)]
    [3330, 3335, 3335]
    """
    count = max(1, -(-len(raw) // TEXT)) if raw else 0
    places = [0]
    for number in range(1, count):
        aim = number * len(raw) // count
        low = max(places[-1] + 1, aim - SEARCHED)
        found = max(raw.rfind(b" ", low, aim), raw.rfind(b"\n", low, aim))
        while found < 0 and aim > low and raw[aim] & 0xC0 == CONTINUES:
            aim -= 1
        places.append(found if found > 0 else aim)
    return (
        [raw[start:stop] for start, stop in zip(places, [*places[1:], len(raw)], strict=True)] if raw else []
    )


def tokens_of(ids: ByteIds, text: bytes) -> list[int]:
    """Token ids that stand for exactly these bytes: the tokenizer's own, or byte by byte where it changes
    them.

    Raises:
        ValueError: a byte has no token of its own.
    """
    try:
        found = ids.encode(text)
        if ids.decode(found) == text:
            return found
    except ValueError:
        pass
    missing = sorted({value for value in text if bytes([value]) not in ids.id_of})
    if missing:
        raise ValueError(
            f"the tokenizer has no token for the byte 0x{missing[0]:02x}, so not every file can be packed"
            " with this model: choose one whose tokenizer works on bytes"
        )
    return [ids.id_of[bytes([value])] for value in text]


def _lengths_of(stored: bytes, raw: int) -> tuple[list[int], bytes]:
    """The tokens of each text, and the code behind them: as many texts as `cut` makes of so many bytes, each
    of no more tokens than it can have bytes, so that no block takes more memory or steps than one of ours."""
    count = -(-raw // TEXT)
    told = int.from_bytes(stored[:4], "little") if len(stored) >= 4 else -1
    if told != count or count > MOST_TEXTS or len(stored) < 4 + 4 * count:
        raise DamagedFileError("a block ends inside its lengths, or has another number: the file is damaged")
    lengths = np.frombuffer(stored, "<u4", count, 4).tolist()
    if sum(lengths) > raw or any(length > raw // count + 1 + SEARCHED for length in lengths):
        raise DamagedFileError("a block claims more tokens than bytes: the file is damaged")
    return lengths, stored[4 + 4 * count :]


def prepared(
    model: Model | None = None,
    window: int | None = None,
    block_size: int | None = None,
    workers: int | None = None,
) -> Prepared:
    """The codec with a model, the specimen by default, and its options; `workers` are PyTorch's threads.

    Raises:
        ValueError: the model cannot be coded with, or an option is not possible.
    """
    model = model if model is not None else load(DEFAULT)
    check_codes(model)
    threads = workers or torch.get_num_threads()
    coder = Coder(model, window_of(model, window), threads)
    ready = prepared_blocks(coder.pack_block, BLOCK, block_size, 1)
    if ready.block_size > MOST_TEXTS * TEXT:
        raise ValueError(f"--block-size of lm is at most {MOST_TEXTS * TEXT:,} bytes")
    parameters = {
        "model": model.weights_sha256,
        "name": model.name if model.folder is None or model.name.startswith("specimen:") else "",
        "window": coder.window,
        "arithmetic": arithmetic(threads, model.dtype),
        "probe": coder.probe(),
    }
    return Prepared(parameters, coder.pack_block, ready.block_size, 1)


def opened(parameters: dict[str, Any], model: Model | None = None) -> UnpackBlock:
    """What unpacks the blocks of a file, if it was written by this model on such a machine; by default the
    specimen that its header names. No other name is opened because a file says so.

    Raises:
        ValueError: it was written by another model than a specimen, and none is given.
        OtherMachineError: this is another model, or another machine.
        DamagedFileError: the header does not tell.
    """
    name = str(parameters.get("name") or "")
    if model is None:
        if name.partition(":")[::2] not in {("specimen", kind) for kind in SPECIMENS}:
            raise ValueError(f"it was packed with {name or 'a model from a folder'}: name that with --model")
        model = load(name)
    threads = check_arithmetic(parameters.get("arithmetic"), model.dtype)
    if parameters.get("model") != model.weights_sha256:
        raise OtherMachineError(
            f"it was packed with another model than {model.name} (hash {parameters.get('model')}): open that"
            " one"
        )
    window = parameters.get("window")
    if type(window) is not int:
        raise DamagedFileError("its header tells no window: it is damaged")
    coder = Coder(model, window_of(model, window), threads)
    if parameters.get("probe") != coder.probe():
        raise OtherMachineError(
            "the scores of a fixed text differ in their last bits from those of the machine that packed it:"
            " unpack it where it was packed"
        )
    return coder.unpack_block
