"""Loading by hub id, against a small server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from regraft.checkpoint.hub import resolve

FOLDER = resolve("specimen:gpt2")[0]
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


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def opened(hub, home, *names):
    """Models opened one after the other, in a process of its own: where the hub is, is read at import."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    code = (
        f"import regraft\nfor name in {names!r}:\n    m = regraft.load(name)\n"
        "    print(m.name, m.weights_sha256, m.check.replay)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_a_model_comes_from_the_hub_and_a_name_that_it_does_not_know_is_refused(hub, tmp_path):
    done = opened(hub, tmp_path, "owner/small", "owner/other")
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert done.stdout.split() == ["owner/small", digest, "0.0"], done.stderr
    assert done.returncode == 1
    assert "owner/other is neither a folder here nor a model that the hub gave us" in done.stderr
    assert "without a connection, the folder of a model" in done.stderr
