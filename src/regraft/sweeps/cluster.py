"""Shares of a sweep measured by the machines of a Ray cluster; results come back to whoever asked.

Every worker keeps a copy of the model, opened from its own path or hub name, or from files that were shipped
once. Workers that die are started again and their shares with them.
"""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch

from regraft.core.progress import advance
from regraft.model.cpu_pack import packed_layer, packing_applies
from regraft.model.load import load
from regraft.model.model import Model
from regraft.model.recorded_again import Given, recorded_again
from regraft.model.recording import Recording
from regraft.sweeps.metrics import AnyMetric
from regraft.sweeps.several_devices import Job, on_cpu, served
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant

SMALL = 1 << 31
"""Bytes of files that are shipped to workers that do not have them: 2 GiB, what an object store holds on a
laptop."""
LOCAL = "local"
Asked = TypeVar("Asked")


class ClusterError(ValueError):
    """A cluster that cannot be used; the message says why and what to do."""


class Worker:
    """One copy of a model on some machine of the cluster; a Ray actor."""

    def __init__(
        self, source: str, opening: Mapping[str, Any], threads: int, packed: Sequence[str], sha256: str,
        shipped: Mapping[str, bytes] | None,
    ):  # fmt: skip
        torch.set_num_threads(threads)
        self.where = None
        self.model = self._opened(source, dict(opening), sha256, shipped)
        names = {name: module for name, module in self.model.hf.named_modules()}
        chosen = [names[name] for name in packed if packing_applies(names[name])]
        self.model.packed = {module: packed_layer(module) for module in chosen}
        self.recordings: dict[str, Recording] = {}

    def _opened(
        self, source: str, opening: dict[str, Any], sha256: str, shipped: Mapping[str, bytes] | None
    ) -> Model:
        """The model under its own name here, or from the files that came along."""
        here = source.startswith("specimen") or Path(source).expanduser().exists()
        if shipped is not None and not here:
            self.where = tempfile.TemporaryDirectory(prefix="regraft-")
            for name, content in shipped.items():
                (Path(self.where.name) / name).write_bytes(content)
            made = load(self.where.name, pack=False, **opening)
            made.name, made.source = Path(source).name, source  # not those of a folder that is gone tomorrow
            return made
        return load(source, pack=False, **opening)

    def told(self) -> dict[str, str]:
        """What must be the same on every worker, and what machine this is."""
        return {
            **versions(),
            "weights_sha256": self.model.weights_sha256,
            "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "node": platform.node(),
        }

    def measure(
        self, key: str, given: Given, variants: Sequence[Variant], metrics: Sequence[AnyMetric], exact: bool
    ) -> SweepResult:
        """One share."""
        if key not in self.recordings:
            self.recordings = {key: recorded_again(self.model, given)}
        return on_cpu(sweep(self.recordings[key], list(variants), list(metrics), exact=exact))

    def run(self, function: Callable[..., Any], words: Sequence[Any]) -> Any:
        """What a function makes of this copy of the model."""
        return function(self.model, *words)


