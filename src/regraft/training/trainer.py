"""One trainer for all grafts: the frozen model teaches the part that stands in for one of its own.

They share the trunk; only the graft's parameters are in the optimisers. Runs under Accelerate, in one process
or several, with the frozen trunk whole in each or spread over them. Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.tensorboard import SummaryWriter

from regraft.core.files import whole_file, writing
from regraft.core.interrupts import StoppedError, finishing_steps
from regraft.core.progress import advance
from regraft.data.windows import TrainingText
from regraft.training.checkpointing import newest, restore, write_checkpoint
from regraft.training.distributed import average, mean_over, same_everywhere, trunk_spread
from regraft.training.optimizers import optimisers, set_rates
from regraft.training.schedules import cosine


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train, in which precision, and when to write and to stop.

    Examples:
        >>> regraft.TrainingPlan(steps=100, batch=4).rate
        0.001
    """

    steps: int = 600
    """Training steps."""
    batch: int = 8
    """Sequences a step."""
    rate: float = 1e-3
    """Highest learning rate of AdamW; Muon's is five times it."""
    warmup: int = 50
    """Steps over which the rate rises."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    clip: float = 1.0
    """Longest gradient."""
    weight_decay: float = 0.0
    """AdamW's decay of weights."""
    matrices: Literal["muon", "adamw"] = "muon"
    """What moves the matrices of linear layers."""
    shard: bool = False
    """Spread the frozen trunk over the processes of `accelerate launch`."""
    save_every: int = 200
    """Steps between checkpoints."""
    patience: int = 0
    """Stop where the smoothed loss has not fallen for so many steps (0: never)."""

    def __post_init__(self) -> None:
        """Make sure that there is something to do.

        Raises:
            ValueError: no steps, no sequences in a step, or no batch in one; a rate, a bound or a patience
                below 0.
        """
        if min(self.steps, self.batch, self.accumulate, self.save_every) < 1:
            raise ValueError("a run needs at least one step, one sequence a step, and one batch to add up")
        wanted = ("rate", "warmup", "clip", "weight_decay", "patience")
        wrong = next((name for name in wanted if not 0 <= getattr(self, name) < math.inf), None)
        if wrong is not None:
            raise ValueError(f"{wrong} is {getattr(self, wrong)}: write 0 or more")

    def scale(self, step: int) -> float:
        """The rate at a step, in times the highest."""
        return cosine(step, self.steps, self.warmup)


class Task(Protocol):
    """What is trained: the graft, the model that it stands in, and the parts of the loss on a batch."""

    graft: nn.Module
    root: nn.Module

    def blocks(self) -> Sequence[nn.Module]:
        """The frozen trunk's blocks, which can be spread over processes."""
        ...

    def losses(self, batch: Tensor, /) -> Mapping[str, Tensor]:
        """Parts of the loss by name, weighted, to be added up; names that begin with _ are measured and not
        trained on."""
        ...


class NotANumberError(RuntimeError):
    """The loss is no number; step and batch were kept."""


