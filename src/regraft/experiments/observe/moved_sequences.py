"""Linearity as published in its second version: whole completions moved at once, on and off the data's own
directions.

A block runs on a completion's states alone, with no prompt in its attention (rotary and relative positions do
not notice that the count begins anew; absolute ones are in the states already). Everything is computed in
float64. Shapes: R rows (directions), E steps, T positions of a completion, D width, P prompts, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from regraft.core.progress import advance
from regraft.data.evaluation import Evaluation
from regraft.experiments.observe.block_functions import PARTS, Doubled, keeping_output, plain_experts
from regraft.experiments.observe.jacobian import STEP, STEPS, order
from regraft.model.block_call import longest_input
from regraft.model.float64 import KeepFloat64
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.recording import Recording
from regraft.model.sites import addition

LONGEST, JOINED = 256, 256
"""Tokens of a completion that are used, and states of all completions joined into one sequence."""
DIRECTIONS, SHARED, PRINCIPAL = 8, 16, 20
"""Directions of the gap, one for each position; directions that all positions share; the data's first
principal directions."""
ENOUGH = 0.95
"""Share of the variance in the first 20 directions that counts as all of the data's own."""
ROW_TOKENS = 4096
"""Tokens that run together: 64 MiB of float64 activations at a width of 2,048."""
FLOOR = 1e-10
"""Added to a gap that is divided by, as published."""


@dataclass(eq=False)
class Completed:
    """One completion: its states at every depth (T, D), and a recording of its tokens alone whose calls the
    blocks are run with."""

    alone: Recording
    states: list[Tensor]


def completed(model: Model, text: Evaluation) -> list[Completed]:
    """Every completion of a text, cut to 256 tokens; its states are those behind its prompt."""
    found = []
    blocks = model.main_blocks
    for recording, batch in zip(text.recordings, text.order, strict=True):
        for row, c in enumerate(batch):
            ids = list(c.completion_ids)[:LONGEST]
            first = len(c.prompt_ids)
            states = [recording.pre(b.index)[row, first : first + len(ids)].clone() for b in blocks]
            found.append(Completed(model.record([ids], attention_mask="all"), states))
    return found


