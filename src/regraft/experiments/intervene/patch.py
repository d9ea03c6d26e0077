"""Activation patching: put one run's activation into another and see how much of the difference it
carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from regraft.core.defaults import ANSWER, CLEAN_PROMPT, CORRUPT_PROMPT, WRONG_ANSWER
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.core.signatures import TextFile
from regraft.experiments.intervene.patch_cases import (
    PatchCase,
    chosen_cases,
    position_pairs,
    read_position,
)
from regraft.experiments.intervene.patch_grid import PatchGrid, stack_blocks
from regraft.model.model import Model
from regraft.sweeps.metrics import logit_difference, token_logit
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.sweep import sweep
from regraft.sweeps.sweep_result import SweepResult

FLAT = 1e-4
"""Share of the largest effect under which a spread over cells is rounding, and no correlation means
anything."""
METRIC, ANSWER_METRIC = "logit_difference", "logit"
SEED = "patching study of small Llamas (the project's seed)"


@dataclass
class Cells:
    """What one case gave: values, effects, attributions and logits of the answer alone on the grid (row,
    column), and the two runs' own values."""

    value: np.ndarray
    effect: np.ndarray
    attribution: np.ndarray
    answer: np.ndarray
    result: SweepResult
    source_value: float
    target_value: float
    answer_levels: tuple[float, float]
    columns: list[Any]
    words: list[str]
    ids: list[int]


def patch(
    model: Model,
    clean: str = CLEAN_PROMPT,
    corrupt: str = CORRUPT_PROMPT,
    answer: str = ANSWER,
    wrong: str = WRONG_ANSWER,
    grid: Literal["position", "head", "block", "last", "neuron"] = "position",
    site: str = "resid_pre",
    direction: Literal["denoise", "noise"] = "denoise",
    window: int = 1,
    block: int = -1,
    pairs: TextFile = "",
    exact: bool = False,
    map: list[str] | None = None,
    count: int = 0,
) -> xr.Dataset:
    """Patch one run's activations into another, cell by cell, and measure the logit of the answer minus a
    wrong one's.

    Source: Meng et al., "Locating and editing factual associations in GPT" (2022); Wang et al.,
    "Interpretability in the wild" (2022). The normalised effect is (m_patched - m_target) / (m_source -
    m_target): 0 where the patch does nothing, 1 where it makes the run like the one that the activation came
    from. Beside it attribution patching (Nanda, 2023): the same to first order, difference times gradient,
    for all cells from one backward pass.

    Args:
        clean: the prompt whose answer is `answer`.
        corrupt: a prompt of as many tokens whose answer is `wrong`.
        answer: one token.
        wrong: one token.
        grid: block x position, block x head (all positions), block (all positions), last (the position at
            which the answer is read alone), or one block's neurons (all positions).
        site: which activation of a block: resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z or
            mlp_act; the grids of heads and neurons have their own.
        direction: denoise puts clean activations into the corrupted run, noise the other way round.
        window: how many blocks from each one on are patched together.
        block: for the neuron grid, the number of the block; by default the last.
        pairs: a JSON list of cases of your own, each with clean, corrupt, answer and wrong; their effects are
            averaged.
        exact: one row at a time with stock layers, the calls of the clean run: a patch that changes nothing
            gives 0 and a full one 1, to the bit.
        map: for prompts of unequal length, pairs CLEAN:CORRUPT of token positions that belong together, for
            example 3:4.
        count: how many of the pairs of a file, the first ones; 0 for all.

    Raises:
        ValueError: prompts of unequal length without a map, a target that is not one token, or a site that no
            block has.

    Examples:
        >>> data = regraft.patch(model, count=1)
        >>> dict(data["effect"].sizes), data["effect"].attrs["units"]
        ({'block': 12, 'position': 17}, 'share of the difference between the runs')
    """
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction {direction!r} is not known: choose denoise or noise")
    if not 1 <= window <= len(stack_blocks(model)):
        raise ValueError(f"a window of {window} blocks does not fit: choose 1 to {len(stack_blocks(model))}")
    cases = chosen_cases(model, PatchCase(clean, corrupt, answer, wrong), pairs, count)
    plan = PatchGrid(model, grid, site, window, block)
    parts = []
    for case in cases:
        parts.append(_measured(model, plan, case, direction, map, exact))
        advance("pairs", len(parts), len(cases))
    if len({len(part.columns) for part in parts}) > 1:
        raise ValueError(
            "the pairs differ in their numbers of positions: choose the grid head or block, or pairs of one"
            " length"
        )
    return _dataset(plan, parts, direction).assign_attrs(said(cases[0]))


