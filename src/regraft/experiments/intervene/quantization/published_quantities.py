"""What was published of rounding beside the first numbers: error of the weights, a recipe by role, what goes
with sensitivity, and the loss on running text.

Shapes: L blocks, W widths in bits, R roles, Q recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.core.quantities import quantity
from regraft.core.registry import DOES_NOT_APPLY
from regraft.data.corpus import corpus as read_corpus
from regraft.data.evaluation import Batch, Evaluation, Recordings, batched
from regraft.experiments.intervene.quantization.recipes import OTHER_BITS, ROLE_BITS
from regraft.experiments.intervene.quantization.rounding import (
    MadeWhenRun,
    all_small,
    matrix_axes,
    role_block,
    round_to_nearest,
)
from regraft.experiments.observe.paired import FEWEST, rank_correlation
from regraft.experiments.running import measured, refused
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.weights import Matrix, live_weights
from regraft.sweeps.metrics import loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult
from regraft.sweeps.variants import Variant

CORPUS_TOKENS = 4096
"""Tokens of running text that a loss is measured on, as published."""
NATS = "nats per token"
PUBLISHED = "quantization study of Qwen3-4B (hivaze/dl-experiments)"
SENSITIVE_TO = {
    "gap": ("linearity", "gap", "block"),
    "gap of the attention": ("linearity", "gap", "attention"),
    "gap of the MLP": ("linearity", "gap", "mlp"),
    "order": ("linearity", "order", "block"),
    "mean rank ratio": ("spectra", "mean_rank_ratio", ""),
    "rank ratio of up": ("spectra", "rank_ratio", "up"),
}
"""What a block's sensitivity is compared with: experiment, variable, part or role."""
COORDINATES = {"compared": list(SENSITIVE_TO), "counting": ["matrices", "weights"]}
"""Labels of the dimensions that these quantities bring."""


class RoundedLosses:
    """Losses of routes with rounded blocks: on the model's own completions and, where one is given, on a
    text."""

    def __init__(self, model: Model, text: Evaluation, corpus: str):
        self.model, self.text = model, text
        self.passages = passages_of(model, corpus) if corpus else None
        self.results: list[SweepResult] = []
        self.read: list[SweepResult] = []

    def __call__(self, places: Sequence[Mapping[int, Callable[..., Any]]]) -> np.ndarray:
        """The loss of each model with some blocks replaced."""
        routes = [Route.replace(len(self.model.blocks), dict(place)) for place in places]
        variants = [Variant(route=route) for route in routes]
        self.results.append(sweep(self.text.recordings, variants, loss()))
        if self.passages is not None:
            self.read.append(sweep(self.passages, variants, loss()))
        return self.results[-1].mean("loss").numpy()

    @property
    def clean(self) -> float:
        """The loss of the model as it is."""
        return self.results[0].clean_mean("loss")

    def of_corpus(self, blocks: int, widths: int, present_RL: np.ndarray, recipes: int) -> dict[str, Any]:
        """The same losses on running text, in the order in which they were asked for: blocks alone, matrices,
        recipes, whole models; nothing where none was given. `present_RL` says which block has which role."""
        if not self.read:
            return {}
        clean = self.read[0].clean_mean("loss")
        alone = np.stack([one.mean("loss").numpy() for one in self.read[:blocks]])
        assert alone.shape == (blocks, widths)
        matrices = np.full(present_RL.shape, np.nan)
        for column, one in enumerate(self.read[blocks : 2 * blocks]):
            matrices[present_RL[:, column], column] = np.exp(one.mean("loss").numpy()) - np.exp(clean)
        behind = self.read[2 * blocks :]
        by_recipe = [float(one.mean("loss")[0]) for one in behind[:recipes]]
        whole = [float(one.mean("loss")[0]) for one in behind[recipes : recipes + widths]]
        reading = "Beside the loss on completions: a model's own words are easier for it than a text."
        return {
            "corpus_loss": quantity((), clean, f"{NATS} of the text file, as loaded", reading, PUBLISHED),
            "corpus_increase": quantity(
                ("block", "bits"), alone - clean, f"{NATS} of the text file above clean", reading, PUBLISHED
            ),
            "corpus_perplexity_increase": quantity(
                ("block", "bits"), np.exp(alone) - np.exp(clean), "perplexity of the text file above clean",
                reading, PUBLISHED,
            ),
            "corpus_matrix_increase": quantity(
                ("role", "block"), matrices, "perplexity of the text file above clean, this matrix at 3 bits",
                reading, PUBLISHED,
            ),
            "corpus_recipe_loss": quantity(
                "recipe", by_recipe, f"{NATS} of the text file", reading, PUBLISHED
            ),
            "corpus_whole_loss": quantity(
                "bits", whole, f"{NATS} of the text file, all blocks", reading, PUBLISHED
            ),
        }  # fmt: skip


