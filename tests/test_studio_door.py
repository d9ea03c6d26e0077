"""Who knocks at a studio's door, what noise does to it, and what is left after hundreds of random clicks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
import socketio

from regraft.studio.limits import Limits
from studio_server import Page
from tools.served_studio import START, Served

pytestmark = pytest.mark.slow
CLICKS = 12_400
"""Of two browsers at once, at random: ten minutes on two cores."""
ROOM = 40
"""MiB that the studio may hold more behind the last quarter of them than behind the first: 7 were measured
over
half as many clicks, and a figure of a few kilobytes kept for each click would be twice as much."""


def test_nobody_without_the_token_or_from_elsewhere_is_told_anything(served):
    base, token = served.address.rsplit("/", 2)[0], served.address.rsplit("/", 2)[1]
    for path, headers in (
        ("/", {}),
        ("/wrong/", {}),
        (f"/{token}/", {"origin": "http://evil.example"}),
        (f"/{token}/", {"host": "evil.example"}),
        ("/_nicegui/", {}),
        (f"/{token}/../", {}),
    ):
        answer = httpx.get(base + path, headers=headers)
        assert (answer.status_code, answer.content) == (403, b"")
    assert httpx.get(served.address).status_code == 200


async def knocking(base):
    """A socket as a browser opens it."""
    client = socketio.AsyncClient(reconnection=False)
    token = urlsplit(base).path.strip("/")
    path = f"{token}/_nicegui_ws/socket.io"
    await client.connect(f"{base}?client_id=none", transports=["websocket"], socketio_path=path)
    return client


def beside(work):
    """Do work with a loop of its own: the browser's runs in this thread."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_message_over_the_limit_is_not_read(served):
    left = {}

    async def sent():
        for size in (1000, Limits().message + 1):
            client = await knocking(served.address)
            await client.emit("log", "x" * size)
            await asyncio.sleep(1)
            left[size] = client.connected
            await client.disconnect()

    beside(lambda: asyncio.run(sent()))
    assert list(left.values()) == [True, False], left
    assert httpx.get(served.address).status_code == 200


def test_noise_on_routes_and_sockets_breaks_nothing(served):
    drawn = random.Random(0)
    base = served.address
    with httpx.Client(timeout=10) as client:
        for _ in range(300):
            path = "".join(drawn.choice("abc/._-%20~?&=\\0é") for _ in range(drawn.randrange(1, 40)))
            method = drawn.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
            body = drawn.randbytes(drawn.randrange(200)) if method in ("POST", "PUT", "PATCH") else None
            prefix = drawn.choice(["", "_nicegui/", "_nicegui_ws/socket.io/", "_nicegui/components/"])
            assert client.request(method, base + prefix + path.lstrip("/"), content=body).status_code < 500

    emitted = []

    async def sent():
        client = await knocking(base)
        for _ in range(300):
            if not client.connected:
                client = await knocking(base)
            name = drawn.choice(["event", "javascript_response", "handshake", "ack", "log", "\0"])
            data = drawn.choice(
                [None, 1, "x" * 5000, [], {}, {"client_id": "none", "id": 1, "listener_id": "a", "args": [1]}]
            )
            # the socket may be closed between a look and a word
            with contextlib.suppress(socketio.exceptions.SocketIOError):
                await client.emit(name, data)
                emitted.append(name)
        await asyncio.sleep(0.5)
        await client.disconnect()

    beside(lambda: asyncio.run(sent()))
    assert emitted, "a studio may close a socket on what is no message of its own, and opens the next"
    assert httpx.get(served.address).status_code == 200


def test_a_second_studio_on_the_port_names_the_first(served, tmp_path):
    port = served.address.split(":")[2].split("/")[0]
    said = subprocess.run(
        [sys.executable, "-c", START, "studio", "--port", port,
         "--runs", str(tmp_path / "r")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert said.returncode == 2
    assert f"port {port} is taken by process {served.process.pid}" in " ".join(said.stderr.split())


CLICKED = ("chip-1", "chip-3", "apply", "undo", "block-2", "block-7", "skip", "repeat", "move-left", "theme")
CLICKED += (
    "pick-mlp_out",
    "pick-resid_post",
    "read",
    "tab-runs",
    "tab-models",
    "tab-prompt",
    "again",
    "python",
)


WATCHED = """
import gc, signal, sys

def tell(*_):
    from regraft.model.model import Model
    for found in gc.get_objects():
        if isinstance(found, Model):
            told = (found.name, hash(found.fingerprint()), found.state()[1])
            print("weights", *told, file=sys.stderr, flush=True)

signal.signal(signal.SIGUSR1, tell)
"""
"""What a studio runs before its command: asked by a signal, it tells a sum of its models' weights and which
hooks hang on them."""


def weights(served):
    """What a watched studio says of its models."""
    told = len(served.said)
    served.process.send_signal(signal.SIGUSR1)
    for _ in range(300):
        time.sleep(0.1)
        found = [line for line in served.said[told:] if line.startswith("weights")]
        if found:
            return found
    raise AssertionError("the studio does not answer the signal")


def test_random_clicks_of_two_browsers_leave_model_and_memory_as_they_were(browser, tmp_path):
    served = Served(tmp_path / "runs", start=WATCHED + START)
    pages = [Page(browser, served), Page(browser, served, width=390, scheme="dark")]
    shown = ("effects", "next-next", "chip-3", "target")
    first = [pages[0].at(name).inner_text() for name in shown]
    untouched = weights(served)
    drawn, seen = random.Random(1), set()

    def click(count):
        for number in range(count):
            page = pages[number % 2]
            where = drawn.choice(CLICKED)
            if drawn.random() < 0.2:
                page.cell(drawn.random(), drawn.random())
            else:
                page.tap(where)
            page.page.wait_for_timeout(30)
            if number % 50 == 0 and page.at("changes").count():
                seen.update(page.at("changes").all_inner_texts())
        for page in pages:
            page.page.keyboard.press("Escape")
            page.page.wait_for_timeout(1000)

    held = []
    for _ in range(4):
        click(CLICKS // 4)
        held.append(served.resident >> 20)
    print("MiB held after each quarter:", held, "changes seen:", len(seen))
    assert len(seen) > 10, "the clicks change something"
    assert held[-1] - held[0] < ROOM, held
    pages[0].tab("prompt")
    pages[0].page.wait_for_timeout(1500)
    pages[0].undo()
    pages[0].page.wait_for_timeout(1500)
    assert [pages[0].at(name).inner_text() for name in shown] == first
    assert weights(served) == untouched
    for page in pages:
        page.close()
    assert "Traceback" not in "".join(served.said), "".join(served.said)[-4000:]
    served.stop()