def said(case: PatchCase) -> dict[str, str]:
    """A case in words, as attributes of a result: the first of several."""
    return {"clean": case.clean, "corrupt": case.corrupt, "answer": case.answer, "wrong": case.wrong}


def _measured(
    model: Model, plan: PatchGrid, case: PatchCase, direction: str, given: list[str] | None, exact: bool
) -> Cells:
    """Run one case's grid, and its attribution where every cell's activation can be reached by a gradient."""
    runs = {"clean": model.record(case.clean), "corrupt": model.record(case.corrupt)}
    places = position_pairs(runs["clean"], runs["corrupt"], given)
    source, target = runs["clean"], runs["corrupt"]
    if direction == "noise":
        source, target, places = target, source, [(b, a) for a, b in places]
    read = read_position(model, source, target)
    places = places_of(plan, places, target.positions - 1 if read is None else read)
    variants, columns = plan.variants(source, places)
    metric = [logit_difference(case.answer, case.wrong, read), token_logit(case.answer, read)]
    result = sweep(target, variants, metric, exact=exact)
    clean_source = sweep(source, [], metric, exact=exact).clean
    source_value, target_value = float(clean_source[METRIC]), float(result.clean[METRIC])
    if source_value == target_value:
        raise ValueError("both prompts give the same logit difference, so there is no effect to carry over")
    value, alone = (
        on_grid(plan.cells, result.values[name][:, 0].tolist(), (len(plan.rows), len(columns)))
        for name in (METRIC, ANSWER_METRIC)
    )
    tokens = (model.single_token(case.answer), model.single_token(case.wrong))
    estimate = plan.attributed(source, target, places, tokens, read, value.shape)
    span = source_value - target_value
    ids = target.inputs["input_ids"][0, columns].tolist() if plan.grid == "position" else []
    words = [model.token_text(token) for token in ids]
    return Cells(
        value,
        (value - target_value) / span,
        estimate / span,
        alone,
        result,
        source_value,
        target_value,
        (float(clean_source[ANSWER_METRIC]), float(result.clean[ANSWER_METRIC])),
        columns,
        words,
        ids,
    )


def places_of(plan: PatchGrid, places: list[tuple[int, int]], read: int) -> list[tuple[int, int]]:
    """The pairs of positions that are patched: all of them, or the one at which the answer is read.

    Raises:
        ValueError: no pair belongs to that position, or the answer is read in another stack.
    """
    if plan.grid != "last":
        return places
    if plan.model.two_stacks:
        raise ValueError(
            f"{plan.model.name} reads its answer in the decoder, and what is patched is the encoder: choose"
            " another grid"
        )
    chosen = [pair for pair in places if pair[1] == read]
    if not chosen:
        raise ValueError(f"no pair of --map belongs to position {read}, at which the answer is read")
    return chosen


def on_grid(cells: Sequence[tuple[int, int]], values: Sequence[float], shape: tuple[int, int]) -> np.ndarray:
    """Values of cells on their grid; NaN where a grid has no cell."""
    grid = np.full(shape, np.nan)
    for place, one in zip(cells, values, strict=True):
        grid[place] = one
    return grid


def _shared(found: Iterable[Any], none: Any = "") -> Any:
    """What all the pairs have in one place; `none` where they differ."""
    first, *others = found
    return first if all(other == first for other in others) else none