def added(run: Recording, block: Block, doubled: Doubled, x_RTD: Tensor) -> dict[str, Tensor]:
    """What a block, its attention and its MLP add to each of some streams, (R, T, D) each, in float64; parts
    that the block does not add up from are left out."""
    kinds = {"attention": ("attn", "mixer"), "mlp": ("mlp",)}
    branches = {
        part: branch
        for part, names in kinds.items()
        if (branch := next((b for n in names if (b := block.branch(n)) is not None), None)) is not None
        and branch.sum_norm is None
    }
    pieces: dict[str, list[Tensor]] = {part: [] for part in ("block", *branches)}
    for some in x_RTD.split(max(1, ROW_TOKENS // x_RTD.shape[1])):
        with run.model.held(), torch.no_grad(), KeepFloat64(), ExitStack() as heard:
            outputs = {
                part: heard.enter_context(keeping_output(addition(branch), (len(some), some.shape[1])))
                for part, branch in branches.items()
            }
            module = doubled.of(run.model.filled(block.index))
            left = run.run_block(block.index, some, len(some), module=module)
        pieces["block"].append(left - some)
        for part, heard_here in outputs.items():
            pieces[part].append(heard_here[0].double().reshape(some.shape))
    return {part: torch.cat(values) for part, values in pieces.items()}


def moved(
    run: Recording, block: Block, doubled: Doubled, x_TD: Tensor, delta_RTD: Tensor
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """For each part g(x), g(x + delta) - g(x) and the central difference, from one call."""
    rows = torch.cat([x_TD[None], x_TD + delta_RTD, x_TD - delta_RTD])
    found = {}
    for part, out in added(run, block, doubled, rows).items():
        ahead, behind = out[1:].chunk(2)
        found[part] = (out[0], ahead - out[0], (ahead - behind) / 2)
    return found


def unit_rows(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Gaussian directions of length 1 over the last axis."""
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (drawn / drawn.norm(dim=-1, keepdim=True)).to(like.device)


@dataclass(eq=False)
class MovedSequences:
    """All measures of the second version: (part, L, ...) arrays, NaN where a block has no such part."""

    gap: np.ndarray
    gap_by_prompt: np.ndarray
    order: np.ndarray
    order_fit: np.ndarray
    amplification: np.ndarray
    transform_ratio: np.ndarray
    consistency: np.ndarray
    consistency_std: np.ndarray
    on: np.ndarray
    off: np.ndarray
    off_shared: np.ndarray
    data_rank: np.ndarray


def moved_sequences(model: Model, text: Evaluation, seed: int) -> MovedSequences:
    """Measure every block on every completion, then on all of them joined."""
    runs = completed(model, text)
    blocks = model.main_blocks
    joined_ids = [i for one in runs for i in one.alone.ids_BT[0].tolist()][: longest_joined(model)]
    joined = model.record([joined_ids], attention_mask="all")
    grid = (len(PARTS), len(blocks))
    names = ("gap", "order", "order_fit", "amplification")
    tables = {name: np.full(grid, np.nan) for name in names}
    by_prompt = np.full((len(runs), *grid), np.nan)
    alone = ("transform_ratio", "consistency", "consistency_std")
    single = {name: np.full(len(blocks), np.nan) for name in alone}
    ends = {name: np.full(len(blocks), np.nan) for name in ("on", "off", "off_shared", "data_rank")}
    doubled = Doubled()
    for column, block in enumerate(blocks):
        with plain_experts(model.hf):
            here = _each_prompt(runs, column, block, doubled, seed)
        for row, part in enumerate(PARTS):
            if part in here.gap:
                by_prompt[:, row, column] = here.gap[part][:, STEPS.index(STEP)]
                weights = here.tokens
                tables["gap"][row, column] = np.average(by_prompt[:, row, column], weights=weights)
                told = np.array([order(one) for one in here.gap[part]])
                known = np.isfinite(told).all(1)
                if known.any():
                    mean = np.average(told[known], axis=0, weights=weights[known])
                    tables["order"][row, column], tables["order_fit"][row, column] = mean
                tables["amplification"][row, column] = here.amplification[part]
        single["transform_ratio"][column] = here.transform_ratio
        single["consistency"][column], single["consistency_std"][column] = between_prompts(here.along_PRD)
        x_TD = torch.cat([one.states[column] for one in runs])[: len(joined_ids)].double()
        with plain_experts(model.hf):
            beside = on_and_off(joined, block, doubled, x_TD, seed)
        for name, value in beside.items():
            ends[name][column] = value
        advance("blocks, whole completions moved", column + 1, len(blocks))
    return MovedSequences(gap_by_prompt=by_prompt, **tables, **single, **ends)


def longest_joined(model: Model) -> int:
    """States that are joined: 256, or what the model can read at most."""
    return min(JOINED, longest_input(model.hf.config) or JOINED)


@dataclass(eq=False)
class PromptMeasures:
    """One block on all completions: gap (P, E) and amplification by part, size of what it adds, and its mean
    response to shared directions (P, R, D)."""

    gap: dict[str, np.ndarray]
    amplification: dict[str, float]
    transform_ratio: float
    along_PRD: Tensor
    tokens: np.ndarray


def _each_prompt(
    runs: Sequence[Completed], column: int, block: Block, doubled: Doubled, seed: int
) -> PromptMeasures:
    generator = torch.Generator().manual_seed(seed)
    gaps: dict[str, list[list[float]]] = {}
    sizes: dict[str, list[Tensor]] = {}
    along, lengths = [], [0.0, 0.0]
    shared_RD = None
    for one in runs:
        x_TD = one.states[column].double()
        length_T1 = x_TD.norm(dim=1, keepdim=True)
        drawn = unit_rows((DIRECTIONS, *x_TD.shape), generator, x_TD)
        shared_RD = unit_rows((SHARED, x_TD.shape[1]), generator, x_TD) if shared_RD is None else shared_RD
        deltas = torch.cat([step * length_T1 * drawn for step in STEPS])
        by_shared = STEP * length_T1 * shared_RD[:, None]
        found = moved(one.alone, block, doubled, x_TD, torch.cat([deltas, by_shared]))
        for part, (_, change, central) in found.items():
            change, linear = change[: len(deltas)], central[: len(deltas)]
            missed = (change - linear).norm(dim=-1) / change.norm(dim=-1)
            gaps.setdefault(part, []).append(missed.unflatten(0, (len(STEPS), -1)).nanmean((1, 2)).tolist())
            at = STEPS.index(STEP) * DIRECTIONS
            gain = linear[at : at + DIRECTIONS].norm(dim=-1) / (STEP * length_T1[:, 0])
            sizes.setdefault(part, []).append(gain.mean(0))
        lengths[0] += float(found["block"][0].norm(dim=1).sum())
        lengths[1] += float(length_T1.sum())
        along.append(found["block"][2][len(deltas) :].mean(1))
    return PromptMeasures(
        {part: np.array(rows) for part, rows in gaps.items()},
        {part: float(torch.cat(values).mean()) for part, values in sizes.items()},
        lengths[0] / lengths[1],
        torch.stack(along),
        np.array([len(one.states[0]) for one in runs], dtype=float),
    )


def between_prompts(along_PRD: Tensor) -> tuple[float, float]:
    """Mean over pairs of prompts of the cosine of their mean responses to one direction; its mean and spread
    over directions. NaN for a single prompt."""
    prompts = len(along_PRD)
    if prompts < 2:
        return float("nan"), float("nan")
    one, other = torch.triu_indices(prompts, prompts, 1)
    by_direction = cosine_similarity(along_PRD[one], along_PRD[other], dim=-1).mean(0)
    return float(by_direction.mean()), float(by_direction.std(correction=0))


def on_and_off(run: Recording, block: Block, doubled: Doubled, x_TD: Tensor, seed: int) -> dict[str, float]:
    """Gap along the data's first principal directions, along random ones that all positions share, and along
    random ones for each position; and how many directions hold 95% of what the first 20 hold. NaN for a
    single state, which has no direction of its own.

    Published are the first and the last, which differ in two things: shared random directions tell them
    apart.
    """
    generator = torch.Generator().manual_seed(seed)
    centred = x_TD - x_TD.mean(0)
    _, sigma, principal_KD = torch.linalg.svd(centred, full_matrices=False)
    first = principal_KD[: min(PRINCIPAL, len(principal_KD), len(x_TD) - 1)]
    if not len(first):
        return dict.fromkeys(("on", "off_shared", "off", "data_rank"), float("nan"))
    energy = sigma[: len(first)].square()
    within = torch.cumsum(energy, 0) / energy.sum()
    length_T1 = STEP * x_TD.norm(dim=1, keepdim=True)
    count = len(first)
    shared = unit_rows((count, x_TD.shape[1]), generator, x_TD)
    own = unit_rows((count, *x_TD.shape), generator, x_TD)
    deltas = torch.cat([length_T1 * first[:, None], length_T1 * shared[:, None], length_T1 * own])
    _, change, central = moved(run, block, doubled, x_TD, deltas)["block"]
    gap = ((change - central).norm(dim=-1) / change.norm(dim=-1)).nanmean(1)
    on, off_shared, off = (float(side.nanmean()) for side in gap.split(count))
    rank = min(1 + int((within < ENOUGH).sum()), count)
    return {"on": on, "off_shared": off_shared, "off": off, "data_rank": float(rank)}
