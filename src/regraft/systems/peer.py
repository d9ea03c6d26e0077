"""A process that writes on what another one has read: `python -m regraft.systems.peer PORT`, started by
`apart`.

Shapes: B prompts (1), G key heads, P tokens of a prompt, K width of a head.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from regraft.model.load import load
from regraft.model.model import Model
from regraft.systems.cache_codes import Coded
from regraft.systems.transport import Link, Parcel, PeerGoneError, RayLink, SharedLink, TcpLink

SECRET = "REGRAFT_PEER"
"""The variable of the environment by which the two processes know each other."""


def link_over(kind: str, channel: TcpLink) -> Link:
    """The link of that kind on a connection; both sides call it."""
    if kind == "shared":
        return SharedLink(channel)
    if kind == "ray":
        import ray

        return RayLink(channel, ray)
    return channel


def decoded(model: Model, keys_values: list[tuple[Tensor, Tensor]], first: int, tokens: int) -> Any:
    """Write on greedily behind a prompt of which only keys and values are there.

    Yields:
        Each token's id behind the first, and the moment at which it was there (seconds of the system's
        clock).
    """
    cache = DynamicCache(config=model.hf.config)
    for block, (keys, values) in enumerate(keys_values):
        cache.update(keys.to(model.device), values.to(model.device), block)
    token = torch.tensor([[first]], device=model.device)
    with model.held(), torch.no_grad():
        for _ in range(tokens - 1):
            logits = model.hf(input_ids=token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1].argmax(-1, keepdim=True)
            yield int(token), time.monotonic()


def read_codes(tensors: list[Tensor], told: Mapping[str, Any]) -> Tensor:
    """A tensor as it was kept: codes with what they are read by, or itself."""
    if "bits" not in told:
        return tensors[0]
    scales, lowest = (*tensors[1:], None, None)[:2]
    shape = tuple(told["shape"])
    return Coded(tensors[0], scales, lowest, shape, told["bits"], told["axis"], told["group"]).read()


def _serve(link: Link, replies: TcpLink) -> None:
    """Open the model, then answer each request when all of its blocks are there, one after the other."""
    opening = link.receive()
    torch.set_num_threads(opening.told["threads"])
    model = load(opening.told["source"], **opening.told["opening"])
    replies.send("ready", told={"weights_sha256": model.weights_sha256})
    came: queue.Queue[Parcel | None] = queue.Queue()
    threading.Thread(target=_read, args=(link, came), daemon=True).start()
    waiting: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    while (parcel := came.get()) is not None:
        told = parcel.told
        blocks = waiting.setdefault(told["request"], {})
        if parcel.name == "block":
            parts = parcel.tensors[: told["of_keys"]], parcel.tensors[told["of_keys"] :]
            keys, values = (
                read_codes(part, how).to(model.dtype)
                for part, how in zip(parts, (told["keys"], told["values"]), strict=True)
            )
            blocks[told["block"]] = keys, values
            continue
        there = time.monotonic()
        ordered = [blocks[block] for block in range(len(model.blocks))]
        del waiting[told["request"]]
        written = list(decoded(model, ordered, told["first"], told["tokens"]))
        ids, at = [one for one, _ in written], [moment for _, moment in written]
        answer = {"request": told["request"], "there": there, "ids": ids, "at": at}
        replies.send("written", told=answer)


def _read(link: Link, came: queue.Queue[Parcel | None]) -> None:
    """Take messages while the main thread writes; the end of the other side ends this one."""
    try:
        while (parcel := link.receive()).name != "end":
            came.put(parcel)
    except PeerGoneError:
        pass
    came.put(None)


def connected(port: int, name: str) -> TcpLink:
    """A connection to the process that listens, under the secret that it gave."""
    channel = TcpLink(socket.create_connection(("127.0.0.1", port)))
    channel.send(name, told={"secret": os.environ[SECRET]})
    return channel


def main() -> None:
    """Connect to the process that started this one, and serve it until it ends."""
    channel, replies = (connected(int(sys.argv[1]), name) for name in ("data", "replies"))
    how = channel.receive().told
    if how["over"] == "ray":
        import ray

        ray.init(address=how["address"], logging_level=logging.ERROR, log_to_driver=False)
    link = link_over(how["over"], channel)
    try:
        _serve(link, replies)
    finally:
        link.close()
        replies.close()


if __name__ == "__main__":
    main()
