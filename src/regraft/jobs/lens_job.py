"""What `regraft tuned-lens` does once its options are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.core.defaults import SEQUENCE_LENGTH
from regraft.core.files import check_empty, expanded
from regraft.core.randomness import drawing_from
from regraft.export.lens_folder import save_lens
from regraft.jobs.graft_jobs import training_text
from regraft.model.model import Model
from regraft.modules.tuned_lens import TunedLens
from regraft.reporting.shell_commands import next_step
from regraft.training.distributed import processes
from regraft.training.tasks.lens_task import LensTask
from regraft.training.trainer import TrainingPlan, train

LAST_STEPS = 20
"""Steps whose mean the closing sentence tells."""


def fit_lens(
    model: Model,
    out: Path | str,
    texts: Sequence[str] = (),
    plan: TrainingPlan | None = None,
    *,
    positions: int = 128,
    length: int = SEQUENCE_LENGTH,
    seed: int = 0,
    opened: Mapping[str, Any] | None = None,
) -> str:
    """Tune a lens and write it to `out/lens`; the run's checkpoints and log stand in `out/run`.

    Args:
        model: an opened model that writes text.
        out: the folder.
        texts: files and folders to tune on; without them an almanac.
        plan: how long and how fast.
        positions: places of a batch that are read at every depth.
        length: tokens of a sequence.
        seed: of everything drawn at random.
        opened: how the model was opened, for the command that is named as the next.

    Returns:
        What came out; of several processes the first writes and has something to say.

    Raises:
        ValueError: the model does not write text with one stack, or has no tokenizer.
        RunFolderError: there is a lens already.

    Examples:
        >>> few = regraft.TrainingPlan(steps=2, batch=2)
        >>> print(regraft.fit_lens(model, "lens", plan=few, positions=8, length=16))
        over all depths before the last, the tuned lens is ... nats from what the model says at the end, ...
    """
    out = expanded(out)
    check_empty(out / "lens", "--out")
    lens = TunedLens(len(model.main_blocks), model.width).to(model.device)
    task = LensTask(model, lens, positions, seed)
    weights = model.weights_sha256
    text = training_text(model, texts, length, out / "run", seed)
    origin = {"model": weights, "positions": positions, "seed": seed}
    with drawing_from(seed):
        log = train(task, text, plan or TrainingPlan(), out / "run", origin=origin)
    if not processes().is_main_process:
        return ""
    ends = {name: float(np.mean([line[name] for line in log[-LAST_STEPS:]])) for name in ("kl", "plain")}
    save_lens(lens, model, out / "lens", weights, steps=len(log), **ends)
    going_on = next_step(["lens"], model, ("tuned", out / "lens"), opened or {})
    return (
        f"over all depths before the last, the tuned lens is {ends['kl']:.3f} nats from what the model says"
        f" at the end, the plain lens {ends['plain']:.3f} (mean of the last {min(LAST_STEPS, len(log))} of"
        f" {len(log)} steps). {going_on}"
    )
