"""A small server on this machine that answers as a hub does with one model, `owner/small`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from regraft.checkpoint.hub import resolve

FOLDER = resolve("specimen:gpt2")[0]
"""What the hub has under the name."""
COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    def answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        files = sorted(p.name for p in FOLDER.iterdir())
        if self.path.startswith("/api/models/owner/small"):
            listing = {
                "id": "owner/small",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            }
            tree = [
                {"type": "file", "path": n, "size": (FOLDER / n).stat().st_size, "oid": "b" * 40}
                for n in files
            ]
            body = json.dumps(tree if "/tree/" in self.path else listing).encode()
            self.answer(body, {"Content-Type": "application/json"})
        elif self.path.startswith("/owner/small/resolve/") and self.path.split("/")[-1] in files:
            body = (FOLDER / self.path.split("/")[-1]).read_bytes()
            self.answer(body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


@contextlib.contextmanager
def hub_at_hand() -> Iterator[str]:
    """The address of the server, as long as it is used."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def at_hub(hub: str, home) -> dict[str, str]:
    """Variables of a process that asks the hub: where it is, is read at import."""
    return {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
