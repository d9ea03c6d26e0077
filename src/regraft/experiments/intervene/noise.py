"""Noise: how much the loss suffers from noise at every depth, and whether a block damps it or makes it grow.

Shapes: L blocks, S noise levels.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.data.evaluation import Evaluation, evaluation
from regraft.model.model import Model
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Noise, Variant

LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Noise in times a state's own size: about three levels in a power of ten, from hardly felt to as large as
the state."""


def noise(
    model: Model,
    levels: list[float] | None = None,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
    seed: int = 0,
) -> xr.Dataset:
    """Add Gaussian noise to the stream that enters each block and measure the loss, and how the block passes
    it on.

    A level is the noise's standard deviation over the root mean square of the stream at each position.
    Denoising ratio: the length of the difference behind the block over that in front of it; below 1 the block
    damps noise.

    Args:
        levels: noise levels; by default 0.01, 0.03, 0.1, 0.3 and 1.
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        seed: of everything drawn at random.

    Raises:
        ValueError: a negative level, or a model without a next-token loss.

    Examples:
        >>> data = regraft.noise(model, levels=[0.1, 0.5], count=1, tokens=4)
        >>> dict(data["loss"].sizes), data["loss"].attrs["units"]
        ({'block': 12, 'level': 2}, 'nats per token')
    """
    chosen = list(levels) if levels else list(LEVELS)
    wrong = [level for level in chosen if not 0 <= level < float("inf")]
    if wrong:
        raise ValueError(f"a noise level of {wrong[0]} is no standard deviation: write 0 or more")
    text = evaluation(model, prompts, count, tokens)
    edits = [Noise(f"{block.address}.resid_pre", level, seed) for block in model.blocks for level in chosen]
    result = sweep(text.recordings, [Variant([edit]) for edit in edits], loss())
    losses = result.mean("loss").numpy().reshape(len(model.blocks), len(chosen))
    ratio = _passed_on(model, text, chosen, seed)
    middle = ratio[:, np.argmin(np.abs(np.array(chosen) - 0.1))]
    return xr.Dataset(
        {
            "loss": (("block", "level"), losses, {"units": "nats per token"}),
            "increase": (
                ("block", "level"),
                losses - result.clean_mean("loss"),
                {"units": "nats per token above clean"},
            ),
            "ratio": (
                ("block", "level"),
                ratio,
                {"units": "length of the difference behind the block / in front of it"},
            ),
            "passed_on": (
                "block",
                middle,
                {"units": "the ratio at the level nearest to 0.1", "correlate": "passed on"},
            ),
        },
        coords={"block": [block.address for block in model.blocks], "level": chosen},
        attrs={**sweep_attributes(result), "clean_loss": result.clean_mean("loss"), **text.attributes},
    )


def _passed_on(model: Model, text: Evaluation, levels: list[float], seed: int) -> np.ndarray:
    """Mean denoising ratio over all real positions, (L, S); NaN without noise."""
    sums, positions = np.zeros((len(model.blocks), len(levels))), np.zeros(len(model.blocks))
    for recording in text.recordings:
        for block in model.blocks:
            real = recording.real_at(block.index)
            positions[block.index] += int(real.sum())
            before, after = recording.pre(block.index), recording.post(block.index)
            for number, level in enumerate(levels):
                drawn = Noise("", level, seed).operand(before, lambda value: value)
                with torch.no_grad():
                    changed = recording.run_block(block.index, before + drawn, rows=1)
                ratio = (changed - after)[real].norm(dim=-1) / drawn[real].norm(dim=-1)
                sums[block.index, number] += float(ratio.sum())
    return sums / positions[:, None]
