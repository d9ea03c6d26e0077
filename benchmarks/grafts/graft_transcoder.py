"""Transcoder adapters on the embedded pair: five weights of sparsity, controls, the hesitation, a step's
time.

`python -m benchmarks.grafts.graft_transcoder`. The hesitation: features are ranked by how much more often
they are above zero at the token in front of "Wait" than at the other tokens of the thinking; the first of
them are ablated, or clamped to their mean there, while the adapted model solves held-out problems, beside
random features that are about as frequent.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.grafts.plain_transcoder import plain_losses
from benchmarks.shared import RESULTS, Results
from regraft import load
from regraft.data.records import PADDING
from regraft.export.transcoder_certificate import Standing
from regraft.jobs.transcoder_jobs import (
    evaluate_transcoder,
    fit_transcoder,
    opened_pair,
)
from regraft.jobs.transcoder_text import worked_sums
from regraft.modules.backbone import carrier_of, mlps_of
from regraft.modules.transcoder import Transcoders, TranscoderShape, beside
from regraft.specimens import almanac
from regraft.training.tasks.transcoder_task import TranscoderLoss, TranscoderTask, inputs_of, split_batch
from regraft.training.trainer import TrainingPlan

WEIGHTS = (0.01, 0.003, 0.001, 0.0003, 0.0001)
"""The published weights of the features' sizes."""
FEATURES = 1024
PROBLEMS, CHOSEN = 200, (1, 4, 16, 64)
"""Held-out problems, and numbers of features that are ablated or clamped."""
WAIT, THEN = " Wait", " Then"
"""How a hesitation begins, and how the text goes on without one."""


def main() -> None:
    """Fit what is missing, measure it, keep the results."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "regraft-transcoder")
    words.add_argument("--steps", type=int, default=300)
    given = words.parse_args()
    torch.set_num_threads(2)
    results = Results(RESULTS / "graft-transcoder.json")
    base, target = load("specimen:qwen3"), load("specimen:tuned")
    runs: dict[str, tuple[str, TranscoderLoss]] = {
        f"l1 {weight:g}": ("target", TranscoderLoss(l1=weight)) for weight in WEIGHTS
    }
    runs["l1 0.001, base's backbone"] = ("base", TranscoderLoss(l1=0.001))
    alone = TranscoderLoss(kl=0, bridge=0, nmse=0, l1=0.001, next_token=1)
    runs["l1 0.001, next-token loss alone"] = ("target", alone)
    for name, (backbone, weights) in runs.items():
        folder = given.cache / name.replace(" ", "-").replace(",", "").replace("'", "")
        if name in results:
            continue
        start = time.perf_counter()
        if not (folder / "graft").exists():
            plan = TrainingPlan(steps=given.steps, batch=8, warmup=20, rate=1e-3)
            options: dict[str, Any] = {"backbone": backbone, "features": FEATURES, "weights": weights}
            fit_transcoder(base, target, folder, plan=plan, **options)
        took = time.perf_counter() - start
        data = evaluate_transcoder(folder / "graft").isel(domain=0)
        told = {
            "seconds": took, "steps": given.steps,
            **{f"loss_{m}": float(data.loss.sel(model=m)) for m in map(str, data.model.values)},
            "recovered": float(data.recovered), "recovered_from_base": float(data.recovered_from_base),
            "kl": float(data.kl.sel(model="adapted")), "kl_hybrid": float(data.kl.sel(model="hybrid")),
            "active": data.active.values.round(2).tolist(), "never": data.never.values.round(4).tolist(),
            "nmse": data.nmse.values.round(6).tolist(), "off_difference": float(data.off_difference),
        }  # fmt: skip
        results.add(name, told)
    folder = given.cache / "l1-0.001" / "graft"
    if "hesitation" not in results:
        results.add("hesitation", hesitation(opened_pair(folder)))
    if "step" not in results:
        results.add("step", step_times(base, target))


@torch.no_grad()
def hesitation(standing: Standing) -> dict[str, Any]:
    """Rates of hesitations and of right answers with features ablated, clamped, or neither."""
    rates, means, frequency = _before_wait(standing)
    order = np.argsort(-rates, axis=None, kind="stable")
    places = [tuple(int(i) for i in np.unravel_index(flat, rates.shape)) for flat in order[: max(CHOSEN)]]
    problems = _problems()
    told: dict[str, Any] = {
        "features": [f"{b}.feature.{f}" for b, f in places[:16]],
        "without any": _solve(standing, problems, {}),
        "target": _solve(replace(standing, graft=None), problems, {}),  # type: ignore[arg-type]
    }
    draw = np.random.default_rng(0)
    for count in CHOSEN:
        chosen = places[:count]
        often = [frequency[place] for place in chosen]
        others = [_like(frequency, share, draw, set(chosen)) for share in often]
        told[f"ablated {count}"] = _solve(standing, problems, {"scaled": dict.fromkeys(chosen, 0.0)})
        told[f"random ablated {count}"] = _solve(standing, problems, {"scaled": dict.fromkeys(others, 0.0)})
        clamps = {place: float(means[place]) for place in chosen}
        told[f"clamped {count}"] = _solve(standing, problems, {"clamped": clamps})
        random_clamps = {place: float(means[place]) for place in others}
        told[f"random clamped {count}"] = _solve(standing, problems, {"clamped": random_clamps})
    return told


def _before_wait(standing: Standing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every feature: what it adds to the difference of the scores of " Wait" and " Then" in front of a
    "Wait" (value times gradient, mean), its mean value there, and how often it is above zero at all."""
    text = worked_sums(standing.target, 400, 31)
    wait, then = (
        standing.target.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in (WAIT, THEN)
    )
    shape = (standing.graft.shape.blocks, standing.graft.shape.features)
    adds, value, above = (np.zeros(shape) for _ in range(3))
    waits, tokens = 0, 0
    with beside(standing.carrier.hf, mlps_of(standing.carrier), standing.graft):
        for start in range(0, len(text), 16):
            ids_BT, kind_BT = split_batch(text.rows(range(start, min(start + 16, len(text)))))
            before_BT, real_BT = (ids_BT.roll(-1, 1) == wait) & (kind_BT > PADDING), kind_BT > PADDING
            with torch.enable_grad(), standing.graft.hearing() as heard:
                logits_BTV = standing.carrier.run(**inputs_of(ids_BT, kind_BT)).logits
                difference = (logits_BTV[..., wait] - logits_BTV[..., then])[before_BT].sum()
            features = [own[0][1] for own in heard]
            gradients = torch.autograd.grad(difference, features)
            for block, (found_BTF, slope_BTF) in enumerate(zip(features, gradients, strict=True)):
                here = found_BTF.detach()
                adds[block] += (here * slope_BTF)[before_BT].sum(0).numpy()
                value[block] += here[before_BT].sum(0).numpy()
                above[block] += (here > 0)[real_BT].sum(0).numpy()
            waits, tokens = waits + int(before_BT.sum()), tokens + int(real_BT.sum())
    return adds / waits, value / waits, above / tokens


