"""Repetition: what happens when a block is run again on its own output.

Shapes: L blocks, N repetitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.files import keeping
from regraft.core.signatures import NewFolder
from regraft.data.evaluation import Evaluation, evaluation
from regraft.export.route_model import check_save, measured_route, route_of, save_blocks
from regraft.model.model import Model
from regraft.model.recording import Recording
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant

SETTLED, CONVERGED, EXPLODED, RETURNED = 0.05, 0.5, 2.0, 0.5
"""Shares of the first update that later ones are compared with: what is still, what has halved, what has
doubled, what comes back to where it was. The words for a block go by them; the updates themselves stand in
the result."""


def repeat(
    model: Model,
    times: int = 10,
    block: int = -1,
    save: NewFolder = "",
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
) -> xr.Dataset:
    """Run each block up to `times` times in place: the loss, and the length of the update of every
    repetition.

    By its updates u_1 .. u_N a block is idempotent (u_2 below 5% of u_1), cyclic (two steps lead back: less
    than half of one step away), explosive (u_N over twice u_1, or not finite), convergent (u_N below half of
    u_1), or else drifting.

    Args:
        times: the most repetitions, at least 2.
        block: number of the block to repeat in the model that is saved.
        save: folder to write the model to in which that block is run `times` times; it needs block.
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.

    Raises:
        ValueError: fewer than 2 repetitions, or a model without a next-token loss.

    Examples:
        >>> data = regraft.repeat(model, times=2, count=1, tokens=4)
        >>> dict(data["loss"].sizes), data["loss"].attrs["units"]
        ({'block': 12, 'times': 2}, 'nats per token')
    """
    if times < 2:
        raise ValueError(f"{times} repetitions are too few: 2 or more show what happens")
    check_save(save)
    text = evaluation(model, prompts, count, tokens)
    stack = model.parts.stacks[-1]
    if save and not 0 <= block < len(stack.blocks):
        raise ValueError(
            f"--save writes one model: say which block to repeat with --block, 0 to {len(stack.blocks) - 1}"
        )
    total = len(model.blocks)
    variants = [
        Variant(route=Route.repeat(total, b.index, n)) for b in model.blocks for n in range(1, times + 1)
    ]
    result = sweep(text.recordings, variants, loss())
    losses = result.mean("loss").numpy().reshape(total, times)
    updates, back = _updates(model, text, times)
    found = xr.Dataset(
        {
            "loss": (("block", "times"), losses, {"units": "nats per token"}),
            "increase": (
                ("block", "times"),
                losses - result.clean_mean("loss"),
                {"units": "nats per token above clean"},
            ),
            **_by_updates(updates, back),
            "second": (
                "block",
                losses[:, 1] - result.clean_mean("loss"),
                {"units": "nats per token above clean, run twice", "correlate": "run twice"},
            ),
        },
        coords={"block": [block.address for block in model.blocks], "times": np.arange(1, times + 1)},
        attrs={
            **sweep_attributes(result),
            "saved": "",
            "clean_loss": result.clean_mean("loss"),
            **text.attributes,
        },
    )
    if save:
        with keeping(found):
            found.attrs["saved"] = _saved(model, text, block, times, save)
    return found


def _by_updates(updates: np.ndarray, back: np.ndarray) -> dict[str, Any]:
    """Lengths of every repetition's update, and how each block behaves by them."""
    length = {"units": "length of this repetition's update / length of the stream"}
    named = [behaviour(u, b) for u, b in zip(updates, back, strict=True)]
    return {
        "update_length": (("block", "times"), updates, length),
        "behaviour": ("block", named, {"units": "by its updates"}),
    }


def _saved(model: Model, text: Evaluation, number: int, times: int, folder: str) -> str:
    """Write the model in which one block stands `times` times in a row."""
    stack = model.parts.stacks[-1]
    places = [p for p in range(len(stack.blocks)) for _ in range(times if p == number else 1)]
    blocks = [stack.blocks[p] for p in places]
    route = route_of(model, blocks, places)
    measured = measured_route(model, text, route, blocks)
    measured.attrs["change"] = f"with block {stack.blocks[number].address} {times} times"
    return save_blocks(model, blocks, route, measured, folder)


def _updates(model: Model, text: Evaluation, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean length of every repetition's update, (L, N), and of two successive updates together, (L, N - 1).

    Both relative to the length of the stream that enters the block, over the real positions of every prompt.
    """
    sums = np.zeros((2, len(model.blocks), times))
    positions = np.zeros(len(model.blocks))
    for recording in text.recordings:
        for block in model.blocks:
            real = recording.real_at(block.index)
            steps = _repeated(recording, block.index, times)
            length = steps[0][real].norm(dim=-1)
            positions[block.index] += int(real.sum())
            for n in range(times):
                sums[0, block.index, n] += float(
                    ((steps[n + 1] - steps[n])[real].norm(dim=-1) / length).sum()
                )
                if n:
                    sums[1, block.index, n - 1] += float(
                        ((steps[n + 1] - steps[n - 1])[real].norm(dim=-1) / length).sum()
                    )
    mean = sums / positions[None, :, None]
    return mean[0], mean[1, :, :-1]


def _repeated(recording: Recording, block: int, times: int) -> list[Tensor]:
    """The stream before and after every repetition of a block."""
    steps = [recording.pre(block)]
    with torch.no_grad():
        for _ in range(times):
            steps.append(recording.run_block(block, steps[-1], rows=1))
    return steps


def behaviour(updates_N: np.ndarray, back: np.ndarray) -> str:
    """What repeating does, from the lengths of the updates and of pairs of successive updates."""
    first, last = updates_N[0], updates_N[-1]
    if not np.isfinite(updates_N).all():
        return "explosive"
    if updates_N[1] < SETTLED * first:
        return "idempotent"
    if back[-1] < RETURNED * last and last > SETTLED * first:
        return "cyclic"
    if last > EXPLODED * first:
        return "explosive"
    return "convergent" if last < CONVERGED * first else "drifting"
