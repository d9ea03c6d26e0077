"""Transcoder adapters on the embedded pair: five weights of sparsity, controls, the hesitation, a step's
time.

`python -m benchmarks.grafts.graft_transcoder`. The fits are those of `regraft graft transcoder pareto` and
stay in `--cache`; what features do with the hesitation is in `hesitation`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.grafts.hesitation import fires_before, hesitation, tells
from benchmarks.grafts.plain_transcoder import plain_losses
from benchmarks.shared import RESULTS, Results
from regraft import TranscoderLoss, load
from regraft.jobs.pareto_job import CONTROLS, PUBLISHED_L1, pareto_transcoder
from regraft.jobs.transcoder_jobs import opened_pair
from regraft.jobs.transcoder_text import worked_sums
from regraft.modules.backbone import carrier_of, mlps_of
from regraft.modules.transcoder import Transcoders, TranscoderShape
from regraft.training.tasks.transcoder_task import TranscoderTask
from regraft.training.trainer import TrainingPlan

FEATURES, PROBLEMS = 1024, 200
"""Features of a block, and held-out problems that are solved."""


def main() -> None:
    """Fit what is missing, measure it, keep the results."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "regraft-transcoder")
    words.add_argument("--steps", type=int, default=300)
    given = words.parse_args()
    torch.set_num_threads(2)
    results = Results(RESULTS / "graft-transcoder.json")
    base, target = load("specimen:qwen3"), load("specimen:tuned")
    plan = TrainingPlan(steps=given.steps, batch=8, warmup=20, rate=1e-3)
    sparsest = given.cache / f"l1-{PUBLISHED_L1[0]:g}" / "graft"

    def fits() -> dict[str, Any]:
        options: dict[str, Any] = {"features": FEATURES, "plan": plan, "solve": PROBLEMS}
        data = pareto_transcoder(base, target, given.cache, controls=list(CONTROLS), **options)
        return {"steps": given.steps, "seconds": minutes(given.cache), **plain_numbers(data.isel(domain=0))}

    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: step_times(base, target),
        "fits": fits,
        "hesitation": lambda: hesitation(opened_pair(sparsest)),
        "fires before": lambda: fires_before(opened_pair(sparsest)),
        "tells": lambda: tells(opened_pair(sparsest)),
    }
    for name, measure in measures.items():
        if name not in results:
            results.add(name, measure())


def plain_numbers(data: Any) -> dict[str, Any]:
    """A result of the sweep as lists by name, with the fits' names."""
    found = {str(name): np.round(values.values, 6).tolist() for name, values in data.data_vars.items()}
    return {"fit": [str(name) for name in data.fit.values], **found}


def minutes(cache: Path) -> dict[str, float]:
    """Seconds between the first and the last step of every fit, by folder."""
    found = {}
    for log in sorted(cache.glob("*/run/log.jsonl")):
        made = (log.parent / "plan.json").stat().st_mtime
        found[log.parent.parent.name] = round(log.stat().st_mtime - made, 1)
    return found


def step_times(base: Any, target: Any, rounds: int = 2) -> dict[str, Any]:
    """Seconds of a training step's losses and gradients by the walk and by whole forward passes in turns, for
    every cutoff as often as training draws it; the plain one is written as one writes it first."""
    carrier = carrier_of(base, target, "target")
    torch.manual_seed(0)
    graft = Transcoders(TranscoderShape(carrier.width, FEATURES, len(mlps_of(carrier))))
    text, weights = worked_sums(target, 400, 3), TranscoderLoss()
    task = TranscoderTask(carrier, target, graft, weights)
    for parameter in task.root.parameters():
        parameter.requires_grad_(False)
    seconds: dict[str, list[list[float]]] = {
        name: [[] for _ in range(task.depth + 1)] for name in ("walk", "whole")
    }
    for turn in range(-1, rounds * (task.depth + 1)):
        batch, cutoff = text.batch(turn + 1, 8), turn % (task.depth + 1)
        task.cutoff = cutoff
        for name, run in (
            ("walk", lambda batch=batch: task.losses(batch)),
            ("whole", lambda batch=batch, c=cutoff: plain_losses(carrier, target, graft, batch, weights, c)),
        ):
            start = time.perf_counter()
            parts = run()
            torch.stack([v for k, v in parts.items() if not k.startswith("_")]).sum().backward()
            # the first turn is for what is made once
            seconds[name][cutoff] += [time.perf_counter() - start] if turn >= 0 else []
            graft.zero_grad()
    by_cutoff = {name: [statistics.median(some) for some in each] for name, each in seconds.items()}
    means = {name: statistics.fmean(each) for name, each in by_cutoff.items()}
    rounded = {f"{name}_by_cutoff": [round(one, 4) for one in each] for name, each in by_cutoff.items()}
    return {**means, **rounded, "times": means["whole"] / means["walk"], "rounds": rounds}


if __name__ == "__main__":
    main()
