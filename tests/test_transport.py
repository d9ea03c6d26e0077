"""Tensors from one side to the other: to the bit, counted, and an error where nobody is there."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest
import torch

from regraft.systems import transport
from regraft.systems.transport import LENGTH, PeerGoneError, SharedLink, TcpLink, as_bytes, shapes_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int64)


@pytest.fixture
def small_pool(monkeypatch):
    monkeypatch.setattr(transport, "POOL", 1 << 16)


def ends(kind):
    """Both ends of a connection on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    links = TcpLink(one), TcpLink(other)
    return links if kind == "tcp" else tuple(SharedLink(link) for link in links)


def received(link, count):
    """What comes to a link, taken in a thread of its own, since the other side waits for it to be read."""
    found = []
    thread = threading.Thread(target=lambda: found.extend(link.receive() for _ in range(count)))
    thread.start()
    return thread, found


def tensors():
    drawn = torch.Generator().manual_seed(0)
    made = [(torch.randn(2, 3, 5, generator=drawn) * 9).to(dtype) for dtype in DTYPES]
    return [*made, torch.randn(4, 6, generator=drawn).mT, torch.tensor(3.5), torch.zeros(0, 4)]


@pytest.mark.parametrize("kind", ["tcp", "shared"])
@pytest.mark.usefixtures("small_pool")
def test_tensors_arrive_to_the_bit_and_are_counted(kind):
    one, other = ends(kind)
    thread, found = received(other, 3)
    one.send("first", tensors(), {"block": 3})
    one.send("empty")
    one.send("last", [torch.arange(4)])
    thread.join(timeout=20)
    assert [(p.name, p.told) for p in found] == [("first", {"block": 3}), ("empty", {}), ("last", {})]
    for came, sent in zip(found[0].tensors, tensors(), strict=True):
        assert (came.dtype, came.shape) == (sent.dtype, sent.shape)
        assert bytes(as_bytes(came)) == bytes(as_bytes(sent))
    payload = sum(t.numel() * t.element_size() for t in [*tensors(), torch.arange(4)])
    assert one.sent.payload == payload
    heads = [
        {"name": "first", "told": {"block": 3}, "tensors": shapes_of(tensors())},
        {"name": "empty", "told": {}, "tensors": []},
        {"name": "last", "told": {}, "tensors": shapes_of([torch.arange(4)])},
    ]
    if kind == "shared":
        heads = [{**head, "memory": one.mine.path} for head in heads]
    headers = sum(LENGTH.size + len(json.dumps(head).encode()) for head in heads)
    assert one.sent.wire == headers + (payload if kind == "tcp" else 0)
    one.close()
    other.close()


@pytest.mark.usefixtures("small_pool")
def test_shared_memory_is_given_back_and_refuses_what_is_too_large():
    one, other = ends("shared")
    path = Path(one.mine.path)
    assert path.stat().st_size == 1 << 16
    with pytest.raises(ValueError, match=r"65,537 bytes does not fit into 65,536"):
        one.send("large", [torch.zeros((1 << 16) + 1, dtype=torch.uint8)])
    one.close()
    other.close()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["tcp", "shared"])
@pytest.mark.usefixtures("small_pool")
def test_a_side_that_ends_is_an_error_and_no_wait(kind):
    one, other = ends(kind)
    other.close()
    with pytest.raises(PeerGoneError, match="ended in the middle"):
        one.receive()
    with pytest.raises(PeerGoneError):
        _sent_until_it_fails(one)
    one.close()


def _sent_until_it_fails(link):
    for _ in range(100):  # the first bytes go into the system's own memory
        link.send("late", [torch.zeros(1 << 10)])


def test_a_side_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(transport, "PATIENCE_S", 0.05)
    one, other = ends("tcp")
    with pytest.raises(PeerGoneError, match="timed out"):
        one.receive()
    one.close()
    other.close()


def test_what_is_no_message_is_refused():
    one, other = ends("tcp")
    one.channel.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(PeerGoneError, match="no message of a peer"):
        other.receive()
    one.close()
    other.close()
