"""Prefill in this process, decode in another: keys and values of a prompt move between them.

Shapes: G key heads, P tokens of a prompt, K width of a head.
"""

from __future__ import annotations

import hmac
import logging
import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from regraft.core.near_names import nearest
from regraft.model.model import Model
from regraft.systems.cache_codes import FLOATS, Coded, as_float, coded
from regraft.systems.cache_run import check_caches
from regraft.systems.mixers import mixers_of
from regraft.systems.peer import SECRET, decoded, link_over
from regraft.systems.transport import Link, Parcel, PeerGoneError, TcpLink

OVER = ("shared", "tcp", "ray")
"""What carries the bytes: shared memory, a socket on this machine, Ray's object store."""
CODES = {"int8": 8, "int4": 4, "int2": 2}
WHOLE, BLOCKS = "whole", "blocks"
WAYS = (WHOLE, BLOCKS, *CODES, *FLOATS)
"""All of it after the prefill; block by block while the next block computes, as it is or in fewer bits."""
GROUP = 32
"""Numbers that share a scale, keys by channel and values by token."""
START_S = 180.0
"""Seconds that a process may take to open a model: one from the hub reads its files anew."""
POLL_S, END_S = 0.1, 5.0
"""Seconds between two looks whether a process still lives, and until one that should end is ended."""


class ApartError(ValueError):
    """A model, a way or a link by which nothing can be moved; the message says why."""


@dataclass
class Moved:
    """One request: what was computed where, and when (seconds of the system's clock)."""

    number: int
    began: float
    first: int
    read: float = 0.0
    there: float = 0.0
    ids: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    payload: int = 0
    wire: int = 0
    sending_s: float = 0.0

    @property
    def exposed_s(self) -> float:
        """What moving adds to the first token: from the end of the prefill until all of it is there."""
        return max(0.0, self.there - self.read)

    @property
    def first_token_s(self) -> float:
        """From the request until the process that writes can go on."""
        return self.there - self.began

    @property
    def between_s(self) -> list[float]:
        """Between one token and the next."""
        moments = [self.there, *self.at]
        return [later - sooner for sooner, later in pairwise(moments)]


def check_apart(model: Model, ways: Sequence[str], over: Sequence[str]) -> None:
    """Make sure that keys and values of a model can be moved so.

    Raises:
        ApartError: an unknown way or link, or a model that another process cannot open or go on with.
    """
    for way in ways:
        if way not in WAYS:
            raise ApartError(f"{way!r} is no way to move keys and values{nearest(way, WAYS)}")
    for kind in over:
        if kind not in OVER:
            raise ApartError(f"{kind!r} carries no tensors{nearest(kind, OVER)}")
    if model.folder is None:
        raise ApartError(
            f"{model.name} is a live model, which another process cannot open: save it to a folder"
            " (save_pretrained) and open that"
        )
    check_caches(model)
    if any(mixer.window for block in model.blocks for mixer in mixers_of(block, model.hf.config)):
        raise ApartError(
            f"some blocks of {model.name} have a window, whose cache forgets: its keys and values are not"
            " moved"
        )


