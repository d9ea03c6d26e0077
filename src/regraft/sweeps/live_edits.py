"""Edits on the live model, whoever runs it: its own generation, another library, a plain forward.

A sweep knows every position of a recording; here a call tells by its mask and its cache where its columns
stand. Shapes: B prompts, T columns of one call, c of them at a tap, k positions of an edit, W features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regraft.model.block_call import split_call
from regraft.model.hooks import writing
from regraft.model.model import Model
from regraft.model.parts import Block
from regraft.model.sites import Tap, addition, outer_tap
from regraft.sweeps.attention_edits import CutAttention, check_attention
from regraft.sweeps.feature_edits import FeatureEdit, spliced
from regraft.sweeps.live_cuts import cutting
from regraft.sweeps.live_places import Place
from regraft.sweeps.variants import NEW, PROMPT, Apply, Edit, Noise, Variant

Copies = Mapping[nn.Module, Sequence[nn.Module]]
"""For each module of a block that runs elsewhere, or several times, what runs in its place."""


def changer(
    edit: Edit, place: Place, features: Tensor | None = None, beside: dict[str, Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """What an edit makes of an activation (B, c, W): as it was, but for the columns and features that it
    means. `beside` keeps what another tap was heard at, where the edit needs that."""

    def change(x_BcW: Tensor) -> Tensor:
        columns = x_BcW.shape[1]
        wanted_Bc = place.wanted(edit)[:, -columns:]
        if not bool(wanted_Bc.any()):
            return x_BcW
        wanted_Bc = wanted_Bc.to(x_BcW.device)
        old = x_BcW if features is None else x_BcW[..., features.to(x_BcW.device)]
        if isinstance(edit, (Apply, FeatureEdit)):
            # A function of the user's own sees what it changes and nothing else, as in a sweep.
            kept, seen = old.clone(), old if beside is None else torch.cat([old, beside["it"]], dim=-1)
            meant = seen[wanted_Bc][None]
            made = edit.change(meant, edit.operand(meant, lambda value: value))[0]
            kept[wanted_Bc] = made[..., : old.shape[-1]].to(old.dtype)
            return kept if features is None else x_BcW.index_copy(-1, features.to(x_BcW.device), kept)
        operand = edit.operand(old, lambda value: _as_wide(edit, place.spread(edit, value, columns), old))
        new = edit.change(old, operand).to(old.dtype)
        kept = old.where(~wanted_Bc[..., None], new)
        if features is None:
            return kept
        return x_BcW.index_copy(-1, features.to(x_BcW.device), kept)

    return change


def _as_wide(edit: Edit, value: Tensor, old_BcW: Tensor) -> Tensor:
    if value.dim() and value.shape[-1] not in (1, old_BcW.shape[-1]):
        raise ValueError(
            f"the value of the edit at {edit.site} is {value.shape[-1]} wide, the activation"
            f" {old_BcW.shape[-1]}"
        )
    return value


@contextmanager
def live_edits(model: Model, edits: Sequence[Edit], copies: Copies | None = None) -> Iterator[None]:
    """While inside, every run of the live model passes through the edits, at prompts and at new tokens.

    Args:
        model: the model; it is held.
        edits: what to change; `position` counts over the prompt and what is written behind it.
        copies: what runs in the place of a block's modules, where a route has put something there.

    Raises:
        ValueError: a site that no run passes, or that cannot be written.
    """
    edits = spliced(model, Variant(edits)).edits
    check_live(model, edits)
    with model.held(), ExitStack() as hooks:
        places = _places(model, hooks)
        for edit in edits:
            for enter in _entered(model, edit, places, copies or {}):
                hooks.enter_context(enter)
        yield


def check_live(model: Model, edits: Sequence[Edit]) -> None:
    """Make sure that every edit can be made while the model runs by itself.

    Raises:
        SiteError: the site does not exist here, or is read only.
        ValueError: noise, which would be another in every call.
    """
    for edit in edits:
        check_attention(model, edit)
        spliced(model, Variant((edit,)))
        if isinstance(edit, Noise):
            raise ValueError(
                f"the noise at {edit.site} would be drawn anew in every call: draw it once and add it with"
                " Add(site, value)"
            )
        for position in edit.named:
            if isinstance(position, str) and position not in (PROMPT, NEW):
                raise ValueError(
                    f"position {position!r} of the edit at {edit.site} is not known: {PROMPT!r}, {NEW!r},"
                    " numbers, or none for all"
                )


def _places(model: Model, hooks: ExitStack) -> list[Place]:
    """For each stack, where its columns stand: hooked to what is given their ids."""
    stacks = model.parts.stacks
    places = [Place() for _ in stacks]
    listeners: list[nn.Module] = [model.hf]
    if len(stacks) == 2:
        places[1].prefix = "decoder_"
        listeners = [stacks[0].owner, model.hf]
    for listener, place in zip(listeners, places, strict=True):
        handle = listener.register_forward_pre_hook(_hearing(place), with_kwargs=True)
        hooks.callback(handle.remove)
    return places


def _hearing(place: Place) -> Callable[..., None]:
    return lambda module, args, kwargs: place.hears(module, args, kwargs)


def _entered(model: Model, edit: Edit, places: list[Place], copies: Copies) -> Iterator[Any]:
    """The hooks of one edit: one for each place where its block runs."""
    site = model.site(edit.site)
    if site.block is None:
        place = places[0] if site.name == "embed" else places[-1]
        yield _writing(outer_tap(model.parts, site.name), changer(edit, place), place)
        return
    stack = next(i for i, s in enumerate(model.parts.stacks) if s.first <= site.block < s.stop)
    block, place = model.blocks[site.block], places[stack]
    for number in range(len(copies.get(block.module, [block.module]))):

        def here(module: nn.Module, number: int = number) -> nn.Module:
            return copies[module][number] if module in copies else module

        if isinstance(edit, CutAttention):
            yield cutting(model, edit, place, here)
        elif site.name == "resid_mid":
            yield _writing_middle(block, changer(edit, place), place, here)
        else:
            tap = model.taps[site]
            moved = Tap(here(tap.module), tap.side, tap.features, tap.heads, tap.factor)
            heard: dict[str, Tensor] | None = None
            if isinstance(edit, FeatureEdit) and edit.beside is not None:
                heard = {}
                yield _writing(Tap(here(edit.beside.module), edit.beside.side), _keeping(heard), place)
            yield _writing(moved, changer(edit, place, tap.features, heard), place)


def _keeping(heard: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(x_BcW: Tensor) -> Tensor:
        heard["it"] = x_BcW
        return x_BcW

    return keep


def _writing(tap: Tap, change: Callable[[Tensor], Tensor], place: Place) -> Any:
    """Hooks that work at any length of call."""

    def shape(tensor: Tensor) -> tuple[int, int]:
        rows, columns = place.at_BT.shape
        return (tensor.shape[0], tensor.shape[1]) if tensor.dim() == 3 else (rows, columns)

    return writing(tap, change, shape)


@contextmanager
def _writing_middle(
    block: Block, change: Callable[[Tensor], Tensor], place: Place, here: Callable[[nn.Module], nn.Module]
) -> Iterator[None]:
    """The stream between the last branch before the MLP and the MLP, by what that branch adds."""
    *earlier, before, _ = block.branches
    if before.sum_norm is not None:
        with _writing(Tap(here(before.sum_norm), "output"), change, place):
            yield
        return
    base: list[Tensor] = []

    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        base[:] = [split_call(args, kwargs)[1]]

    def adds(x_BTD: Tensor) -> Tensor:
        base[0] = base[0] + x_BTD
        return x_BTD

    def steer(out_BTD: Tensor) -> Tensor:
        middle = base[0] + out_BTD
        wanted = change(middle)
        return out_BTD.where((wanted == middle).all(-1, keepdim=True), wanted - base[0])

    handle = here(block.module).register_forward_pre_hook(enters, with_kwargs=True)
    try:
        with ExitStack() as hooks:
            for branch, then in [*((b, adds) for b in earlier), (before, steer)]:
                tap = addition(branch)
                moved = Tap(here(tap.module), tap.side, tap.features, tap.heads, tap.factor)
                hooks.enter_context(_writing(moved, then, place))
            yield
    finally:
        handle.remove()
