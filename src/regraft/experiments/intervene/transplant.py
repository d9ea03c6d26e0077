"""Cross-model transplant: a block of one model in the place of a block of another.

Shapes: M blocks of the donor, L blocks of the model.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch import nn

from regraft.core.defaults import COMPLETION_TOKENS
from regraft.core.signatures import ModelName, NewFolder
from regraft.data.evaluation import Evaluation, evaluation
from regraft.export.route_model import check_save, check_writable_as, measured_route, route_of, save_blocks
from regraft.model.load import load
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.selfcheck import sample_ids
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant


def transplant(
    model: Model,
    donor: ModelName = "",
    put: list[str] | None = None,
    save: NewFolder = "",
    prompts: list[str] | None = None,
    count: int = 8,
    tokens: int = COMPLETION_TOKENS,
) -> xr.Dataset:
    """Put every block of a donor in the place of every block of this model and measure the loss.

    A donor's block is called with the arguments (masks, positions) of the block whose place it takes. With
    `put`, only the given pairs are exchanged, all at once, and with `save` the result is written as a plain
    Hugging Face checkpoint, which is read back and compared with the measured route first.

    Args:
        donor: a folder, a hub id, or a specimen, as wide as this model; by default this model itself.
        put: pairs DONOR:PLACE of block numbers, for example 3:5.
        save: folder to write the model to; it needs put.
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.

    Raises:
        ValueError: a donor of another width, or whose blocks cannot be called as this model's are; a block
            that does not exist; a model without a next-token loss; a result that cannot be written.

    Examples:
        >>> data = regraft.transplant(model, donor="specimen:tuned", count=1, tokens=4)
        >>> dict(data["loss"].sizes), data["loss"].attrs["units"]
        ({'donor_block': 12, 'block': 12}, 'nats per token')
    """
    if save and not put:
        raise ValueError("--save writes one model: say which blocks to put where with --put DONOR:PLACE")
    check_save(save)
    given = (
        model
        if not donor
        else load(donor, device=str(model.device), dtype=model.dtype, attention=model.attention, pack=False)
    )
    stack, theirs = model.parts.stacks[-1], given.parts.stacks[-1]
    text = evaluation(model, prompts, count, tokens)
    _check_fit(model, given, theirs.blocks)
    if put:
        return _put(
            model, given, [_pair(word, len(theirs.blocks), len(stack.blocks)) for word in put], save, text
        )
    total = len(model.blocks)
    cells = [(i, j) for i in range(len(theirs.blocks)) for j in range(len(stack.blocks))]
    routes = [Route.replace(total, {stack.blocks[j].index: theirs.blocks[i].module}) for i, j in cells]
    result = sweep(text.recordings, [Variant(route=route) for route in routes], loss())
    losses = result.mean("loss").numpy().reshape(len(theirs.blocks), len(stack.blocks))
    clean = result.clean_mean("loss")
    return xr.Dataset(
        {
            "loss": (("donor_block", "block"), losses, {"units": "nats per token"}),
            "increase": (("donor_block", "block"), losses - clean, {"units": "nats per token above clean"}),
        },
        coords={
            "donor_block": [b.address for b in theirs.blocks],
            "block": [b.address for b in stack.blocks],
        },
        attrs={
            **sweep_attributes(result),
            "clean_loss": clean,
            "donor": given.name,
            "donor_sha256": given.weights_sha256,
            **text.attributes,
        },
    )


def _check_fit(model: Model, given: Model, blocks: tuple[Block, ...]) -> None:
    """Make sure that the donor's blocks run in this model's places and give a stream of its width."""
    if given.width != model.width:
        raise ValueError(
            f"{given.name} is {given.width} wide, {model.name} {model.width}: a donor must be as wide"
        )
    first = model.parts.stacks[-1].blocks[0].index
    ids = sample_ids(model.table_rows, min(3, model.probe))
    recording = model.record([ids], [ids[1:]] if model.two_stacks else None, attention_mask="all")
    for block in blocks:
        try:
            with torch.no_grad():
                out = recording.run_block(first, recording.pre(first), rows=1, module=block.module)
        except (TypeError, RuntimeError, AttributeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"block {block.address} of {given.name} cannot be called as {model.name} calls its own:"
                f" {reason}"
            ) from error
        if out.shape != recording.pre(first).shape:
            raise ValueError(
                f"block {block.address} of {given.name} does not return a stream as {model.name}'s do"
            )


def _pair(word: str, donors: int, places: int) -> tuple[int, int]:
    first, colon, second = word.partition(":")
    if not colon or not first.strip().isdigit() or not second.strip().isdigit():
        raise ValueError(f"{word!r} is no pair of blocks: write DONOR:PLACE, for example 3:5")
    donor, place = int(first), int(second)
    if donor >= donors or place >= places:
        raise ValueError(f"the pair {word} is outside the donor's {donors} and this model's {places} blocks")
    return donor, place


def _put(model: Model, given: Model, pairs: list[tuple[int, int]], save: str, text: Evaluation) -> xr.Dataset:
    stack = model.parts.stacks[-1]
    blocks: list[Block | nn.Module] = list(stack.blocks)
    for donor, place in pairs:
        blocks[place] = given.parts.stacks[-1].blocks[donor].module
    check_writable_as(model, blocks, save)
    route = route_of(model, blocks, list(range(len(blocks))))
    measured = measured_route(model, text, route, blocks)
    sentence = ", ".join(f"{donor} for {place}" for donor, place in pairs)
    measured.attrs |= {
        "change": f"with blocks of {given.name}: {sentence}",
        "donor": given.name,
        "donor_sha256": given.weights_sha256,
    }
    taken = {place: donor for donor, place in pairs}
    kept = [
        f"{given.name} {taken[place]}" if place in taken else b.address
        for place, b in enumerate(stack.blocks)
    ]
    measured = measured.assign_coords(kept=("place", kept))
    if save:
        measured.attrs["saved"] = save_blocks(model, blocks, route, measured, save)
    return measured
