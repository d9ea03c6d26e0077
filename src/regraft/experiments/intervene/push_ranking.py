"""Which components push most towards each answer, what several questions have in common, and where the
foremost heads look.

Shapes: N pairs of a question and a baseline, C components, K targets, R places of a ranking, T positions of
the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.quantities import quantity
from regraft.model.eager_attention import eager_attention
from regraft.model.model import Model
from regraft.model.sites import SiteError

RANKED_PLACES = 10
"""Components of a ranked list."""
KINDS = ("mlp", "head", "attention", "block")
"""Kinds of components, each with a list of its own."""
HEADS_SHOWN = 6
"""Heads of which it is shown what they look at."""
RANKING = ("target", "ranked_kind", "place")
SEED = "push study of small Llamas (the project's seed)"


def ranked_quantities(labels: Sequence[str], kinds: Sequence[str], push_NCK: np.ndarray) -> dict[str, Any]:
    """For each target its ranked components of each kind, and what every pair pushes the same way."""
    mean_CK = push_NCK.mean(0)
    shape = (mean_CK.shape[1], len(KINDS), RANKED_PLACES)
    names, values = np.full(shape, "", dtype=object), np.full(shape, np.nan)
    for target, row in np.ndindex(shape[:2]):
        chosen = np.flatnonzero((np.array(kinds) == KINDS[row]) & np.isfinite(mean_CK[:, target]))
        first = chosen[np.argsort(-np.abs(mean_CK[chosen, target]), kind="stable")][:RANKED_PLACES]
        names[target, row, : len(first)] = [labels[i] for i in first]
        values[target, row, : len(first)] = mean_CK[first, target]
    same = (push_NCK > 0).all(0) | (push_NCK < 0).all(0)
    common = np.where(same, np.sign(mean_CK) * np.abs(push_NCK).min(0), 0.0)
    return {
        "ranked": quantity(
            RANKING, names.astype(str), "component",
            "The components of a kind with the largest push of each target, first to last, whichever way.",
            SEED,
        ),
        "ranked_push": quantity(
            RANKING, values, "nats: push of that component",
            "A list that falls fast: few components carry the answer.", SEED,
        ),
        "common_push": quantity(
            ("component", "target"), common, "nats: smallest push over the pairs, 0 where signs differ",
            "What every question pushes alike goes with being asked, not with this question.", SEED,
        ),
    }  # fmt: skip


def beyond_quantities(push_NCK: np.ndarray, second_NCK: np.ndarray) -> dict[str, Any]:
    """A second question's push, and what the first has beyond it."""
    grid = ("component", "target")
    return {
        "minus_push": quantity(
            grid, second_NCK.mean(0), "nats: push of the second question",
            "What another question pushes into the same text.", SEED,
        ),
        "push_beyond": quantity(
            grid, (push_NCK - second_NCK).mean(0), "nats: push less that of the second question",
            "Near 0: the component pushes this answer whatever is asked.", SEED,
        ),
    }  # fmt: skip


def looked_at(model: Model, found: xr.Dataset, question: str, behind: str | None) -> xr.Dataset:
    """The result with what the foremost heads look at from the question's last position.

    The question is run once more with attention that returns its weights. A model whose attention returns
    none is left without, and the result's notes say so.
    """
    heads = _foremost(found)
    if not heads:
        return found
    if model.two_stacks:
        return _noted(found, "a decoder's own attention does not see the question")
    rows, tokens = [], []
    try:
        with eager_attention(model):
            recording = model.record(question, behind)
            for block, head in heads:
                weights = recording.attention_weights(model.main_blocks[block].index)
                rows.append(weights[0, head, -1].float().cpu().numpy())
            tokens = [model.token_text(int(i)) for i in recording.ids_BT[0]]
    except (SiteError, ValueError) as error:
        return _noted(found, " ".join(str(error).split()))
    blocks = [model.main_blocks[block].address for block, _ in heads]
    names = [f"L{address}H{head}" for address, (_, head) in zip(blocks, heads, strict=True)]
    weights = quantity(
        ("looking_head", "question_position"), np.stack(rows), "attention weight from the last position",
        "Each row adds up to 1, less what a sink takes. A head that looks at the word in question carries it;"
        " one that looks at the"
        " first token rests.", SEED,
    )  # fmt: skip
    coords = {
        "looking_head": names,
        "question_position": np.arange(len(tokens)),
        "question_token": ("question_position", tokens),
    }
    return found.assign(looks_at=weights).assign_coords(coords)


def _noted(found: xr.Dataset, why: str) -> xr.Dataset:
    """The result with the reason why nothing is said of where heads look."""
    reason = f"what heads look at is not shown: {why}"
    notes = "; ".join(note for note in (found.attrs.get("notes", ""), reason) if note)
    return found.assign_attrs(notes=notes)


def _foremost(found: xr.Dataset) -> list[tuple[int, int]]:
    """Block (its place in the stack) and number of the heads with the largest push of any target."""
    blocks = list(dict.fromkeys(found.component_block.values.tolist()))
    heads = np.flatnonzero(found.kind.values == "head")
    size = np.nan_to_num(np.abs(found.push.values[heads]), nan=-1.0).max(axis=1, initial=-1.0)
    chosen = heads[np.argsort(-size, kind="stable")[:HEADS_SHOWN]]
    return [(blocks.index(found.component_block.values[i]), int(found["head"].values[i])) for i in chosen]
