"""Hooks that read or write the activation at a tap while a block runs.

Shapes: R = rows x prompts, T positions, W width of the tapped tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from regraft.core.structure import main_tensor, with_main_tensor
from regraft.model.parts import Block
from regraft.model.sites import Tap, addition

Change = Callable[[Tensor], Tensor]
Shape = tuple[int, int] | Callable[[Tensor], tuple[int, int]]
"""(R, T) of what is tapped, or what tells it of the tensor at hand."""


@contextmanager
def writing(tap: Tap, change: Change, shape: Shape) -> Iterator[None]:
    """While inside, pass the tapped activation through `change`, which sees it as (R, T, W)."""

    def changed(tensor: Tensor) -> Tensor:
        given = tensor.reshape(*(shape(tensor) if callable(shape) else shape), tensor.shape[-1])
        if tap.factor == 1.0:
            return change(given).reshape(tensor.shape)
        scaled = tap.factor * given
        wanted = change(scaled)
        return given.where(wanted == scaled, wanted / tap.factor).reshape(tensor.shape)

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        tensor = main_tensor(kwargs)
        assert tensor is not None
        return args, with_main_tensor(kwargs, changed(tensor))

    def after(module: Any, args: tuple[Any, ...], outcome: Any) -> Any:
        tensor = main_tensor(outcome)
        assert tensor is not None
        return with_main_tensor(outcome, changed(tensor))

    hook = (
        tap.module.register_forward_pre_hook(before, with_kwargs=True)
        if tap.side == "input"
        else tap.module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def reading(taps: dict[str, Tap], shape: tuple[int, int]) -> Iterator[dict[str, Tensor]]:
    """While inside, keep the activation at every tap, as (R, T, W); a tap of `features` keeps those only."""
    seen: dict[str, Tensor] = {}

    def keeper(name: str, tap: Tap) -> Change:
        def keep(tensor: Tensor) -> Tensor:
            chosen = tensor if tap.features is None else tensor[..., tap.features.to(tensor.device)]
            seen[name] = chosen.detach().clone()
            return tensor

        return keep

    with ExitStack() as hooks:
        for name, tap in taps.items():
            hooks.enter_context(writing(tap, keeper(name, tap), shape))
        yield seen


@contextmanager
def writing_mid(block: Block, change: Change, stream: Tensor) -> Iterator[None]:
    """While inside, pass the stream between the last branch before the MLP and the MLP through `change`.

    Where the stream is normalised there, the norm's output is the stream. Elsewhere no module returns it, so
    the last addition before the MLP is changed such that the sum becomes the wanted one.
    """
    *earlier, before, _ = block.branches
    shape = (stream.shape[0], stream.shape[1])
    if before.sum_norm is not None:
        with writing(Tap(before.sum_norm, "output"), change, shape):
            yield
        return
    taps = {branch.kind: addition(branch) for branch in earlier}
    with reading(taps, shape) as seen:

        def steer(out: Tensor) -> Tensor:
            base = stream
            for branch in earlier:
                base = base + seen[branch.kind]
            middle = base + out
            wanted = change(middle)
            kept = (wanted == middle).flatten(1).all(1)[:, None, None]
            return out.where(kept, wanted - base)

        with writing(addition(before), steer, shape):
            yield
