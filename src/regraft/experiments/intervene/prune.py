"""Pruning: leave blocks out, measure what is lost, and write the smaller model."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.signatures import NewFolder
from regraft.data.evaluation import Evaluation, Texts, evaluation_or_texts
from regraft.experiments.intervene.knockout import greedy
from regraft.export.route_model import check_save, check_writable_as, measured_route, route_of, save_blocks
from regraft.model.model import Model
from regraft.model.parts import Block


def prune(
    model: Model,
    drop: list[int] | None = None,
    limit: float = 1.5,
    save: NewFolder = "",
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
) -> xr.Dataset:
    """Leave out blocks, the given ones or those that greedy pruning finds, and measure the model that
    remains.

    Greedy pruning removes the block whose loss costs least, measures all that remain anew, and stops before
    the loss exceeds `limit` times the whole model's. With `save` the pruned model is written as a plain
    Hugging Face checkpoint, which is read back and compared with the measured route first.

    Args:
        drop: numbers of the blocks to leave out; without them, greedy pruning chooses.
        limit: how many times the clean loss greedy pruning may reach.
        save: folder to write the pruned model to.
        prompts: texts whose completions are scored, or which a model that writes none reads; without them,
            prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.

    Raises:
        ValueError: a block that does not exist, nothing left, a model without a next-token loss, or one that
            cannot be written without its blocks.

    Examples:
        >>> data = regraft.prune(model, drop=[3, 5], save="smaller", count=1, tokens=4)
        >>> dict(data["loss"].sizes), data["loss"].attrs["units"]
        ({'state': 2}, 'nats per token')
    """
    check_save(save)
    stack = model.parts.stacks[-1]
    total = len(stack.blocks)
    if total < 2:
        raise ValueError(f"{stack.name or 'the model'} has a single block: none can be left out")
    if drop:
        check_writable_as(model, _without(stack.blocks, drop), save)
    text = evaluation_or_texts(model, prompts, count, tokens)
    removed = sorted(set(drop)) if drop else _greedy(model, text, limit)
    places = [p for p in range(total) if p not in removed]
    blocks = _without(stack.blocks, removed)
    check_writable_as(model, blocks, save)
    route = route_of(model, blocks, places)
    measured = measured_route(model, text, route, blocks)
    left_out = ", ".join(stack.blocks[p].address for p in removed)
    measured.attrs["change"] = (
        f"without block{'s' if len(removed) != 1 else ''} {left_out}" if removed else "with every block"
    )
    measured = measured.assign_coords(kept=("place", [block.address for block in blocks]))
    if save:
        measured.attrs["saved"] = save_blocks(model, blocks, route, measured, save)
    return measured


def _without(blocks: Sequence[Block], removed: Sequence[int]) -> list[Block]:
    """The blocks that remain.

    Raises:
        ValueError: there is no block of a number, or none would remain.
    """
    wrong = next((number for number in removed if not 0 <= number < len(blocks)), None)
    if wrong is not None:
        raise ValueError(
            f"there is no block {wrong} to leave out: there are {len(blocks)} blocks, 0 to {len(blocks) - 1}"
        )
    if len(set(removed)) == len(blocks):
        raise ValueError("no block would remain: leave out fewer")
    return [block for place, block in enumerate(blocks) if place not in removed]


def _greedy(model: Model, text: Evaluation | Texts, limit: float) -> list[int]:
    """Numbers, within the last stack, of the blocks that greedy pruning removes; one at least remains.

    Raises:
        ValueError: the model has no loss that could be kept low.
    """
    if isinstance(text, Texts):
        raise ValueError(
            f"{model.name} has no next-token loss by which to choose blocks: name them with --drop"
            " (drop=[...])"
        )
    own = [block.index for block in model.parts.stacks[-1].blocks]
    steps = greedy(model, text, limit, own, keep=1)
    addresses = [block.address for block in model.blocks]
    return sorted(own.index(addresses.index(address)) for address in steps.removed.values.tolist())