def passages_of(model: Model, corpus: str) -> Recordings:
    """The first 4,096 tokens of a text, in passages of 128, every token but a passage's first scored."""
    rows, left = [], CORPUS_TOKENS
    for row in read_corpus(model, corpus):
        if left > 1 and len(row) > 1:
            rows.append(row[:left])
            left -= len(rows[-1])
    if not rows:
        raise ValueError(f"{corpus} has no passage of two tokens: give a longer text")
    rows.sort(key=len)
    batches: list[Batch] = [
        ([row[:1] for row in some], [row[1:] for row in some])
        for some in batched(rows, [len(r) for r in rows])
    ]
    return Recordings(model, batches)


def published_quantities(
    model: Model,
    blocks: list[Block],
    widths: list[int],
    group: int,
    losses: RoundedLosses,
    recipes: Mapping[str, list[int]],
) -> dict[str, Any]:
    """Error of the weights at each width, the recipe by role, and the mean bits of every recipe."""
    held = live_weights(model)
    own = {b.address: [m for m in held.matrices if m.block == b.address] for b in blocks}
    keep = all_small(model.blocks)
    places = {
        b.index: MadeWhenRun(partial(role_block, model, b, own[b.address], bits_of_role, group), keep)
        for b in blocks
    }
    by_role = float(losses([places])[0])
    chosen = [bits_of_role(m.role) for some in own.values() for m in some]
    sizes = [m.shape[0] * m.shape[1] for some in own.values() for m in some]
    weights = np.array([sum(m.shape[0] * m.shape[1] for m in own[b.address]) for b in blocks], dtype=float)
    recipe = f"q and k {ROLE_BITS['q']} bits, every other matrix {OTHER_BITS}"
    return {
        "weight_error": quantity(
            ("block", "bits"), _weight_error(model, blocks, own, widths, group),
            "length of the error / length of the matrix, mean over the block's matrices",
            "Alike for all blocks where the loss is not: how large the error is does not tell what it costs.",
            PUBLISHED,
        ),
        "role_recipe_loss": quantity(
            (), by_role, f"{NATS}, {recipe}",
            "Compare with uniform, and mind that its mean is above four bits.",
            PUBLISHED,
        ),
        "role_recipe_mean_bits": quantity(
            "counting", [float(np.mean(chosen)), float(np.average(chosen, weights=sizes))],
            f"mean bits, {recipe}", "Counting matrices alike makes it look smaller than it is.", PUBLISHED,
        ),
        "recipe_mean_bits": quantity(
            "recipe", [float(np.average(plan, weights=weights)) for plan in recipes.values()],
            "mean bits of a weight", "4 where all recipes weigh the same.", PUBLISHED,
        ),
    }  # fmt: skip


def bits_of_role(role: str) -> int:
    """Bits of a matrix in the recipe by role."""
    return ROLE_BITS.get(role, OTHER_BITS)