def train(
    task: Task,
    windows: TrainingText,
    plan: TrainingPlan,
    folder: Path,
    watch: Callable[[int], None] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Train a graft; continue where an earlier run in `folder` was broken off. Returns a line of measurements
    a step.

    On one device a run that was broken off ends with the weights of one that was not. Ctrl-C lets the step
    end, keeps it and stops.

    Args:
        watch: called behind every step.
        origin: what else must be the same for a run to be continued, for example the model's hash.

    Raises:
        NotANumberError: the loss is NaN or infinite.
        ValueError: the folder holds a run with another plan, text or origin.
    """
    accelerator = Accelerator(mixed_precision=plan.precision, cpu=_device(task).type == "cpu")
    plan_text = _plan_of(plan, windows, accelerator.num_processes, origin or {})
    _same_plan(plan_text, folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with whole_file(folder / PLAN) as part:
            part.write_text(plan_text, encoding="utf-8")
    accelerator.wait_for_everyone()
    with trunk_spread(task, accelerator, plan.shard), only_trainable(task.root, task.graft):
        plain = optimisers(task.graft, plan.rate, plan.weight_decay, plan.matrices)
        started = restore(newest(folder), task.graft, plain, accelerator.scaler) if newest(folder) else 0
        history = _read_lines(folder / "log.jsonl", started)
        plateau = Plateau(plan.patience)
        for line in history:
            plateau.reached(line["loss"])
        accelerator.wait_for_everyone()
        run = _TrainingRun(task, windows, plan, folder, accelerator, plain)
        same_everywhere(task.graft, accelerator)
        with (
            _writer(folder, history, accelerator.is_main_process) as write,
            finishing_steps(accelerator.num_processes == 1) as asked,
        ):
            for step in range(started, plan.steps):
                line = run.step(step)
                history.append(line)
                write(line)
                stops = asked()
                if accelerator.is_main_process and (
                    (step + 1) % plan.save_every == 0 or step + 1 == plan.steps or stops
                ):
                    write_checkpoint(folder, step + 1, task.graft, plain, accelerator.scaler)
                advance(f"steps: {words_of(line)}", step + 1, plan.steps)
                if watch is not None:
                    watch(step)
                if stops:
                    kept = f"step {step + 1:,} of {plan.steps:,}, which is kept in {folder}"
                    raise StoppedError(f"stopped behind {kept}: the same command goes on from there")
                if plateau.reached(line["loss"]):
                    break
    return history


def words_of(line: Mapping[str, float]) -> str:
    """A step's measurements in a few words, for the bar: the loss and its parts, agreement, rate."""
    parts = [
        f"{name} {line[name]:.3f}"
        for name in line
        if name not in ("step", "loss", "agreement", "tokens_per_second")
    ]
    agreement = f", same token {line['agreement']:.0%}" if "agreement" in line else ""
    return (
        f"loss {line['loss']:.3f} ({', '.join(parts)}){agreement}, {line['tokens_per_second']:,.0f} tokens/s"
    )


SMOOTHED = 20
"""Steps whose mean loss is compared: the loss of one step of a few sequences jumps by more than training
gains in a hundred."""


class Plateau:
    """Tells when the loss, smoothed over 20 steps, had its lowest value `patience` steps ago; 0 never
    does."""

    def __init__(self, patience: int):
        self.patience = patience
        self.last: deque[float] = deque(maxlen=SMOOTHED)
        self.lowest, self.since = math.inf, 0

    def reached(self, loss: float) -> bool:
        """Take the next step's loss in."""
        self.last.append(loss)
        smooth = float(np.mean(self.last))
        self.since = 0 if smooth < self.lowest else self.since + 1
        self.lowest = min(self.lowest, smooth)
        return 0 < self.patience <= self.since


@dataclass
class _TrainingRun:
    """What a training run holds on to."""

    task: Task
    windows: TrainingText
    plan: TrainingPlan
    folder: Path
    accelerator: Accelerator
    optimisers: list[Any]

    def step(self, step: int) -> dict[str, Any]:
        """One step: gradients added up over its parts, averaged over the processes, clipped, applied."""
        began = time.perf_counter()
        plan, accelerator = self.plan, self.accelerator
        set_rates(self.optimisers, plan.scale(step))
        parts: dict[str, float] = {}
        share = accelerator.num_processes
        batches: list[Tensor] = []
        for part in range(plan.accumulate):
            number = (step * plan.accumulate + part) * share + accelerator.process_index
            batches.append(self.windows.batch(number, plan.batch).to(_device(self.task)))
            losses, total = self._losses(batches[-1])
            self._stop_unless(
                torch.isfinite(total.detach()), f"the loss is {float(total.detach())}", step, batches
            )
            accelerator.backward(total / plan.accumulate)
            for name, value in {**losses, "loss": total}.items():
                name = name.removeprefix("_")
                parts[name] = parts.get(name, 0.0) + float(value.detach()) / plan.accumulate
        parts = {name: mean_over(value, accelerator) for name, value in parts.items()}
        parameters = [p for p in self.task.graft.parameters() if p.grad is not None]
        average(parameters, accelerator)
        self._apply(parameters, step, batches)
        tokens = plan.batch * self.windows.length * plan.accumulate * share
        return {"step": step, **parts, "tokens_per_second": tokens / (time.perf_counter() - began)}

    def _losses(self, ids_BT: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        with self.accelerator.autocast():
            losses = self.task.losses(ids_BT)
        return (
            losses,
            torch.stack([value for name, value in losses.items() if not name.startswith("_")]).sum(),
        )

    def _apply(self, parameters: Sequence[nn.Parameter], step: int, batches: list[Tensor]) -> None:
        """Clip and apply the gradients; in half precision one scale serves all optimisers and changes once a
        step."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            for optimiser in self.optimisers:
                scaler.unscale_(optimiser)
        norm = clip(parameters, self.plan.clip)
        if scaler is None:
            self._stop_unless(torch.isfinite(norm), f"the gradient's norm is {float(norm)}", step, batches)
        for optimiser in self.optimisers:
            if scaler is None:
                optimiser.step()
            else:
                scaler.step(optimiser)
            optimiser.zero_grad()
        if scaler is not None:
            scaler.update()

    def _stop_unless(self, fine: Tensor, what: str, step: int, batches: list[Tensor]) -> None:
        """Stop every process, where one of them has no number; each one that has none keeps its own batches
        of the step."""
        if mean_over(float(fine), self.accelerator) < 1:
            share, own = self.accelerator.num_processes, self.accelerator.process_index
            if not bool(fine):
                name = f"not-a-number-{step}{f'-{own}' if share > 1 else ''}.safetensors"
                with whole_file(self.folder / name) as part:
                    save_file({"ids": torch.cat(batches).cpu()}, part)
            self.accelerator.wait_for_everyone()
            kept = " and ".join(
                sorted(file.name for file in self.folder.glob(f"not-a-number-{step}[.-]*safetensors"))
            )
            stated = what if not bool(fine) else "the loss of another process is no number"
            raise NotANumberError(f"{stated} at step {step}: its batch is kept as {kept}")


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale all gradients, sparse ones too, to a norm of at most `most`; returns the norm that they had."""
    gradients = [p.grad.coalesce() if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
    values = [g.values() if g.is_sparse else g for g in gradients]
    norm = torch.stack([value.float().norm() for value in values]).norm()
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale.to(value.dtype))
    for parameter, gradient in zip((p for p in parameters if p.grad is not None), gradients, strict=True):
        parameter.grad = gradient
    return norm


def _device(task: Task) -> torch.device:
    return next(task.graft.parameters()).device


@contextmanager
def _writer(
    folder: Path, history: Sequence[dict[str, Any]], writes: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds a step's line to `log.jsonl` and to TensorBoard's events, behind the lines that
    there are."""
    if not writes:
        yield lambda line: None
        return
    with whole_file(folder / "log.jsonl") as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in history), encoding="utf-8")
    board = SummaryWriter(str(folder / "tensorboard"), purge_step=len(history))

    def write(line: dict[str, Any]) -> None:
        with writing(folder), (folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name != "step":
                board.add_scalar(name, value, line["step"])

    try:
        yield write
    finally:
        board.close()


@contextmanager
def only_trainable(root: nn.Module, graft: nn.Module) -> Iterator[None]:
    """While inside, nothing of the model takes a gradient but the graft; behind it, no other tensor has
    changed by a bit."""
    own = {id(p) for p in graft.parameters()}
    trunk = [p for p in root.parameters() if id(p) not in own]
    before = [p.requires_grad for p in trunk]
    versions = [p._version for p in trunk]
    sums = [_checksum(p) for p in trunk]
    training = [module for module in root.modules() if module.training]
    try:
        for parameter in trunk:
            parameter.requires_grad_(False)
        root.eval()
        yield
    finally:
        for parameter, needed in zip(trunk, before, strict=True):
            parameter.requires_grad_(needed)
        for module in training:
            module.training = True
    assert versions == [p._version for p in trunk], "a tensor of the frozen trunk was written to"
    assert sums == [_checksum(p) for p in trunk], "a tensor of the frozen trunk has changed"


def _checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes read as integers (of the share of this process, if it is spread)."""
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return int(tensor.detach().contiguous().reshape(-1).view(torch.uint8).sum(dtype=torch.int64))


PLAN = "plan.json"


def _plan_of(plan: TrainingPlan, windows: TrainingText, share: int, origin: Mapping[str, Any]) -> str:
    """Everything that a run must have in common with the one that it continues."""
    text = {
        "tokens": len(windows.ids),
        "sha256": windows.digest(),
        "length": windows.length,
        "seed": windows.seed,
    }
    return (
        json.dumps(
            {"plan": asdict(plan), "text": text, "processes": share, "origin": origin},
            indent=1,
            sort_keys=True,
        )
        + "\n"
    )


def _same_plan(stated: str, folder: Path) -> None:
    file = folder / PLAN
    if file.is_file() and (before := file.read_text(encoding="utf-8")) != stated:
        old, new = json.loads(before), json.loads(stated)
        parted = ", ".join(name for name in new if old.get(name) != new[name])
        raise ValueError(
            f"{folder} holds a run with another {parted}: repeat its options to go on with it, or remove it"
        )


def _read_lines(file: Path, before: int) -> list[dict[str, Any]]:
    """The log's lines of the steps that a checkpoint holds; later ones are made again."""
    if not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [line for line in lines if line["step"] < before]
