"""A route in the live model: for a while its last stack is another sequence of its own blocks.

Nothing is copied but the modules' shells: every weight stays where it is. Shapes: B prompts, T positions, D
width of the stream.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from regraft.core.tolerance import gap
from regraft.export.block_config import adjusted
from regraft.export.readback import probe_ids
from regraft.export.route_model import facts_of
from regraft.model.block_call import stacks_replaced, text_config
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.recording import Recording
from regraft.model.selfcheck import LENGTH, sample_ids
from regraft.sweeps.executor import route_logits, route_stream
from regraft.sweeps.live_edits import Copies
from regraft.sweeps.routes import Route


@contextmanager
def live_route(model: Model, route: Route) -> Iterator[Copies]:
    """While inside, the live model runs a route by itself; yields what runs in each module's place.

    Keys and values are kept for each place, so a block that comes twice keeps two. What the configuration
    says of single blocks goes with them, and the model is held to its blocks run one after the other.

    Raises:
        ValueError: the route changes an encoder, is empty or holds what is no module, or the model does not
            run it by itself.
    """
    stack, blocks = model.parts.stacks[-1], _blocks(model, route)
    recording = _probe(model)
    wanted = (
        route_logits(recording, route)
        if model.parts.head is not None
        else recording.hidden(route_stream(recording, route))
    )
    copies: dict[nn.Module, list[nn.Module]] = defaultdict(list)
    modules = [_numbered(block, place, copies) for place, block in enumerate(blocks)]
    facts = facts_of(model, blocks)
    with model.held(), ExitStack() as undone:
        for config in _configs(model.hf):
            other = adjusted(config, len(stack.blocks), facts, model.two_stacks)
            undone.enter_context(_restated(config, other))
        undone.enter_context(stacks_replaced([(stack, modules)]))
        _check_runs(model, recording, wanted)
        yield copies


def _blocks(model: Model, route: Route) -> list[Block | nn.Module]:
    """The last stack's blocks on the route.

    Raises:
        ValueError: there are none, something is no module, or an encoder's blocks are changed.
    """
    model.check_whole("a route of the live model shares the weights of all blocks")
    first = model.parts.stacks[-1].first
    before, own = list(route.stops[:first]), list(route.stops[first:])
    if any(stop.block != i or stop.module is not None for i, stop in enumerate(before)) or any(
        stop.block < first for stop in own
    ):
        raise ValueError("a live route varies the last stack only: leave the encoder's blocks as they are")
    if not own:
        raise ValueError("the route is empty: a model without any block writes nothing")
    found: list[Block | nn.Module] = []
    for stop in own:
        if stop.module is not None and not isinstance(stop.module, nn.Module):
            raise ValueError(
                f"a {type(stop.module).__name__} in the place of block {stop.block} is no module: the live"
                " model runs modules only"
            )
        if stop.block >= len(model.blocks):
            raise ValueError(f"there is no block {stop.block}: there are {len(model.blocks)}")
        found.append(model.blocks[stop.block] if stop.module is None else stop.module)
    return found


def _numbered(block: Block | nn.Module, place: int, copies: dict[nn.Module, list[nn.Module]]) -> nn.Module:
    """The same weights in a shell of its own, whose keys and values are kept under the number of its
    place."""
    module = block.module if isinstance(block, Block) else block
    shared: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    shared |= {id(part.config): part.config for part in module.modules() if "config" in vars(part)}
    made = copy.deepcopy(module, shared)
    for own, other in zip(module.modules(), made.modules(), strict=True):
        copies[own].append(other)
        if isinstance(getattr(other, "layer_idx", None), int):
            setattr(other, "layer_idx", place)  # noqa: B010
    return made


def _configs(hf: nn.Module) -> list[Any]:
    """Every configuration that a part of the model reads, once."""
    found = [vars(part)["config"] for part in hf.modules() if "config" in vars(part)]
    return list({id(config): config for config in found}.values())


@contextmanager
def _restated(config: Any, other: Any) -> Iterator[None]:
    """While inside, the part of a configuration that writes text says what another one's says, to all who
    hold it."""
    own, before = config.get_text_config(), dict(vars(config.get_text_config()))
    try:
        vars(own).update(vars(other.get_text_config()))
        yield
    finally:
        vars(own).clear()
        vars(own).update(before)


def _probe(model: Model) -> Recording:
    """A random text; longer than any window where blocks are of several kinds, which might change places."""
    kinds = getattr(text_config(model.hf.config), "layer_types", None) or ()
    mixed = len(set(map(str, kinds))) > 1
    rows = model.table_rows
    ids = probe_ids(model.hf, rows, seed=2) if mixed else sample_ids(rows, LENGTH, seed=2)
    return model.record([ids], [ids[1:]] if model.two_stacks else None, attention_mask="all")


def _check_runs(model: Model, recording: Recording, wanted: Tensor) -> None:
    """Hold the model on its route to its blocks run one after the other.

    Raises:
        ValueError: they differ.
    """
    out = model.run(**recording.inputs)
    found = out.logits if model.parts.head is not None else out[0]
    apart = gap(found, wanted)
    if not apart <= model.rounding:
        raise ValueError(
            f"{type(model.hf).__name__} does not run this route by itself: its outputs differ by"
            f" {apart:.1e} from its blocks run one after the other (rounding alone: {model.rounding:.1e});"
            " something in it depends on a block's number, so measure the route with sweep"
        )
