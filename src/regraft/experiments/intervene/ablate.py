"""Neuron ablation: set one neuron after the other to zero and see what the answer loses.

Shapes: P prompts, L blocks that were ablated, F neurons of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from regraft.core.progress import advance
from regraft.data.own_texts import check_sayable, first_of
from regraft.experiments.intervene.listed_neurons import neurons_that_matter
from regraft.model.model import Model
from regraft.model.parts import Block, in_width
from regraft.sweeps.metrics import probability, top1_agreement, top1_token
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant, Zero

OURS = "The capital of France is"


@dataclass
class Ablated:
    """What one prompt gave: its answer, its most likely token, each neuron's change, flip, and the token that
    is the most likely one without it (L, F)."""

    text: str
    answer: int
    top1: int
    before: float
    change: np.ndarray
    flips: np.ndarray
    after: np.ndarray
    result: SweepResult


def ablate(
    model: Model,
    prompt: str = "The capital of France is",
    target: str = "",
    layer: str = "",
    threshold: float = 0.1,
    decoder_text: str = "",
    prompts: list[str] | None = None,
    count: int = 0,
) -> xr.Dataset:
    """Set every neuron of a block to zero, one at a time, and measure the probability of the answer.

    A neuron is an input of the MLP's output projection; it is zero at every position. All neurons of a block
    go in one sweep: what one of them adds is a column of that projection, so no block is run for it. Of
    several prompts every one keeps its own answer: a neuron's change is the mean over them, beside it stands
    the share of those that it gives another answer.

    Args:
        prompt: the text whose next token is looked at.
        target: the token whose probability is measured; without it, the model's own most likely next token of
            each prompt.
        layer: number of a block, several with commas, or all; without it, the first
            block that has neurons: they see the words themselves.
        threshold: a change of the probability beyond this is large.
        decoder_text: what an encoder-decoder has written before the answer; by default nothing.
        prompts: several texts in place of the one; their changes are averaged.
        count: how many of the prompts, the first ones; 0 for all.

    Raises:
        ValueError: no such block, no neurons in it, a target that is not one token, a model that predicts no
            next token, or prompts beside a prompt.

    Examples:
        >>> data = regraft.ablate(model)
        >>> dict(data["change"].sizes), data["change"].attrs["units"]
        ({'block': 1, 'neuron': 512}, "change of the answer's probability")
    """
    if not threshold >= 0:
        raise ValueError(f"a threshold of {threshold} is no size of a change: write 0 or more")
    if not model.two_stacks and decoder_text:
        raise ValueError(f"{model.name} has no decoder of its own: what it goes on from is the prompt itself")
    if prompts and prompt != OURS:
        raise ValueError("prompt and prompts both say what is read: give one of them")
    texts = first_of(prompts or [prompt], count, "prompts")
    if texts == [OURS]:
        check_sayable(model, texts, "the English sentence that ships with regraft")
    if not model.causal:
        raise ValueError(
            f"{model.name} does not write text from left to right, so a prompt has no next token"
        )
    blocks = _chosen(model, layer)
    runs: list[Ablated] = []
    for text in texts:
        runs.append(_ablated(model, blocks, text, target, decoder_text))
        advance("prompts", len(runs), len(texts))
    return _dataset(model, blocks, runs, threshold)


def _ablated(model: Model, blocks: list[Block], text: str, target: str, decoder_text: str) -> Ablated:
    """One prompt with every neuron of some blocks set to zero, one at a time."""
    recording = model.record(text, decoder_text if model.two_stacks else None)
    clean = recording.head(recording.post(len(model.blocks) - 1)[:, -1:])[0, 0]
    top1 = int(clean.argmax())
    answer = model.single_token(target) if target else top1
    counts = [in_width(model.tap(f"{block.address}.mlp_act").module) for block in blocks]
    variants = [
        Variant([Zero(f"{b.address}.neuron.{i}")])
        for b, n in zip(blocks, counts, strict=True)
        for i in range(n)
    ]
    metrics = [probability(answer), top1_agreement(position=-1), top1_token()]
    result = sweep(recording, variants, metrics)
    before = float(result.clean["probability"])
    change = _by_block(result.values["probability"][:, 0] - before, counts)
    return Ablated(
        text,
        answer,
        top1,
        before,
        change,
        _by_block(1 - result.values["top1_agreement"][:, 0], counts),
        _by_block(result.values["top1_token"][:, 0], counts),
        result,
    )


def _dataset(model: Model, blocks: list[Block], runs: list[Ablated], threshold: float) -> xr.Dataset:
    """The means over the prompts, what each of them answers, and with several of them the changes of each."""
    change_PLF = np.stack([run.change for run in runs])
    change, flips = change_PLF.mean(0), np.stack([run.flips for run in runs]).mean(0)
    several = len(runs) > 1
    mean = f", mean over {len(runs)} prompts" if several else ""
    other = "share of the prompts in which another token is the most likely one"
    grid = ("block", "neuron")
    data: dict[str, Any] = {
        "change": (grid, change, {"units": f"change of the answer's probability{mean}"}),
        "top1_changed": (
            grid,
            flips,
            {"units": other if several else "1: another token is the most likely one"},
        ),
        "clean_probability": (
            "prompt",
            [run.before for run in runs],
            {"units": "probability of the prompt's answer"},
        ),
    }
    if several:
        data["prompt_change"] = (
            ("prompt", *grid),
            change_PLF,
            {"units": "change of the probability of the prompt's answer"},
        )
    listed, places = neurons_that_matter(
        [block.address for block in blocks],
        change_PLF,
        np.stack([run.flips for run in runs]),
        [[model.token_text(int(i)) if np.isfinite(i) else "" for i in run.after.ravel()] for run in runs],
        threshold,
    )
    data |= listed
    answers = {run.answer for run in runs}
    one = {"prompt": runs[0].text, "clean_top1": model.token_text(runs[0].top1)}
    return xr.Dataset(
        data,
        coords={
            "block": [block.address for block in blocks],
            "neuron": np.arange(change.shape[1]),
            **places,
            "prompt": np.arange(len(runs)),
            "text": ("prompt", [run.text for run in runs]),
            "answer": ("prompt", [model.token_text(run.answer) for run in runs]),
            "answer_id": ("prompt", [run.answer for run in runs]),
            "top1": ("prompt", [model.token_text(run.top1) for run in runs]),
        },
        attrs={
            **sweep_attributes(*(run.result for run in runs)),
            **({} if several else one),
            "prompts": len(runs),
            "target": model.token_text(runs[0].answer) if len(answers) == 1 else "",
            "target_id": runs[0].answer if len(answers) == 1 else -1,
            "clean_probability": float(np.mean([run.before for run in runs])),
            "threshold": threshold,
            "large": int((np.abs(change) > threshold).sum()),
            "large_unit": f"neurons whose {'mean ' if several else ''}change is beyond the threshold",
            "flips": int((flips > 0).sum()),
            "flips_unit": (
                f"neurons without which {'at least one' if several else 'the'} prompt has another most likely"
                " token"
            ),
        },
    )


def _chosen(model: Model, layer: str) -> list[Block]:
    """The blocks that a user's words name, each with neurons."""
    main = model.main_blocks
    if layer in ("", "all"):
        with_neurons = [block for block in main if model.taps.exists(block.index, "mlp_act")]
        found = with_neurons or [_with_neurons(model, main[0])]
        return found if layer else found[:1]
    words = [word.strip() for word in layer.split(",")]
    wrong = next((word for word in words if not word.isdigit() or int(word) >= len(main)), None)
    if wrong is not None:
        raise ValueError(
            f"{wrong!r} is no block: write a number from 0 to {len(main) - 1}, several with commas, or all"
        )
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
