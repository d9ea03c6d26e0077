"""Headers on disk and at a hub: range requests alone, and damage refused with a sentence."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from header_files import header_file, speech
from regraft.checkpoint.dissection import dissect
from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import CheckpointError
from regraft.reporting.anatomy_drawing import svg


def sharded(folder, drop=""):
    tensors = {f"layers.{i}.attn.q_proj.weight": (8, 8) for i in range(4)} | {"embed.weight": (9, 8)}
    names = list(tensors)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, some in parts.items():
        header_file(folder / file, {name: tensors[name] for name in some if name != drop})
    weight_map = {name: file for file, some in parts.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        dissect(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_checkpoints_are_refused_with_a_sentence(tmp_path):
    folder = sharded(tmp_path / "missing")
    (folder / "b.safetensors").unlink()
    assert "lacks 1 of its 2 shards: b.safetensors" in refused(folder)
    assert "names embed.weight (and 0 more), which no shard holds" in refused(
        sharded(tmp_path / "lost", "embed.weight")
    )
    good = header_file(tmp_path / "good" / "model.safetensors", {"a": (4, 4), "b": (4,)}).read_bytes()

    def broken(name, data):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)
        return refused(tmp_path / name)

    assert "header length does not fit" in broken("cut", good[:40])
    assert "header length does not fit" in broken("absurd", struct.pack("<Q", 2**63 - 1) + good[8:])
    assert "header length does not fit" in broken("empty", b"")
    nested = b"[" * 100_000
    assert "its header cannot be read" in broken("deep", struct.pack("<Q", len(nested)) + nested)
    overlapping = good.replace(b'"data_offsets": [32, 40]', b'"data_offsets": [30, 38]')
    assert overlapping != good
    assert "tensor b does not lie where its shape says" in broken("overlap", overlapping)
    assert "is cut short" in broken("short", good[:-4])
    assert "holds no safetensors file" in refused(_made(tmp_path / "none"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    assert "only as a pickle (pytorch_model.bin)" in refused(tmp_path / "pickled")
    assert "is not a folder" in refused(tmp_path / "no" / "such" / "place")
    listed = good.replace(b'"dtype": "BF16"', b'"dtype": ["F32"]', 1)
    assert "its entry for tensor a cannot be read" in broken(
        "listed", struct.pack("<Q", len(listed) - len(good) + struct.unpack("<Q", good[:8])[0]) + listed[8:]
    )
    digits = b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'
    assert "its header cannot be read" in broken("digits", struct.pack("<Q", len(digits)) + digits + b"1234")
    strange = header_file(
        tmp_path / "strange" / "m.safetensors", {"layers.².q": (4, 4), "bad\ud800name": (4,)}
    )
    assert strange.is_file()
    (found,) = dissect(str(tmp_path / "strange"))
    assert svg("strange", [found]).encode()
    (tmp_path / "strange" / "config.json").write_text("[1]")
    assert "config.json of" in refused(tmp_path / "strange")
    _made(tmp_path / "bad")
    header_file(tmp_path / "bad" / "m.safetensors", {"a": (4, 4)})
    (tmp_path / "bad" / "config.json").write_text("{")
    assert "config.json is damaged" in refused(tmp_path / "bad")


def _made(folder):
    folder.mkdir()
    return folder


def test_an_absurd_header_is_not_read_into_memory(tmp_path):
    """A file that says its header is 60 GB long, and is as long: refused by the bound, not by the memory."""
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 60_000_000_000))
        stream.truncate(60_000_000_100)
    assert "header length does not fit" in refused(tmp_path)


# a hub
# ----------------------------------------------------------------------------------------------------


class RangeHub(BaseHTTPRequestHandler):
    """Answers as the hub does for one repository, and counts the bytes of weight files that it sends."""

    folder: Path
    sent = 0
    ranges = True

    def do_GET(self) -> None:
        files = sorted(
            file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file()
        )
        if self.path.startswith("/api/models/owner/speech"):
            tree = [
                {"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "b" * 40}
                for n in files
            ]
            return self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        name = self.path.partition("/resolve/main/")[2]
        if not self.path.startswith("/owner/speech/resolve/main/") or name not in files:
            return self.answer(404, b"", {})
        file, size = self.folder / name, (self.folder / name).stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not self.ranges or asked is None:
            return self.answer(200, b"x" * 10, {})
        start, stop = int(asked[1]), min(int(asked[2]) + 1, size)
        with file.open("rb") as stream:
            stream.seek(start)
            body = stream.read(stop - start)
        type(self).sent += len(body) * name.endswith(".safetensors")
        return self.answer(206, body, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def range_hub(tmp_path):
    folder = tmp_path / "repository"
    header_file(folder / "model.safetensors", speech())
    (folder / "config.json").write_text('{"model_type": "nobody_knows"}')
    handler = type("Handler", (RangeHub,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


ONE_AFTER_THE_OTHER = """
import sys
from regraft.cli.main import main
codes, lines = [], sys.argv[1:]
for line in lines:
    sys.argv = ["regraft", "inspect", *line.split("|"), "--weights-only"]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
    print(end="\f")
sys.exit(max(codes))
"""


def inspected(hub, *lines):
    """Command lines whose words are parted by bars, in one process of its own, since an address of a hub is
    read once, at import, which takes seconds; a form feed ends what each prints."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", ONE_AFTER_THE_OTHER, *lines]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_hub_is_asked_for_headers_only(range_hub, tmp_path):
    endpoint, handler = range_hub
    done = inspected(endpoint, "owner/speech|--json", f"owner/speech|--out|{tmp_path / 'drawn'}")
    assert done.returncode == 0, done.stderr
    told, again, _ = done.stdout.split("\f")
    (found,) = json.loads(told)["components"]
    assert {stack["path"]: stack["count"] for stack in found["stacks"]} == {"layers": 36, "fast_layers": 4}
    assert found["bytes"] > 8_000_000_000
    assert handler.sent < 200_000, "of nine gigabytes, the header alone, for both"
    assert (tmp_path / "drawn" / "anatomy.svg").read_text().startswith("<svg")
    assert "fast_layers: blocks" in again


@pytest.mark.slow
def test_a_hub_that_sends_no_ranges_or_knows_nothing_is_refused(range_hub):
    endpoint, handler = range_hub
    unknown = inspected(endpoint, "owner/other")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith(
        "regraft: owner/other is neither a folder here nor a repository that the hub shows us"
    )
    assert unknown.stderr.count("\n") == 1
    handler.ranges = False
    whole = inspected(endpoint, "owner/speech")
    assert whole.returncode == 1
    assert "the hub does not send a part of" in whole.stderr


def test_the_drawing_of_a_specimen_and_its_refusals(tmp_path):
    from typer.testing import CliRunner

    from regraft.cli.main import app

    run = CliRunner().invoke
    done = run(app, ["inspect", "specimen:qwen3", "--weights-only", "--out", str(tmp_path / "drawn")])
    assert done.exit_code == 0, done.output
    assert (
        json.loads((tmp_path / "drawn" / "anatomy.json").read_text())["components"][0]["parameters"]
        == 6_297_024
    )
    again = run(app, ["inspect", "specimen:qwen3", "--weights-only", "--out", str(tmp_path / "drawn")])
    assert again.exit_code == 2
    assert "is not empty" in again.output
    assert run(app, ["inspect", "specimen:qwen3", "--out", str(tmp_path / "x")]).exit_code == 2
    assert resolve("specimen:qwen3")[1] == "specimen:qwen3"