@torch.no_grad()
def _weight_error(
    model: Model, blocks: Sequence[Block], own: Mapping[str, list[Matrix]], widths: list[int], group: int
) -> np.ndarray:
    """Mean over a block's matrices of |W - rounded W| / |W|, (L, W)."""
    table = np.full((len(blocks), len(widths)), np.nan)
    for row, block in enumerate(blocks):
        axes = matrix_axes(block, model.width)
        module = model.filled(block.index).module
        parts = {name: module.get_parameter(name).detach() for name in axes}
        for column, width in enumerate(widths):
            rounded = {n: round_to_nearest(t, width, axes[n], group) for n, t in parts.items()}
            shares = []
            for matrix in own[block.address]:
                name = matrix.tensor.removeprefix(f"{block.path}.")
                if name in axes:
                    whole, off = (matrix_part(t[name].double(), matrix) for t in (parts, rounded))
                    shares.append(float((whole - off).norm() / whole.norm()) if whole.any() else np.nan)
            if np.isfinite(shares).any():
                table[row, column] = np.nanmean(shares)
    return table


def matrix_part(tensor: Tensor, matrix: Matrix) -> Tensor:
    """One matrix's share of the tensor that holds it: an expert's slice, a role's rows."""
    own = tensor[matrix.expert] if tensor.dim() == 3 and matrix.expert >= 0 else tensor
    return own if matrix.rows is None else matrix.rows.take(own, matrix.role)


def sensitivity_quantities(
    model: Model,
    blocks: list[Block],
    increase_LW: np.ndarray,
    widths: list[int],
    matrices_RL: np.ndarray,
    roles: Sequence[str],
    read: Mapping[str, Any],
) -> dict[str, Any]:
    """Rank correlations over blocks: sensitivity at two bits with curvature and rank; of each kind of matrix
    at three bits with its own rank. NaN where an experiment does not apply, or for fewer than four blocks."""
    addresses = [block.address for block in blocks]
    known = {name: _result(model, name, read) for name in ("linearity", "spectra")}
    two = increase_LW[:, widths.index(2)]
    rho = []
    for name, variable, of in SENSITIVE_TO.values():
        rho.append(_rho(two, _row(known[name], variable, of, addresses)))
    by_role = [
        _rho(matrices_RL[row], _row(known["spectra"], "rank_ratio", role, addresses))
        for row, role in enumerate(roles)
    ]
    over = "Spearman's rank correlation over blocks"
    return {
        "sensitivity_rho": quantity(
            "compared", rho, f"{over}: with the loss that rounding a block to 2 bits adds",
            "Near 1: what is cheap to measure could choose the bits. Few blocks make large correlations.",
            PUBLISHED,
        ),
        "role_sensitivity_rho": quantity(
            "role", by_role, f"{over}: loss at 3 bits of a kind of matrix with its own rank ratio",
            "Below 0: matrices that use few directions are the sensitive ones.", PUBLISHED,
        ),
    }  # fmt: skip


def _result(model: Model, name: str, read: Mapping[str, Any]) -> Any:
    """An experiment's result on what is read here; None where it does not apply to this model."""
    options = dict(read) if name == "linearity" else {"seed": read["seed"]}
    try:
        return measured(model, name, **options)
    except DOES_NOT_APPLY as error:
        if not refused(error, name):
            raise
        return None


def _row(result: Any, variable: str, of: str, addresses: Sequence[str]) -> np.ndarray:
    """One value for each block; NaN where there is none."""
    nothing = np.full(len(addresses), np.nan)
    if result is None or variable not in result:
        return nothing
    values = result[variable]
    other = next((dim for dim in values.dims if dim != "block"), None)
    if other is not None:
        if of not in values[other].values:
            return nothing
        values = values.sel({other: of})
    return values.assign_coords(block=values.block.astype(str)).reindex(block=list(addresses)).values


def _rho(one_L: np.ndarray, other_L: np.ndarray) -> float:
    both = np.isfinite(one_L) & np.isfinite(other_L)
    return rank_correlation(one_L[both], other_L[both]) if both.sum() >= FEWEST else float("nan")
