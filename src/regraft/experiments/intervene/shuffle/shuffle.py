"""Shuffle recovery: the blocks are put in a random order; sixteen methods try to find the right one.

Shapes: n blocks, M methods.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from regraft.core.defaults import COMPLETION_TOKENS
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.data.evaluation import Evaluation, evaluation
from regraft.experiments.intervene.shuffle.order_loss import WITH_TEXT, Losses, Order
from regraft.experiments.intervene.shuffle.order_weights import WITHOUT_TEXT, Blocks
from regraft.experiments.intervene.shuffle.seriation import scores
from regraft.model.model import Model
from regraft.sweeps.provenance import sweep_attributes

DEFAULT = ("activation_flow", "bubble")
PUBLISHED = "shuffle-recovery study of Qwen3-1.7B (hivaze/dl-experiments)"


def shuffle(
    model: Model,
    method: str = "default",
    prompts: list[str] | None = None,
    count: int = 8,
    tokens: int = COMPLETION_TOKENS,
    seeds: int = 1,
    counts: list[int] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Shuffle the blocks by the seed and recover their order, by weights, random input, or the loss on the
    model's own text.

    Kendall's tau of the recovered order with the true one (1: the same), the share of blocks in their place,
    the mean displacement, the loss of the recovered model, orders measured and time. Methods that search by
    loss start from the order with the lowest loss among those found without text. Only routes change; no
    weight is moved.

    Args:
        method: default (activation_flow, then bubble), all sixteen, or one or several names with commas.
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        seeds: how many orders to draw, the first with the seed: tau for each of them.
        counts: numbers of prompts to find the order again on, beside `count`: tau against length of text.
        seed: of everything drawn at random.

    Raises:
        ValueError: an unknown method, fewer than three blocks, or a model without a next-token loss.

    Examples:
        >>> data = regraft.shuffle(model, method="greedy_cosine", count=1, tokens=4)
        >>> dict(data["tau"].sizes), data["tau"].attrs["units"]
        ({'method': 1}, "Kendall's tau with the true order")
    """
    chosen = _methods(method)
    model.check_whole("shuffle compares the weights of all blocks")
    stack = model.parts.stacks[-1]
    if len(stack.blocks) < 3:
        raise ValueError(f"{len(stack.blocks)} blocks are too few to lose their order: 3 or more are needed")
    if seeds < 1 or min(counts or [1]) < 1:
        raise ValueError("an order is drawn at least once, and found again on at least one prompt")
    text = evaluation(model, prompts, count, tokens)
    drawn = _Draw(model, seed)
    rows, losses, refused = _recovered(drawn, text, chosen, len(chosen) * (seeds + len(counts or [])))
    if not rows:
        raise ValueError("; ".join(refused))
    data = _dataset(rows, drawn.order, losses, [b.address for b in stack.blocks], refused, text.attributes)
    names = [row["name"] for row in rows]
    if seeds > 1:
        later = [_recovered(_Draw(model, seed + n), text, names)[0] for n in range(1, seeds)]
        data = data.assign(by_seed([rows, *later])).assign_coords(draw=[seed + n for n in range(seeds)])
    if counts:
        texts = [evaluation(model, prompts[:n] if prompts else None, n, tokens) for n in counts]
        found = [_recovered(drawn, one, names)[0] for one in texts]
        lengths = [one.scored_tokens for one in texts]
        data = data.assign(by_text(found)).assign_coords(text_tokens=lengths)
    return data


class _Draw:
    """An order drawn with a seed, and the blocks in it."""

    def __init__(self, model: Model, seed: int):
        self.model, self.seed, self.stack = model, seed, model.parts.stacks[-1]
        count = len(self.stack.blocks)
        self.order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        self.shuffled = [self.stack.blocks[i] for i in self.order]
        self.around = (list(range(self.stack.first)), [])