def formula_bytes(model: Model, length: int, way: str) -> int:
    """Bytes of a prompt's keys and values by formula; of codes with their scales and lowest values, and of
    short floats of eight bits with one scale for each head, as `cache_codes` keeps them."""
    total = 0
    for block in model.blocks:
        for mixer in mixers_of(block, model.hf.config):
            heads, width, item = mixer.key_heads, mixer.head_width, model.dtype.itemsize
            numbers = heads * width * length
            if way in (WHOLE, BLOCKS):
                total += 2 * numbers * item
            elif way in CODES:
                runs = heads * (width * -(-length // GROUP) + length * -(-width // GROUP))
                total += 2 * -(-numbers * CODES[way] // 8) + 4 * runs
            else:
                short = FLOATS[way].itemsize
                total += 2 * numbers * short + (0 if short > 1 else 2 * heads * 4)
    return total


@torch.no_grad()
def prefill(model: Model, ids: Sequence[int], hand_on: Callable[[int, Tensor, Tensor], None]) -> int:
    """Read a prompt; each block's keys and values (1, G, P, K) are handed on as soon as the block has run.

    Returns:
        The id of the first token behind it.
    """
    cache = DynamicCache(config=model.hf.config)
    handles = []

    def after(block: int) -> Callable[..., None]:
        def hand(*_: Any) -> None:
            layer = cache.layers[block]
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            hand_on(block, layer.keys, layer.values)

        return hand

    try:
        handles += [block.module.register_forward_hook(after(block.index)) for block in model.blocks]
        with model.held():
            given = torch.tensor([list(ids)], device=model.device)
            logits = model.hf(input_ids=given, past_key_values=cache, use_cache=True).logits
    finally:
        for handle in handles:
            handle.remove()
    return int(logits[0, -1].argmax())


def together(model: Model, ids: Sequence[int], tokens: int, number: int = 0) -> Moved:
    """The same in this process alone: nothing moves."""
    kept: list[tuple[Tensor, Tensor]] = []
    began = time.monotonic()
    first = prefill(model, ids, lambda block, keys, values: kept.append((keys, values)))
    read = time.monotonic()
    written = list(decoded(model, kept, first, tokens))
    return Moved(
        number, began, first, read, read, [i for i, _ in written], [at for _, at in written]
    )  # fmt: skip


class PeerPair:
    """This process and one that writes; made by `paired`."""

    def __init__(self, model: Model, link: Link, replies: TcpLink, process: subprocess.Popen[bytes]):
        self.model, self.link, self.replies, self.process = model, link, replies, process

    def ask(
        self, ids: Sequence[int], tokens: int, way: str = WHOLE, number: int = 0, began: float | None = None
    ) -> Moved:
        """Read a prompt here and have the other process write behind it, which comes with `answer`."""
        began = time.monotonic() if began is None else began
        parts: queue.Queue[tuple[int, Tensor, Tensor] | None] = queue.Queue()
        moved, failed = Moved(number, began, 0), []
        before = self.link.sent.payload, self.link.sent.wire

        def carry() -> None:
            try:
                while (part := parts.get()) is not None:
                    start = time.monotonic()
                    self._send(number, way, *part)
                    moved.sending_s += time.monotonic() - start
            except PeerGoneError as error:
                failed.append(error)

        if way == WHOLE:
            held: list[tuple[int, Tensor, Tensor]] = []
            moved.first = prefill(self.model, ids, lambda *part: held.append(part))
            moved.read = time.monotonic()
            for part in held:
                parts.put(part)
            parts.put(None)
            carry()
        else:
            carrier = threading.Thread(target=carry, daemon=True)
            carrier.start()
            moved.first = prefill(self.model, ids, lambda *part: parts.put(part))
            moved.read = time.monotonic()
            parts.put(None)
            carrier.join()
        if failed:
            raise failed[0]
        self.link.send("go", told={"request": number, "first": moved.first, "tokens": tokens})
        moved.payload = self.link.sent.payload - before[0]
        moved.wire = self.link.sent.wire - before[1]
        return moved

    def answer(self, moved: Moved) -> Moved:
        """Wait for what was written behind a request.

        Raises:
            PeerGoneError: the other process ended.
        """
        told = self.replies.receive().told
        assert told["request"] == moved.number, "answers come in the order of the requests"
        moved.there, moved.ids, moved.at = told["there"], told["ids"], told["at"]
        return moved

    def _send(self, number: int, way: str, block: int, keys: Tensor, values: Tensor) -> None:
        of_keys, how_keys = _kept(keys, way, axis=2)
        of_values, how_values = _kept(values, way, axis=3)
        how = {"of_keys": len(of_keys), "keys": how_keys, "values": how_values}
        self.link.send("block", [*of_keys, *of_values], {"request": number, "block": block, **how})


def _kept(numbers: Tensor, way: str, axis: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Tensors that are moved, and how they are read."""
    if way in (WHOLE, BLOCKS):
        return [numbers.cpu()], {}
    found: Coded = coded(numbers, CODES[way], axis, GROUP) if way in CODES else as_float(numbers, way)
    how = {"bits": found.bits, "axis": found.axis, "group": found.group, "shape": list(found.shape)}
    return [tensor.cpu() for tensor in found.tensors], how


@contextmanager
def paired(model: Model, over: str = "shared", threads: int = 1) -> Iterator[PeerPair]:
    """Start a process that opens the same model and writes; it ends with the context.

    Raises:
        PeerGoneError: it does not start, with what it said.
        ApartError: it holds other weights.
    """
    secret = secrets.token_hex(16)
    address = _ray_address() if over == "ray" else ""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        words = [sys.executable, "-m", "regraft.systems.peer", str(port)]
        process = subprocess.Popen(words, env={**os.environ, SECRET: secret}, stderr=subprocess.PIPE)
        try:
            named = dict(_accepted(listening, process, secret) for _ in range(2))
        except BaseException:
            process.kill()
            _ended(process)
            raise
    named["data"].send("how", told={"over": over, "address": address})
    link = link_over(over, named["data"])
    try:
        told = {"source": _source(model), "opening": _opening(model), "threads": threads}
        link.send("open", told=told)
        _same_weights(model, _ready(named["replies"], process))
        yield PeerPair(model, link, named["replies"], process)
    finally:
        link.close()
        named["replies"].close()
        _ended(process)


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has ended, and make it where it does not."""
    try:
        process.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stderr is not None
    process.stderr.close()


def _accepted(listening: socket.socket, process: subprocess.Popen[bytes], secret: str) -> tuple[str, TcpLink]:
    """The next connection of the process that was started; others are sent away."""
    listening.settimeout(POLL_S)
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise PeerGoneError(f"the process that writes did not start: {_said(process)}")
        try:
            channel = TcpLink(listening.accept()[0])
        except TimeoutError:
            continue
        hello = channel.receive()
        if hmac.compare_digest(str(hello.told.get("secret", "")), secret):
            return hello.name, channel
        channel.close()
    raise PeerGoneError(f"the process that writes did not connect within {START_S:.0f} s")


def _ready(replies: TcpLink, process: subprocess.Popen[bytes]) -> Parcel:
    try:
        return replies.receive()
    except PeerGoneError as error:
        process.wait(timeout=END_S)
        said = _said(process)
        raise PeerGoneError(f"the process that writes ended while it opened the model: {said}") from error


def _said(process: subprocess.Popen[bytes]) -> str:
    """The last line that a process that has ended wrote to its error stream."""
    assert process.stderr is not None
    lines = process.stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it ended with {process.returncode}"


def _same_weights(model: Model, ready: Parcel) -> None:
    if ready.told["weights_sha256"] != model.weights_sha256:
        raise ApartError(
            f"the process that writes opened other weights than {model.name} has here: save the model as it"
            " is and open that folder"
        )


def _source(model: Model) -> str:
    return model.source if model.source.startswith("specimen") else str(model.folder)


def _opening(model: Model) -> dict[str, Any]:
    return {"dtype": str(model.dtype).removeprefix("torch."), "attention": model.attention}


def _ray_address() -> str:
    """The address of a cluster on this machine, which is started where none runs."""
    try:
        import ray
    except ImportError as error:
        raise ApartError("Ray's store needs the package ray: pip install 'regraft[cluster]'") from error
    if not ray.is_initialized():
        ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    return ray.get_runtime_context().gcs_address
