"""Activations heard while the live model runs, whatever it is changed by: nothing else of the run is kept.

Shapes: B prompts, T positions, W width of what is tapped, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from regraft.model.block_call import StopForward, split_call
from regraft.model.hooks import writing
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.sites import Site, SiteError, Tap, addition, outer_tap
from regraft.sweeps.live_edits import Copies

HELD = 1 << 28
"""Bytes of activations that a batch keeps at most, 256 MiB."""


@contextmanager
def live_reads(
    model: Model, sites: Sequence[str], copies: Copies | None = None
) -> Iterator[dict[str, Tensor]]:
    """While inside, every run of the live model leaves the activations at the sites in the dictionary, each
    (B, T, W), and ends behind the last of them.

    A block that comes twice on a route is heard where it comes last.

    Raises:
        SiteError: a site that does not exist here, or the pattern, which has no positions of its own.
    """
    found = [checked(model, address) for address in sites]
    heard: dict[str, Tensor] = {}
    with model.held(), ExitStack() as hooks:
        for site in found:
            _hear(model, site, heard, hooks, copies or {})
        blocks = [site.block for site in found if site.block is not None]
        if len(blocks) == len(found):
            _end_behind(_moved(model.blocks[max(blocks)].module, copies or {}), hooks)
        yield heard


@contextmanager
def live_stops(model: Model, stops: Sequence[int], copies: Copies) -> Iterator[dict[int, Tensor]]:
    """While inside, every run of the live model leaves the stream that enters its first stop, under -1, and
    the one that leaves each stop, under the stop's number: a block that comes twice is heard twice.

    Args:
        model: an opened model, on its route.
        stops: the blocks that the route passes, in order.
        copies: what runs in each module's place, as `changed_copies` yields it.
    """
    heard: dict[int, Tensor] = {}
    visits: dict[int, int] = {}
    with model.held(), ExitStack() as hooks:
        for number, block in enumerate(stops):
            visit = visits[block] = visits.get(block, -1) + 1
            own = model.blocks[block].module
            module = copies[own][visit] if own in copies else own
            sites = [("resid_pre", -1)] if number == 0 else []
            for name, key in [*sites, ("resid_post", number)]:
                tap = model.tap(f"{model.blocks[block].address}.{name}")
                hooks.enter_context(_kept(tap, heard, key, {own: [module]}))
        yield heard


def fitting(lengths: Sequence[int], most: int) -> int:
    """How many rows go together, padded to the longest of them, into at most so many tokens; at least one."""
    longest = count = 0
    for length in lengths:
        longest = max(longest, length)
        if (count + 1) * longest > most:
            break
        count += 1
    return max(1, count)


def run_heard(model: Model, inputs: dict[str, Any]) -> None:
    """One run, which may end where nothing more is to be heard."""
    with suppress(StopForward):
        model.run(**inputs)


def checked(model: Model, address: str) -> Site:
    """A site that can be heard.

    Raises:
        SiteError: it does not exist here, or is the pattern.
    """
    site = model.site(address)
    if site.name == "pattern":
        raise SiteError(f"{address} has two positions to each number: read it from a recording instead")
    return site


def _hear(model: Model, site: Site, heard: dict[str, Tensor], hooks: ExitStack, copies: Copies) -> None:
    if site.block is None:
        hooks.enter_context(_kept(outer_tap(model.parts, site.name), heard, site.address, copies))
        return
    block = model.blocks[site.block]
    if site.name == "resid_mid" and block.branches[-2].sum_norm is None:
        _hear_middle(block, heard, site.address, hooks, copies)
        return
    hooks.enter_context(_kept(model.taps[site], heard, site.address, copies))


def _hear_middle(
    block: Block, heard: dict[str, Tensor], address: str, hooks: ExitStack, copies: Copies
) -> None:
    """The stream that enters the block with what the branches before the MLP add to it."""

    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard[address] = split_call(args, kwargs)[1].detach()

    def adds(x_BTD: Tensor) -> Tensor:
        heard[address] = heard[address] + x_BTD.detach()
        return x_BTD

    handle = _moved(block.module, copies).register_forward_pre_hook(enters, with_kwargs=True)
    hooks.callback(handle.remove)
    for branch in block.branches[:-1]:
        hooks.enter_context(_passing(addition(branch), adds, copies))


def _kept(tap: Tap, heard: dict[Any, Tensor], key: Any, copies: Copies) -> Any:
    def keep(x_BTW: Tensor) -> Tensor:
        chosen = x_BTW if tap.features is None else x_BTW[..., tap.features.to(x_BTW.device)]
        heard[key] = chosen.detach().clone()
        return x_BTW

    return _passing(tap, keep, copies)


def _passing(tap: Tap, hear: Callable[[Tensor], Tensor], copies: Copies) -> Any:
    moved = Tap(_moved(tap.module, copies), tap.side, tap.features, tap.heads, tap.factor)
    return writing(moved, hear, lambda x: (x.shape[0], x.shape[1]) if x.dim() == 3 else (1, len(x)))


def _moved(module: nn.Module, copies: Copies) -> nn.Module:
    return copies[module][-1] if module in copies else module


def _end_behind(module: nn.Module, hooks: ExitStack) -> None:
    def stop(module: nn.Module, args: Any, outcome: Any) -> None:
        raise StopForward

    hooks.callback(module.register_forward_hook(stop).remove)
