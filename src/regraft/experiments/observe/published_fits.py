"""Linear maps in a block's place as they were published: without an intercept, of the update, of the whole
output, of the normed input, and of low rank.

Shapes: N tokens, D width, K rank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.experiments.observe.linear_fit import stream_pairs
from regraft.model.block_call import split_call
from regraft.model.model import Model
from regraft.model.parts import Block, is_norm
from regraft.model.recording import Recording
from regraft.sweeps.metrics import loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant

RIDGE_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Ridges that are tried, added to the plain sums of squares."""
LOW_RANK_RIDGE = 0.1
"""The ridge of the maps that are cut to a rank."""
RANKS = (16, 32, 64, 128, 256, 512)
"""Ranks that the map of the update is cut to; those below the width are measured."""
TRAINED = 0.8
"""Share of the tokens that a map is fitted to; the others choose the ridge and give R squared."""


class FittedMap:
    """W times the stream (or its norm), added to it or in its place; called as the block is."""

    def __init__(self, weight_DD: Tensor, adds: bool, norm: nn.Module | None = None):
        self.weight_DD, self.adds, self.norm = weight_DD, adds, norm

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The stream that leaves, for the arguments of a block."""
        _, stream = split_call(args, kwargs)
        read = stream if self.norm is None else self.norm(stream)
        made = read @ self.weight_DD.t()
        return stream + made if self.adds else made


def input_norm(recording: Recording, block: Block) -> nn.Module | None:
    """The block's own norm of the stream that enters it; None where it reads the stream as it is."""
    pre = recording.pre(block.index)
    given: dict[nn.Module, Tensor] = {}
    norms = [m for m in recording.model.filled(block.index).module.modules() if is_norm(m)]

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        given.setdefault(module, args[0])

    handles = [m.register_forward_pre_hook(keep) for m in norms]
    try:
        with torch.no_grad():
            recording.run_block(block.index, pre, rows=1)
    finally:
        for handle in handles:
            handle.remove()
    same = (m for m in norms if m in given and given[m].shape == pre.shape and torch.equal(given[m], pre))
    return next(same, None)


def fits_of(recordings: Sequence[Recording], block: Block, seed: int) -> dict[str, tuple[FittedMap, float]]:
    """Every map of one block with its R squared on held-out tokens, by name."""
    pairs = list(stream_pairs(recordings, block.index))
    x_ND, y_ND = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    order = torch.randperm(len(x_ND), generator=torch.Generator().manual_seed(seed))
    cut = int(TRAINED * len(x_ND))
    train, held = order[:cut], order[cut:]
    like = pairs[0][0]
    found: dict[str, tuple[FittedMap, float]] = {}
    weight, r2 = _best(x_ND, y_ND - x_ND, train, held, RIDGE_STRENGTHS)
    found["residual"] = FittedMap(weight.to(like), adds=True), r2
    weight, r2 = _best(x_ND, y_ND, train, held, RIDGE_STRENGTHS)
    found["full"] = FittedMap(weight.to(like), adds=False), r2
    norm = input_norm(recordings[0], block)
    if norm is not None:
        norm = copy.deepcopy(norm)  # a streamed model empties its own behind the block
        with torch.no_grad():
            normed_ND = norm(x_ND.to(like)).double()
        weight, r2 = _best(normed_ND, y_ND - x_ND, train, held, RIDGE_STRENGTHS)
        found["normalised"] = FittedMap(weight.to(like), adds=True, norm=norm), r2
    whole, _ = _best(x_ND, y_ND - x_ND, train, held, (LOW_RANK_RIDGE,))
    left, sigma, right = torch.linalg.svd(whole)
    for rank in RANKS:
        if rank < whole.shape[0]:
            low = (left[:, :rank] * sigma[:rank]) @ right[:rank]
            found[f"rank {rank}"] = (
                FittedMap(low.to(like), adds=True),
                r_squared(x_ND[held] @ low.t(), (y_ND - x_ND)[held]),
            )
    return found


def _best(
    x_ND: Tensor, y_ND: Tensor, train: Tensor, held: Tensor, strengths: Sequence[float]
) -> tuple[Tensor, float]:
    """The map with the least error on the held-out tokens, and its R squared there."""
    x, y = x_ND[train], y_ND[train]
    values, vectors = torch.linalg.eigh(x.t() @ x)
    against = vectors.t() @ (x.t() @ y)
    tried = []
    for ridge in strengths:
        weight = (vectors @ (against / (values.clamp(min=0) + ridge)[:, None])).t()
        tried.append((r_squared(x_ND[held] @ weight.t(), y_ND[held]), weight))
    r2, weight = max(tried, key=lambda one: one[0])
    return weight, r2


def r_squared(found_ND: Tensor, wanted_ND: Tensor) -> float:
    """Share of the variance explained, all coordinates pooled."""
    spread = (wanted_ND - wanted_ND.mean(0)).square().sum()
    return float(1 - (found_ND - wanted_ND).square().sum() / spread)


def published_fits(
    model: Model, recordings: Sequence[Recording], seed: int
) -> tuple[list[str], np.ndarray, np.ndarray, SweepResult]:
    """Names of the fits, R squared and recovered loss (fit, L), and the sweep: fitted and measured on the
    same prompts, as published. The last is the identity: the block left out, which recovers nothing."""
    blocks, total = model.main_blocks, len(model.blocks)
    made = []
    for block in blocks:
        made.append(fits_of(recordings, block, seed))
        advance("linear maps as published", len(made), len(blocks))
    names = list(dict.fromkeys(name for one in made for name in one))
    places = [(row, column) for row, n in enumerate(names) for column, one in enumerate(made) if n in one]
    variants = [Variant(route=Route.skip(total, {block.index})) for block in blocks]
    for row, column in places:
        put: dict[int, Callable[..., Any]] = {blocks[column].index: made[column][names[row]][0]}
        variants.append(Variant(route=Route.replace(total, put)))
    result = sweep(recordings, variants, loss())
    losses, clean = result.mean("loss").double().numpy(), result.clean_mean("loss")
    skipped = losses[: len(blocks)] - clean
    shape = (len(names) + 1, len(blocks))
    r2, recovered = np.full(shape, np.nan), np.full(shape, np.nan)
    for (row, column), value in zip(places, losses[len(blocks) :] - clean, strict=True):
        r2[row, column] = made[column][names[row]][1]
        recovered[row, column] = 1 - value / skipped[column] if skipped[column] else np.nan
    recovered[-1] = 0.0
    return [*names, "identity"], r2, recovered, result
