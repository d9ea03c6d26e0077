"""regraft: every cell is a variant of one recording. Recordings are made inside the timed region."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import combinations

import torch

from benchmarks.peers.cases import Task
from benchmarks.peers.worker import Outcome, Peer, serve, timed
from regraft.model.load import load
from regraft.model.model import Model
from regraft.sweeps.metrics import logit_difference
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Replace, Variant, Zero


class Regraft(Peer):
    packages = ("regraft",)

    def load(self, folders: dict[str, str]) -> None:
        self.models: dict[str, Model] = {name: load(folder) for name, folder in folders.items()}

    def grid(self, task: Task) -> Outcome:
        """Record both prompts; one variant for each block and position."""
        model, positions = self.models[task.model], range(len(task.clean))

        def run() -> SweepResult:
            clean, corrupted = model.record(task.clean), model.record(task.corrupted)
            variants = [
                Variant((Replace(f"{block}.resid_pre", clean.pre(block), position),))
                for block in task.blocks
                for position in positions
            ]
            return sweep(corrupted, variants, logit_difference(*task.tokens))

        return outcome(*timed(run), [str(block) for block in task.blocks])

    def heads(self, task: Task) -> Outcome:
        """Zero each head's part of the input of the attention's output projection."""
        model = self.models[task.model]
        edits = [Zero(f"{block}.head.{head}") for block in task.blocks for head in range(task.shape["heads"])]

        def run() -> SweepResult:
            return sweep(
                model.record(task.corrupted), [Variant((e,)) for e in edits], logit_difference(*task.tokens)
            )

        return outcome(*timed(run), [str(block) for block in task.blocks])

    def knockout(self, task: Task) -> Outcome:
        """Leave each block out."""
        routes = [Route.skip(task.shape["blocks"], [block]) for block in task.blocks]
        return self._routes(task, routes, [str(block) for block in task.blocks])

    def swap(self, task: Task) -> Outcome:
        """Exchange the blocks of every pair."""
        count = task.shape["blocks"]
        routes = [Route.swap(count, first, second) for first, second in combinations(range(count), 2)]
        return self._routes(task, routes, ["pairs"])

    def _routes(self, task: Task, routes: Sequence[Route], rows: list[str]) -> Outcome:
        model = self.models[task.model]

        def run() -> SweepResult:
            variants = [Variant(route=route) for route in routes]
            return sweep(model.record(task.corrupted), variants, logit_difference(*task.tokens))

        return outcome(*timed(run), rows)

    def record(self, task: Task) -> Outcome:
        """A recording, the model's own forward, and that without its head, in turn; medians of the
        seconds."""
        model = self.models[task.model]
        ids = torch.tensor([task.corrupted])
        runs = {
            "record": lambda: model.record(task.corrupted),
            "forward": lambda: model.hf(ids, use_cache=False),
            "forward without head": lambda: model.hf.base_model(ids, use_cache=False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(task.repeats):
            for name, run in runs.items():
                seconds[name].append(timed(run)[1])
        middle = {name: statistics.median(times) for name, times in seconds.items()}
        return Outcome({}, middle["record"], detail=middle)


SQUARE = 2048
"""Rows and columns of the product that tells this machine's rate: 48 MiB, out of any cache."""


def matrix_rate() -> float:
    """Multiply-adds a second of one float32 product on as many threads: the best of five."""
    a, b = (torch.randn(SQUARE, SQUARE) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return SQUARE**3 / best


def outcome(result: SweepResult, seconds: float, rows: list[str]) -> Outcome:
    """The values of a sweep in rows, and the work that it counted."""
    values = result.values["logit_difference"][:, 0].reshape(len(rows), -1)
    work = {name: getattr(result.work, name) for name in ("planned", "preparation", "naive", "executed")}
    detail = {"control deviation": result.deviation, "matrix_rate": matrix_rate()}
    return Outcome({row: values[i].tolist() for i, row in enumerate(rows)}, seconds, work, detail)


if __name__ == "__main__":
    serve(Regraft())
