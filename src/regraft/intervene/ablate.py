"""Neuron ablation: set one neuron after the other to zero and see what the answer loses.

Shapes: L blocks that were ablated, F neurons of a block.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from regraft.data.given import check_sayable
from regraft.engine.metric import probability, top1_agreement
from regraft.engine.outcome import sweep_attributes
from regraft.engine.sweep import sweep
from regraft.engine.variant import Variant, Zero
from regraft.model.opened import Model
from regraft.model.parts import Block, in_width

OURS = "She sells sea shells by the"


def ablate(
    model: Model,
    prompt: str = "She sells sea shells by the",
    target: str = "",
    layer: str = "",
    threshold: float = 0.1,
    decoder_text: str = "",
) -> xr.Dataset:
    """Set every neuron of a block to zero, one at a time, and measure the probability of the answer.

    A neuron is an input of the MLP's output projection; it is zero at every position. All neurons of a block go in one
    sweep: what one of them adds is a column of that projection, so no block is run for it.

    Args:
        prompt: the text whose next token is looked at.
        target: the token whose probability is measured; without it, the model's own most likely next token.
        layer: number of a block, several with commas, or all; without it, the last block.
        threshold: a change of the probability beyond this is large.
        decoder_text: what an encoder-decoder has written before the answer; by default nothing.

    Raises:
        ValueError: no such block, no neurons in it, a target that is not one token, or a model that predicts no next token.
    """
    if not threshold >= 0:
        raise ValueError(f"a threshold of {threshold} is no size of a change: write 0 or more")
    if not model.two_stacks and decoder_text:
        raise ValueError(f"{model.name} has no decoder of its own: what it goes on from is the prompt itself")
    if prompt == OURS:
        check_sayable(model, [prompt], "the English sentence that ships with regraft")
    recording = model.record(prompt, decoder_text if model.two_stacks else None)
    if not model.causal:
        raise ValueError(f"{model.name} does not write text from left to right, so a prompt has no next token")
    blocks = _chosen(model, layer)
    clean = recording.head(recording.post(len(model.blocks) - 1)[:, -1:])[0, 0]
    answer = model.single_token(target) if target else int(clean.argmax())
    counts = [in_width(model.tap(f"{block.address}.mlp_act").module) for block in blocks]
    variants = [Variant([Zero(f"{b.address}.neuron.{i}")]) for b, n in zip(blocks, counts, strict=True) for i in range(n)]
    result = sweep(recording, variants, [probability(answer), top1_agreement(position=-1)])
    before = float(result.clean["probability"])
    change = _by_block(result.values["probability"][:, 0] - before, counts)
    flips = _by_block(1 - result.values["top1_agreement"][:, 0], counts)
    return xr.Dataset(
        {
            "change": (("block", "neuron"), change, {"units": "change of the answer's probability"}),
            "top1_changed": (("block", "neuron"), flips, {"units": "1: another token is the most likely one"}),
        },
        coords={"block": [block.address for block in blocks], "neuron": np.arange(max(counts))},
        attrs={
            **sweep_attributes(result),
            "prompt": prompt,
            "target": model.token_text(answer),
            "target_id": answer,
            "clean_probability": before,
            "clean_top1": model.token_text(int(clean.argmax())),
            "threshold": threshold,
            "large": int((np.abs(change) > threshold).sum()),
            "flips": int(np.nansum(flips)),
        },
    )


def _chosen(model: Model, layer: str) -> list[Block]:
    """The blocks that a user's words name, each with neurons."""
    main = model.main_blocks
    if layer == "all":
        with_neurons = [block for block in main if model.taps.exists(block.index, "mlp_act")]
        return with_neurons or [_with_neurons(model, main[0])]
    words = [word.strip() for word in layer.split(",")] if layer else [str(len(main) - 1)]
    wrong = next((word for word in words if not word.isdigit() or int(word) >= len(main)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no block: write a number from 0 to {len(main) - 1}, several with commas, or all")
    return [_with_neurons(model, main[int(word)]) for word in words]


def _with_neurons(model: Model, block: Block) -> Block:
    model.tap(f"{block.address}.mlp_act")
    return block


def _by_block(flat: torch.Tensor, counts: list[int]) -> np.ndarray:
    """(L, F) from one value for each neuron of each block; NaN behind the last neuron of a narrower one."""
    table = np.full((len(counts), max(counts)), np.nan)
    for row, part in enumerate(flat.split(counts)):
        table[row, : len(part)] = part.numpy()
    return table