def _like(
    frequency: np.ndarray, share: float, draw: np.random.Generator, taken: set[tuple[int, ...]]
) -> tuple[int, int]:
    """A feature about as frequent, drawn among the hundred nearest that were not chosen."""
    order = np.argsort(np.abs(frequency - share), axis=None, kind="stable")[:100]
    free = [tuple(int(i) for i in np.unravel_index(flat, frequency.shape)) for flat in order]
    free = [place for place in free if place not in taken]
    block, feature = free[int(draw.integers(len(free)))]
    return block, feature


def _problems() -> list[tuple[str, int]]:
    """Held-out problems up to the thinking, with their answers."""
    drawn, made = random.Random(4711), []
    for _ in range(PROBLEMS):
        text = almanac.reasoning(drawn)
        answer = int(text.rpartition("Answer: ")[2].rstrip("."))
        made.append((text.partition(" <think>")[0] + " <think>", answer))
    return made


def _solve(standing: Standing, problems: list[tuple[str, int]], switched: dict[str, Any]) -> dict[str, float]:
    """Share of the problems with a hesitation, and with the right answer, written greedily."""
    hf = standing.target.hf if standing.graft is None else standing.carrier.hf
    texts: dict[int, str] = {}
    with torch.no_grad(), ExitStack() as stack:
        if standing.graft is not None:
            stack.enter_context(beside(hf, mlps_of(standing.carrier), standing.graft))
            stack.enter_context(standing.graft.switch(**switched))
        for numbers in _of_one_length(standing.target.tokenizer, [problem for problem, _ in problems]):
            found = _written(hf, standing.target.tokenizer, [problems[n][0] for n in numbers])
            texts |= dict(zip(numbers, found, strict=True))
    right = sum(f"Answer: {answer}." in texts[n] for n, (_, answer) in enumerate(problems))
    return {"waits": sum("Wait" in text for text in texts.values()) / len(texts), "right": right / len(texts)}


def _of_one_length(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Numbers of texts, those of one length together, so that no batch has padding."""
    found: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        found.setdefault(len(tokenizer(text, add_special_tokens=False)["input_ids"]), []).append(number)
    return list(found.values())


def _written(hf: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    ids = torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])
    found = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=72, do_sample=False)
    return tokenizer.batch_decode(found[:, ids.shape[1] :])


def step_times(base: Any, target: Any, rounds: int = 5) -> dict[str, float]:
    """Seconds of a training step's losses and gradients, by the walk and by whole forward passes in turns."""
    carrier = carrier_of(base, target, "target")
    torch.manual_seed(0)
    graft = Transcoders(TranscoderShape(carrier.width, FEATURES, len(mlps_of(carrier))))
    text, weights = worked_sums(target, 200, 3), TranscoderLoss()
    task = TranscoderTask(carrier, target, graft, weights)
    for parameter in task.root.parameters():
        parameter.requires_grad_(False)
    seconds: dict[str, list[float]] = {"walk": [], "whole": []}
    cutoffs = np.random.default_rng(0).integers(0, task.depth + 1, rounds + 1)
    for turn, cutoff in enumerate(cutoffs.tolist()):
        batch = text.batch(turn, 8)
        task.cutoff = cutoff
        for name, run in (
            ("walk", lambda batch=batch: task.losses(batch)),
            ("whole", lambda batch=batch, c=cutoff: plain_losses(carrier, target, graft, batch, weights, c)),
        ):
            start = time.perf_counter()
            parts = run()
            torch.stack([v for k, v in parts.items() if not k.startswith("_")]).sum().backward()
            seconds[name] += [time.perf_counter() - start] if turn else []
            graft.zero_grad()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "times": medians["whole"] / medians["walk"], "rounds": rounds}


if __name__ == "__main__":
    main()
