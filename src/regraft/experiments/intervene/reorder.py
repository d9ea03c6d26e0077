"""Reordering: blocks in another order, some of them twice or not at all, measured and written."""

from __future__ import annotations

import xarray as xr

from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.core.signatures import NewFolder
from regraft.data.evaluation import evaluation_or_texts
from regraft.export.route_model import check_save, check_writable_as, measured_route, route_of, save_blocks
from regraft.model.model import Model


def reorder(
    model: Model,
    order: list[int] | None = None,
    save: NewFolder = "",
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
) -> xr.Dataset:
    """Put the blocks in a given order, in which a block may come again or be missing, and measure the model
    that results.

    Each block keeps its own kind of attention wherever it stands. With `save` the model is written as a plain
    Hugging Face checkpoint, which is read back and compared with the measured route first.

    Args:
        order: numbers of the blocks in their new order; without it, the first two inner blocks change places.
        save: folder to write the model to.
        prompts: texts whose completions are scored, or which a model that writes none reads; without them,
            prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.

    Raises:
        ValueError: a block that does not exist, or an order that cannot be written.

    Examples:
        >>> data = regraft.reorder(model, order=[0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11], count=1, tokens=4)
        >>> dict(data["loss"].sizes), data["loss"].attrs["units"]
        ({'state': 2}, 'nats per token')
    """
    check_save(save)
    stack = model.parts.stacks[-1]
    total = len(stack.blocks)
    wanted = list(order) if order else _exchanged(total)
    wrong = next((number for number in wanted if not 0 <= number < total), None)
    if wrong is not None:
        raise ValueError(
            f"there is no block {wrong} for the order: there are {total} blocks, 0 to {total - 1}"
        )
    blocks = [stack.blocks[number] for number in wanted]
    check_writable_as(model, blocks, save)
    text = evaluation_or_texts(model, prompts, count, tokens)
    route = route_of(model, blocks, list(range(len(blocks))))
    measured = measured_route(model, text, route, blocks)
    measured.attrs["change"] = f"blocks in the order {', '.join(block.address for block in blocks)}"
    measured = measured.assign_coords(kept=("place", [block.address for block in blocks]))
    if save:
        measured.attrs["saved"] = save_blocks(model, blocks, route, measured, save)
    return measured


def _exchanged(total: int) -> list[int]:
    order = list(range(total))
    if total > 2:
        order[1], order[2] = order[2], order[1]
    return order
