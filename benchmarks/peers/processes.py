"""The peers' environments, and the processes that run the peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Task

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
PACKAGES = {"tl": "transformer_lens==4.3.0", "nn": "nnsight==0.8.1", "mk": "mergekit==0.1.5"}
SCRIPTS = {
    "regraft": "peer_regraft",
    "before": "peer_regraft",
    "hooks": "peer_hooks",
    "tl": "peer_transformerlens",
    "nn": "peer_nnsight",
}


def environment(name: str, given: dict[str, Path]) -> Path:
    """The Python of a peer: this one, a given environment's, or that of `.env-<name>`, made where it is
    missing."""
    if name not in PACKAGES:
        return Path(sys.executable)
    folder = given.get(name, HERE / f".env-{name}")
    python = folder / "bin" / "python"
    if name not in given and not (folder / ".ready").exists():
        make_environment(name, folder)
    return python


def make_environment(name: str, folder: Path) -> None:
    """Create an environment with the project's torch and one peer. torch goes first, so that its build is
    kept."""
    print(f"making {folder.name} for {PACKAGES[name]} ...", flush=True)
    torch = next(line.strip() for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-c", str(CONSTRAINTS), torch], check=True)
    subprocess.run([*pip, torch, PACKAGES[name], "plotly", "pandas"], check=True)
    (folder / ".ready").touch()


def source_of(revision: str, folder: Path) -> Path:
    """The source of regraft as it was at a revision, laid into a folder.

    Raises:
        Failed: there is no such revision here.
    """
    folder.mkdir()
    tar = subprocess.run(["git", "archive", revision, "src"], cwd=ROOT, capture_output=True, check=False)
    if tar.returncode:
        raise Failed(tar.stderr.decode().strip())
    subprocess.run(["tar", "-x", "-C", str(folder)], input=tar.stdout, check=True)
    return folder / "src"


def quiet_variables() -> dict[str, str]:
    """The variables of every process that is measured: offline, no GPU, regraft's source on the path."""
    own = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    return {**os.environ, **own}


class Failed(Exception):
    """A peer could not do what it was asked; the reason fits into a table."""


class Worker:
    """A peer's process. Its stderr goes to a file beside the models."""

    def __init__(self, name: str, python: Path, folder: Path, revision: str = ""):
        self.name, self.log = name, folder / f"{name}.log"
        variables = quiet_variables()
        if name == "regraft":
            variables["PYTHONPATH"] = str(ROOT / "src")
        if name == "before":
            variables["PYTHONPATH"] = str(source_of(revision, folder / name))
        self.process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.peers.{SCRIPTS[name]}"], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True,
            env=variables,
        )  # fmt: skip

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            Failed: the peer refuses this, or broke.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            lines = self.log.read_text().strip().splitlines()
            raise Failed(f"stopped: {lines[-1] if lines else 'without a word'}")
        answer = json.loads(line)
        if "refused" in answer or "error" in answer:
            raise Failed(answer.get("refused") or answer["error"])
        return answer

    def run(self, task: Task) -> dict[str, Any]:
        """Run a task; see `worker.Outcome` for the answer."""
        return self.ask({"do": "run", "task": asdict(task)})

    def close(self) -> None:
        """Close stdin, which ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
