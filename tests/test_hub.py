"""Loading by hub id, against a small server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from hub_at_hand import FOLDER, at_hub, hub_at_hand


@pytest.fixture
def hub():
    with hub_at_hand() as address:
        yield address


def opened(hub, home, *names):
    """Models opened one after the other, in a process of its own."""
    environment = {**os.environ, **at_hub(hub, home)}
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