def _recovered(
    drawn: _Draw, text: Evaluation, chosen: Sequence[str], all_told: int = 0
) -> tuple[list[dict[str, Any]], Losses, list[str]]:
    """What every method finds, one row each; the losses measured; why others could not be used."""
    blocks = Blocks(drawn.model, drawn.shuffled, 0)
    found: dict[str, Order] = {}
    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    losses = Losses(text, drawn.shuffled, drawn.around)
    for name in chosen:
        started = time.perf_counter()
        own = Losses(text, drawn.shuffled, drawn.around)
        try:
            if name in WITHOUT_TEXT:
                result = WITHOUT_TEXT[name](blocks)
            else:
                draw = np.random.default_rng(drawn.seed)
                result = WITH_TEXT[name](own, _best(found, losses, blocks), draw)
        except ValueError as error:
            refused.append(f"{name} cannot be used: {error}")
            continue
        seconds = time.perf_counter() - started
        found[name] = result
        losses.known.update(own.known)
        losses.results += own.results
        rows.append({"seconds": seconds, "orders": own.measured, "loss": float(losses([result])[0])})
        rows[-1] |= {"name": name, "order": [drawn.order[i] for i in result]}
        advance("methods", len(rows), all_told or len(chosen))
    return rows, losses, refused


def by_seed(draws: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    """Kendall's tau of every method for every order drawn."""
    return {
        "tau_by_seed": quantity(
            ("method", "draw"), _taus(draws), "Kendall's tau with the true order",
            "A method that is exact for one order and not for another starts from what it was given.",
            PUBLISHED,
        )
    }  # fmt: skip


def by_text(draws: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    """The same for texts of several lengths; a method that reads none is the same for all."""
    return {
        "tau_by_text": quantity(
            ("method", "text_tokens"), _taus(draws), "Kendall's tau with the true order",
            "Where the line is level, more text of this kind finds no better order.", PUBLISHED,
        )
    }  # fmt: skip


def _taus(draws: Sequence[list[dict[str, Any]]]) -> np.ndarray:
    return np.array([[scores(row["order"])["tau"] for row in rows] for rows in draws]).T


def _methods(method: str) -> list[str]:
    if method == "default":
        return list(DEFAULT)
    if method == "all":
        return [*WITHOUT_TEXT, *WITH_TEXT]
    names = [name.strip() for name in method.split(",")]
    unknown = next((name for name in names if name not in {**WITHOUT_TEXT, **WITH_TEXT}), None)
    if unknown is not None:
        known = ", ".join(["default", "all", *WITHOUT_TEXT, *WITH_TEXT])
        raise ValueError(f"there is no method {unknown!r} to find an order: choose among {known}")
    return names


def _best(found: dict[str, Order], losses: Losses, blocks: Blocks) -> Order:
    """The order to start from: the lowest loss among those found without text, else what activation_flow
    finds."""
    orders = [order for name, order in found.items() if name in WITHOUT_TEXT] or [
        WITHOUT_TEXT[DEFAULT[0]](blocks)
    ]
    return orders[int(losses(orders).argmin())]


def _dataset(
    rows: list[dict[str, Any]],
    order: list[int],
    losses: Losses,
    addresses: list[str],
    refused: list[str],
    text: dict[str, Any],
) -> xr.Dataset:
    clean, given = losses([[order.index(i) for i in range(len(order))], list(range(len(order)))]).tolist()
    scored, measured = [scores(row["order"]) for row in rows], sweep_attributes(*losses.results)
    units = {
        "tau": ("Kendall's tau with the true order", "1: the same order; 0: no relation; -1: turned round."),
        "in_place": (
            "share of blocks in their place",
            "Low beside a high tau: the order is shifted as a whole.",
        ),
        "displacement": ("mean places that a block is off", "0: every block is in its place."),
    }
    return xr.Dataset(
        {
            **{
                name: quantity("method", [s[name] for s in scored], *told, PUBLISHED)
                for name, told in units.items()
            },
            "loss": (
                "method",
                [row["loss"] for row in rows],
                {"units": "nats per token of the recovered model"},
            ),
            "orders": ("method", [row["orders"] for row in rows], {"units": "orders measured"}),
            "seconds": ("method", [row["seconds"] for row in rows], {"units": "s on this machine"}),
            "recovered": (
                ("method", "place"),
                [[addresses[i] for i in row["order"]] for row in rows],
                {"units": "block"},
            ),
            "shuffled": ("place", [addresses[i] for i in order], {"units": "block, as shuffled"}),
        },
        coords={"method": [row["name"] for row in rows], "place": np.arange(len(order))},
        attrs={
            **measured,
            "clean_loss": clean,
            "shuffled_loss": given,
            "notes": "; ".join([note for note in (measured["notes"], *refused) if note]),
            **text,
        },
    )
