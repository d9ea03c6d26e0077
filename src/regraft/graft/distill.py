"""One trainer for all grafts: the frozen model teaches the part that stands in for one of its own.

Teacher and student are one model and share every weight of the trunk; only the graft's parameters are in the optimiser.
Runs under Hugging Face Accelerate (one process or several). Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.graft.checkpoint import newest, restore, write_checkpoint
from regraft.graft.windows import Windows
from regraft.model.progress import advance


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train: steps, sequences a step, rate, schedule, precision, and when to write and to stop.

    `patience` stops where the smoothed loss has not fallen for so many steps; 0 never does.
    """

    steps: int = 1000
    batch: int = 8
    rate: float = 2e-3
    warmup: int = 50
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip: float = 1.0
    weight_decay: float = 0.0
    save_every: int = 200
    patience: int = 0

    def scale(self, step: int) -> float:
        """The rate at a step, in times the highest: a straight rise, then half a cosine to nothing."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


class Task(Protocol):
    """What is trained: the graft, the model that it stands in, and the parts of the loss on a batch."""

    graft: nn.Module
    root: nn.Module

    def losses(self, ids_BT: Tensor) -> Mapping[str, Tensor]:
        """Parts of the loss by name, weighted, to be added up; names that begin with _ are measured and not trained on."""
        ...


class NotANumberError(RuntimeError):
    """The loss is no number; step and batch were kept."""


def train(task: Task, windows: Windows, plan: Plan, folder: Path, watch: Callable[[int], None] | None = None) -> list[dict]:
    """Train a graft; continue where an earlier run in `folder` was broken off. Returns a line of measurements a step.

    `watch` is called behind every step. On one device a run that was broken off ends with the weights of one that was not.

    Raises:
        NotANumberError: the loss is NaN or infinite.
        ValueError: the folder holds a run with another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _same_plan(plan, folder)
    accelerator = Accelerator(mixed_precision=plan.precision)
    with only_trainable(task.root, task.graft):
        parameters = [p for p in task.graft.parameters() if p.requires_grad]
        plain = torch.optim.AdamW(parameters, plan.rate, weight_decay=plan.weight_decay)
        task.graft, optimiser = accelerator.prepare(task.graft, plain)
        started = restore(newest(folder), accelerator.unwrap_model(task.graft), plain) if newest(folder) else 0
        history: list[dict] = _read_lines(folder / "log.jsonl", started)
        best, best_step = math.inf, started
        for step in range(started, plan.steps):
            line = _step(task, windows, plan, step, accelerator, optimiser, parameters, folder)
            history.append(line)
            if accelerator.is_main_process:
                with (folder / "log.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
                    write_checkpoint(folder, step + 1, accelerator.unwrap_model(task.graft), plain)
            advance(f"training ({line['loss']:.3f})", step + 1, plan.steps)
            if watch is not None:
                watch(step)
            smooth = sum(entry["loss"] for entry in history[-20:]) / len(history[-20:])
            if smooth < best:
                best, best_step = smooth, step
            if plan.patience and step - best_step >= plan.patience:
                break
        task.graft = accelerator.unwrap_model(task.graft)
    return history


def _step(task, windows, plan, step, accelerator, optimiser, parameters, folder) -> dict:
    """One step: gradients added up over its parts, clipped, applied."""
    began = time.perf_counter()
    for group in optimiser.param_groups:
        group["lr"] = plan.rate * plan.scale(step)
    parts: dict[str, float] = {}
    share = accelerator.num_processes
    for part in range(plan.accumulate):
        number = (step * plan.accumulate + part) * share + accelerator.process_index
        ids_BT = windows.batch(number, plan.batch).to(accelerator.device)
        with accelerator.autocast():
            losses = task.losses(ids_BT)
        total = torch.stack([value for name, value in losses.items() if not name.startswith("_")]).sum()
        if not bool(torch.isfinite(total)):
            save_file({"ids": ids_BT.cpu()}, folder / f"not-a-number-{step}.safetensors")
            raise NotANumberError(
                f"the loss is {float(total.detach())} at step {step}: its batch is kept as not-a-number-{step}.safetensors"
            )
        accelerator.backward(total / plan.accumulate)
        for name, value in losses.items():
            parts[name.removeprefix("_")] = parts.get(name.removeprefix("_"), 0.0) + float(value.detach()) / plan.accumulate
        parts["loss"] = parts.get("loss", 0.0) + float(total.detach()) / plan.accumulate
    accelerator.clip_grad_norm_(parameters, plan.clip)
    optimiser.step()
    optimiser.zero_grad()
    tokens = plan.batch * windows.length * plan.accumulate * share
    return {"step": step, **parts, "tokens_per_second": tokens / (time.perf_counter() - began)}


@contextmanager
def only_trainable(root: nn.Module, graft: nn.Module) -> Iterator[None]:
    """While inside, nothing of the model takes a gradient but the graft; behind it, no other tensor has changed by a bit."""
    own = {id(p) for p in graft.parameters()}
    trunk = [p for p in root.parameters() if id(p) not in own]
    before = [p.requires_grad for p in trunk]
    versions = [p._version for p in trunk]
    sums = [_checksum(p) for p in trunk]
    training = root.training
    try:
        for parameter in trunk:
            parameter.requires_grad_(False)
        root.eval()
        yield
    finally:
        for parameter, needed in zip(trunk, before, strict=True):
            parameter.requires_grad_(needed)
        root.train(training)
    assert versions == [p._version for p in trunk], "a tensor of the frozen trunk was written to"
    assert sums == [_checksum(p) for p in trunk], "a tensor of the frozen trunk has changed"


def _checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes read as integers: equal bits give equal sums."""
    return int(tensor.detach().contiguous().view(torch.uint8).to(torch.int64).sum())


def _same_plan(plan: Plan, folder: Path) -> None:
    file = folder / "plan.json"
    said = json.dumps(asdict(plan), indent=1, sort_keys=True) + "\n"
    if file.is_file() and file.read_text(encoding="utf-8") != said:
        raise ValueError(f"{folder} holds a run with another plan: choose another folder, or repeat its options")
    file.write_text(said, encoding="utf-8")


def _read_lines(file: Path, before: int) -> list[dict]:
    """The log's lines of the steps that a checkpoint holds; later ones are taken out of the file: they are made again."""
    if not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if line["step"] < before]
    file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return kept