def _answer_alone(parts: Sequence[Cells], dims: tuple[str, str], mean: str) -> dict[str, Any]:
    """The logit of the answer alone: what a patch does to it and not to the wrong one's."""
    spans = [(part.answer - part.answer_levels[1], part.answer_levels) for part in parts]
    effects = [
        moved / (levels[0] - levels[1]) if levels[0] != levels[1] else np.full_like(moved, np.nan)
        for moved, levels in spans
    ]
    found = {
        "answer_logit": quantity(
            dims, np.mean([part.answer for part in parts], 0), f"logit of the answer alone{mean}",
            "Beside the difference: where it stays still while the difference moves, the patch took the wrong"
            " answer away.", SEED,
        ),
        "answer_effect": quantity(
            dims, np.mean(effects, 0), f"share of the runs' difference in the answer's logit{mean}",
            "0: as the run that is patched, 1: as the run that the activation came from.", SEED,
        ),
    }  # fmt: skip
    for name, place in (("answer_source", 0), ("answer_target", 1)):
        which = "the activations come from" if place == 0 else "is patched"
        level = float(np.mean([part.answer_levels[place] for part in parts]))
        found[name] = quantity(
            (),
            level,
            f"logit of the answer in the run that {which}{mean}",
            "One of the two levels between which patched values lie.",
            SEED,
        )
    return found


def _dataset(plan: PatchGrid, parts: list[Cells], direction: str) -> xr.Dataset:
    """One case's cells, or the mean over several cases with its standard error."""
    first, grid = parts[0], plan.grid
    name = {"position": "position", "head": "head", "neuron": "neuron"}.get(grid, "positions")
    rows = [block.address for block in plan.rows]
    coords: dict[str, Any] = {"block": rows, name: first.columns}
    if grid == "position":
        coords["token"] = (
            name,
            [_shared(part.words[i] for part in parts) or f"token {c}" for i, c in enumerate(first.columns)],
        )
        coords["token_id"] = (
            name,
            [_shared((part.ids[i] for part in parts), none=-1) for i in range(len(first.columns))],
        )
    attributes = sweep_attributes(*(part.result for part in parts))
    lacking = [row for row, address in zip(rows, plan.addresses, strict=True) if not address]
    if grid == "block" and plan.site.startswith("resid"):
        note = f"{plan.site} at all positions is all that the other run is: every block gives 1"
        attributes["notes"] = "; ".join(one for one in (attributes["notes"], note) if one)
    if lacking:
        reason = f"{plan.site} does not exist in block {', '.join(lacking)}, whose rows are empty"
        attributes["notes"] = "; ".join(note for note in (attributes["notes"], reason) if note)
    effect, estimate = (
        np.stack([getattr(part, field) for part in parts]) for field in ("effect", "attribution")
    )
    dims, mean = ("block", name), f", mean over {len(parts)} pairs" if len(parts) > 1 else ""
    value = np.mean([part.value for part in parts], 0)
    data: dict[str, Any] = {
        METRIC: (dims, value, {"units": f"logit of the answer minus logit of the wrong one{mean}"}),
        "effect": (dims, effect.mean(0), {"units": f"share of the difference between the runs{mean}"}),
        "attribution": (
            dims,
            estimate.mean(0),
            {"units": f"the same to first order: difference times gradient{mean}"},
        ),
    }
    data |= _answer_alone(parts, dims, mean)
    if len(parts) > 1:
        error = effect.std(0, ddof=1) / np.sqrt(len(parts))
        data["effect_error"] = (dims, error, {"units": f"standard error over {len(parts)} pairs"})
        data["pair_effect"] = (("pair", *dims), effect, {"units": "share of the difference between the runs"})
    both = np.isfinite(effect.mean(0)) & np.isfinite(estimate.mean(0))
    a, b = effect.mean(0)[both], estimate.mean(0)[both]
    varies = len(a) > 2 and min(a.std(), b.std()) > FLAT * max(np.abs(a).max(), np.abs(b).max())
    return xr.Dataset(
        data,
        coords=coords,
        attrs={
            **attributes,
            "source_value": float(np.mean([part.source_value for part in parts])),
            "target_value": float(np.mean([part.target_value for part in parts])),
            "pairs": len(parts),
            "window": plan.window,
            "attribution_correlation": float(np.corrcoef(a, b)[0, 1]) if varies else float("nan"),
            "direction": direction,
            "site": {"head": "z of one head", "neuron": "one neuron"}.get(grid, plan.site),
            "grid": grid,
            "title": (
                {
                    "position": "Activation patching",
                    "head": "Patching heads",
                    "block": "Patching blocks",
                    "last": "Patching the last position",
                }.get(grid, "Patching neurons")
            ),
        },
    )
