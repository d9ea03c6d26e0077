"""A peer's side of the pipe: JSON commands on stdin, one JSON answer each on stdout.

`{"do": "load", "models": {name: folder}}` is answered with versions, `{"do": "run", "task": {...}}` with
`{"seconds", "values", "work", "detail"}`, where `values` holds a list of numbers for each row of the task.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO, TypeVar

import torch
import transformers

from benchmarks.peers.cases import Task

THREADS = 2
Result = TypeVar("Result")


@dataclass
class Outcome:
    """What a peer measured: values by row, seconds of the timed region, counted work, further times."""

    values: dict[str, list[float]]
    seconds: float
    work: dict[str, int] = field(default_factory=dict)
    detail: dict[str, float] = field(default_factory=dict)


class Peer:
    """A way to run the cases. A subclass has one method for each kind of case that it can do.

    `refused` says for the kinds that it cannot do why not.
    """

    packages: tuple[str, ...] = ()
    refused: dict[str, str] = {}

    def load(self, folders: dict[str, str]) -> None:
        """Open the models; not timed."""
        raise NotImplementedError


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """A result and the seconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def open_hf(folder: str) -> Any:
    """The Hugging Face model of a folder, in float32, without a key/value cache."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    hf.config.use_cache = False
    return hf


def difference(logits_V: torch.Tensor, task: Task) -> torch.Tensor:
    """Logit of the first token minus logit of the second."""
    return logits_V[task.tokens[0]] - logits_V[task.tokens[1]]


def serve(peer: Peer) -> None:
    """Answer commands until stdin closes. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    transformers.logging.disable_progress_bar()
    for line in sys.stdin:
        _answer(answers, _obey(peer, json.loads(line)))


def _obey(peer: Peer, command: dict[str, Any]) -> dict[str, Any]:
    try:
        if command["do"] == "load":
            peer.load(command["models"])
            return {"versions": _versions(peer)}
        task = Task(**command["task"])
        if task.kind in peer.refused:
            return {"refused": peer.refused[task.kind]}
        return asdict(getattr(peer, task.kind)(task))
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _versions(peer: Peer) -> dict[str, str]:
    found = {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
    for package in ("torch", "transformers", *peer.packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "from source"
    return found


def _answer(stream: TextIO, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()
