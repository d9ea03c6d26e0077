"""A studio served: the page, the door in front of it, the port."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui

from regraft.core.defaults import STUDIO_PORT
from regraft.core.registry import REFUSALS
from regraft.studio.gate import Gate, new_token
from regraft.studio.limits import Limits, sentence
from regraft.studio.port import in_address, listening, names_of
from regraft.studio.studio_state import Studio
from regraft.studio.tabs import build


def serve(
    model: str,
    runs: Path,
    folders: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = STUDIO_PORT,
    limits: Limits | None = None,
    tell: Callable[[str], object] = print,
) -> None:
    """Serve a studio until it is stopped.

    Args:
        model: the first model.
        runs: the folder that runs are written to.
        folders: others that a page may name.
        host: where to listen; loopback unless somebody else is meant to come.
        port: of the page; 0 takes one that is free.
        limits: of prompts, queue and pages.
        tell: is given the address.

    Raises:
        RefusedError: the port is taken, by whom it says.
    """
    sock = listening(host, port)
    port = int(sock.getsockname()[1])
    token = new_token()
    studio = Studio(runs, folders, limits)
    inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    failed: list[str] = []

    async def start() -> None:
        try:
            await studio.open(model)
        except REFUSALS as error:
            failed.append(sentence(error))
        tell(f"the studio is at http://{in_address(host)}:{port}/{token}/ (Ctrl-C ends it)")

    nicegui_app.on_startup(start)
    nicegui_app.on_shutdown(studio.end)
    build(studio, failed)
    ui.run_with(inner, title="regraft studio", dark=None, show_welcome_message=False, reconnect_timeout=3.0)
    config = uvicorn.Config(
        Gate(inner, token, names_of(host), port),
        log_level="error",
        ws_max_size=studio.limits.message,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[sock])