class Cluster:
    """A cluster whose workers hold a model.

    Args:
        model: what they open; it must have a name that they can open, or files that can be shipped.
        address: `local`, or that of a cluster that runs.
        opening: how the model was opened: device, dtype, attention, remote_code.
        workers: how many; by default one for each GPU, or for each node.

    Raises:
        ClusterError: Ray is not installed, no cluster is there, the model is a live one, or a worker has
            other versions or other weights.

    Examples:
        >>> workers = regraft.Cluster(regraft.load("specimen:qwen3"), "local", workers=1)
        >>> clean = workers.model.record("It is dark")
        >>> cells = [regraft.Zero(f"{b}.mlp_out") for b in range(12)]
        >>> regraft.sweep(clean, cells, regraft.loss(), cluster=workers).values["loss"].shape
        torch.Size([12, 1])
        >>> workers.close()
    """

    def __init__(
        self, model: Model, address: str, opening: Mapping[str, Any] | None = None, workers: int = 0
    ):
        if model.folder is None:
            raise ClusterError(
                f"{model.name} is a live model, which the workers of a cluster cannot open: save it to a"
                " folder (save_pretrained) and open that"
            )
        if model.streamed is not None:
            raise ClusterError("a streamed model is read by one process: open it whole on a cluster")
        self.model, self.taken_of = model, model.fingerprint()
        self._keys: WeakKeyDictionary[Recording, str] = WeakKeyDictionary()
        self.ray = _connected(address)
        self.notes: list[str] = []
        names = {module: name for name, module in model.hf.named_modules()}
        threads, packed = torch.get_num_threads(), sorted(names[module] for module in model.packed)
        # Held as long as the workers: one that dies is made again from it. This machine's have the files.
        ships = address != LOCAL and not model.source.startswith("specimen") and _small(model)
        self._shipped = self.ray.put(_files(model.folder)) if ships else None
        source = model.source if model.source.startswith("specimen") else str(model.folder)
        source = source if Path(source).exists() or source.startswith("specimen") else model.source
        actor = self.ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)(Worker)
        gpus = int(self.ray.cluster_resources().get("GPU", 0))
        count = workers or gpus or len([node for node in self.ray.nodes() if node["Alive"]])
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD", **({"num_gpus": 1} if gpus else {})}
        self.workers = [
            actor.options(**options).remote(
                source, dict(opening or {}), threads, packed, model.weights_sha256, self._shipped
            )
            for _ in range(count)
        ]
        self._check(model)

    def _check(self, model: Model) -> None:
        try:
            found: list[dict[str, str]] = self.ray.get([worker.told.remote() for worker in self.workers])
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            self.close()
            raise ClusterError(f"a worker cannot open {model.name}: {reason}") from error
        wanted = {**versions(), "weights_sha256": model.weights_sha256}
        for told in found:
            for key, mine in wanted.items():
                if told[key] != mine:
                    self.close()
                    what = (
                        "other weights under the same name" if key == "weights_sha256" else f"another {key}"
                    )
                    raise ClusterError(
                        f"the worker on {told['node']} has {what} ({told[key][:12]}; here {mine[:12]}): make"
                        " them the same"
                    )
        kinds = sorted({told["machine"] for told in found})
        if len(kinds) > 1:
            self.notes.append(f"measured by machines of several kinds ({', '.join(kinds)})")

    def serves(self, recording: Recording) -> bool:
        """Whether the workers hold the recording's model as it is."""
        return served(recording, self.model, self.taken_of)

    def measured(
        self, recording: Recording, shares: Sequence[Job], metrics: Sequence[AnyMetric], exact: bool
    ) -> Iterator[tuple[int, SweepResult]]:
        """Each share's number and result, in the order in which they come back."""
        given = self.ray.put(Given.of(recording))
        key = self._keys.setdefault(recording, uuid4().hex)

        def ask(worker: Any, job: Job) -> Any:
            return worker.measure.remote(key, given, list(job[1]), list(metrics), exact)

        for done, (job, future) in enumerate(self._in_turns(shares, ask)):
            result: SweepResult = self.ray.get(future)
            result.notes += [note for note in self.notes if note not in result.notes]
            advance("shares", done + 1, len(shares))
            yield job[0], result

    def each(self, function: Callable[..., Any], jobs: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        """What a function of an importable module makes of a worker's model and of each job's words, as the
        results come back: the job's number, and None where the function failed there."""
        numbered = list(enumerate(jobs))
        for (number, _), future in self._in_turns(numbered, lambda w, job: w.run.remote(function, job[1])):
            try:
                yield number, self.ray.get(future)
            except self.ray.exceptions.RayTaskError:
                yield number, None

    def _in_turns(self, jobs: Sequence[Asked], ask: Callable[[Any, Asked], Any]) -> Iterator[Any]:
        """Each job with the worker's answer, as they come; every worker has one job at a time."""
        waiting, idle = list(jobs), list(self.workers)
        running: dict[Any, tuple[Asked, Any]] = {}
        while waiting or running:
            while waiting and idle:
                job, worker = waiting.pop(0), idle.pop()
                running[ask(worker, job)] = (job, worker)
            (future, *_), _ = self.ray.wait(list(running))
            job, worker = running.pop(future)
            idle.append(worker)
            yield job, future

    def close(self) -> None:
        """Let the workers go, and a cluster that was started here."""
        self.ray.shutdown()


def versions() -> dict[str, str]:
    """Versions that must be the same for the same numbers."""
    return {name: version(name) for name in ("regraft", "torch", "transformers")}


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ClusterError("Ray is not installed: `pip install 'regraft[cluster]'`") from error
    try:
        if not ray.is_initialized():
            ray.init(
                address=None if address == LOCAL else address,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False, logging_level=logging.ERROR,
            )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no cluster answers at {address}: start one with `ray start --head`, or use --cluster local"
        ) from error
    return ray


def _small(model: Model) -> bool:
    assert model.folder is not None
    return sum(file.stat().st_size for file in model.folder.iterdir() if file.is_file()) <= SMALL


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
