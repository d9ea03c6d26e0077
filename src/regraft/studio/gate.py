"""The door of a studio: who may speak to it, and nothing said to anybody else.

The token is the first part of every path, so that pages, scripts and sockets all carry it and no cookie is
needed, which another program on this machine would be sent too. A request whose `Host` is not the studio's
own is refused (a name made to point here), and so is one that another origin's page makes.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
QUIET = (
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Headers of every answer: the address, which holds the token, is told to nobody."""
POLICY_VIOLATED = 1008
"""The code that a socket is closed with, by the standard; before it is open that is a 403."""


def new_token() -> str:
    """A token that nobody guesses: 192 bits."""
    return secrets.token_urlsafe(24)


class Gate:
    """Lets in who has the token, names this host and comes from this origin; 403 without a word otherwise."""

    def __init__(self, app: App, token: str, hosts: tuple[str, ...], port: int):
        self.app, self.prefix = app, f"/{token}"
        self.hosts = {f"{host}:{port}".lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or socket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif not self._may(scope):
            await _refuse(scope, send)
        else:
            # The token is where the application lies, so that every address it makes carries it.
            await self.app({**scope, "root_path": self.prefix}, receive, _with_headers(send))

    def _may(self, scope: Scope) -> bool:
        path = str(scope["path"]).encode("utf-8", "surrogatepass")
        known = hmac.compare_digest(path[: len(self.prefix)], self.prefix.encode())
        if not known or path[len(self.prefix) :][:1] != b"/":
            return False
        headers = [(name.lower(), value.decode("latin-1").lower()) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or hosts[0] not in self.hosts or len(origins) > 1:
            return False
        # A browser names the origin of every socket; who is no browser has no page that could be misled.
        return all(origin in {f"http://{host}" for host in self.hosts} for origin in origins)


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATED})
        return
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send) -> Send:
    async def said(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *QUIET]}
        await send(message)

    return said
