"""A saved model sent to a hub: a stand-in takes the files; what cannot be sent is told before the work."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from regraft.cli.main import app, prepared
from regraft.export.hub_upload import check_push, push_folder

FEW = ["--prompts", "14 + 43 =", "The capital of France is", "--tokens", "4"]
MODEL = ["--model", "specimen:gpt2"]


def run(*words):
    return CliRunner().invoke(app, prepared(list(words)))


class Hub(BaseHTTPRequestHandler):
    """A hub that takes files: a repository is made, files are told, then sent in one commit."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        if self.path == "/api/repos/create":
            status = 403 if b"closed" in body else 200
            address = f"http://127.0.0.1:{self.server.server_port}/owner/model"
            answer = {"url": address, "name": "owner/model", "id": "owner/model"}
        elif self.path == "/api/validate-yaml":
            status, answer = 200, {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            status = 403 if "closed" in self.path else 200
            files = [one["path"] for one in json.loads(body)["files"]]
            answer = {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]}
        elif "/commit/" in self.path:
            status = 200
            for line in body.decode().splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.server.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            address = f"http://127.0.0.1:{self.server.server_port}/owner/model/commit/{'a' * 40}"
            answer = {"commitUrl": address, "commitOid": "a" * 40, "success": True}
        else:
            status, answer = 404, {}
        self.reply(status, answer)

    def do_GET(self) -> None:
        self.reply(200, {"id": "owner/model", "sha": "a" * 40, "siblings": []})

    def reply(self, status, answer) -> None:
        told = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_saved_model_is_sent_to_the_hub_with_its_card(hub, tmp_path, monkeypatch):
    address = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = ["--drop", "2", "--save", str(tmp_path / "m"), "--push-to-hub", "owner/model"]
    done = run("prune", *MODEL, *FEW, *words)
    assert done.exit_code == 0, done.output
    assert f"sent to {address}/owner/model" in done.stdout
    assert all(token == "Bearer hf_secret" for _, token in hub.asked)
    there = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir() if p.is_file()}
    assert {"README.md", "model.safetensors", "config.json"} <= set(there)
    assert {name: hub.files[name] for name in there} == there


def test_a_hub_that_refuses_leaves_the_saved_model(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = ["--drop", "2", "--save", str(tmp_path / "m"), "--push-to-hub", "owner/closed"]
    done = run("prune", *MODEL, *FEW, *words)
    assert done.exit_code == 1, done.output
    assert "owner/closed" in done.stderr
    assert "hf_secret" not in done.output
    assert (tmp_path / "m" / "model.safetensors").is_file(), "what was saved stays"
    assert not hub.files


def test_what_cannot_be_sent_is_told_before_the_work(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="there is no token for the hub: log in with"):
        check_push("owner/model")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    check_push("owner/model")
    for wrong in ("model", "a/b/c", "owner/mo del", ""):
        with pytest.raises(ValueError, match="is no repository: write OWNER/NAME"):
            check_push(wrong)
    done = run("prune", *MODEL, "--push-to-hub", "owner/model")
    assert done.exit_code == 2
    assert "--push-to-hub sends a saved model: name its folder with --save" in done.stderr
    for words in (["knockout"], ["graft", "head", "eval"], ["tokenizer", "train"]):
        with pytest.raises(ValueError, match=f"and `regraft {words[-1]}` saves none"):
            prepared([*words, "--push-to-hub", "owner/model"])
    for words in (
        ["graft", "embedding", "bake"],
        ["graft", "head", "export"],
        ["tokenizer", "transplant"],
        ["prune"],
    ):
        assert prepared([*words, "--push-to-hub=owner/model"]) == ["--push-to-hub=owner/model", *words]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no weights"):
        push_folder(tmp_path / "empty", "owner/model")
