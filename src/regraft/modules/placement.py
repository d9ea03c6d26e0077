"""A graft in its place: one module exchanged for another in a live model, and the stream at chosen depths
listened to.

The model is the same object before, during and after: teacher and student share every weight of the trunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from regraft.core.structure import main_tensor
from regraft.model.model import Model
from regraft.model.session import hold_of

Swaps = Sequence[tuple[nn.Module, nn.Module]]
"""Parts of a model, each with what takes its place."""


@contextmanager
def placed(root: nn.Module, old: nn.Module, new: nn.Module) -> Iterator[None]:
    """While inside, every place in a model that held `old`, or a module tied to its weight, holds `new`.

    A head that is tied to the embedding is no embedding: it keeps the matrix.

    Raises:
        ValueError: the model does not hold `old`.
    """
    with hold_of(root).on(root):
        back = put(root, old, new)
        try:
            yield
        finally:
            back()


def put(root: nn.Module, old: nn.Module, new: nn.Module) -> Callable[[], None]:
    """The same until what is returned is called, for who keeps a graft in its place from one thread to the
    other.

    Raises:
        ValueError: the model does not hold `old`.
    """
    every = [(parent, name, child) for parent in root.modules() for name, child in parent._modules.items()]
    places = [(parent, name, child) for parent, name, child in every if child is old or tied(child, old)]
    if not places:
        raise ValueError(f"this model holds no such {type(old).__name__} to replace")
    for parent, name, _ in places:
        setattr(parent, name, new)

    def back() -> None:
        for parent, name, child in places:
            setattr(parent, name, child)

    return back


@contextmanager
def all_placed(root: nn.Module, swaps: Swaps) -> Iterator[None]:
    """While inside, each old module's places hold the new one of its pair."""
    with ExitStack() as stack:
        for old, new in swaps:
            stack.enter_context(placed(root, old, new))
        yield


def tied(child: nn.Module | None, old: nn.Module) -> bool:
    """Whether a module is an embedding with the very weight of another."""
    return isinstance(child, nn.Embedding) and isinstance(old, nn.Embedding) and child.weight is old.weight


def forward_inputs(model: Model, ids_BT: Tensor) -> dict[str, Tensor]:
    """Arguments of a forward pass on some text; an encoder-decoder reads the first half of each row and
    writes the second."""
    if not model.two_stacks:
        return {"input_ids": ids_BT}
    half = ids_BT.shape[1] // 2
    return {"input_ids": ids_BT[:, :half], "decoder_input_ids": ids_BT[:, half:]}


def written(model: Model, ids_BT: Tensor) -> Tensor:
    """The tokens that a forward pass on `forward_inputs` predicts from and to: all of them, or the decoder's
    half."""
    return forward_inputs(model, ids_BT).get("decoder_input_ids", ids_BT)


def logits_of(model: Model, inputs: dict[str, Tensor]) -> Tensor | None:
    """Next-token scores (B, T, V) of a forward pass, or None for a model without a head."""
    return getattr(model.run(**inputs), "logits", None)


def trunk_blocks(model: Model) -> list[nn.Module]:
    """The modules of all blocks of all stacks."""
    return [block.module for stack in model.parts.stacks for block in stack.blocks]


@contextmanager
def streams(model: Model, depths: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While inside, a run of the model fills the dictionary with the stream behind so many blocks (0: in
    front of the first).

    Depths are counted over the last stack. Gradients flow.

    Raises:
        ValueError: a depth that the model does not have.
    """
    blocks = model.parts.stacks[-1].blocks
    wrong = next((depth for depth in depths if not 0 <= depth <= len(blocks)), None)
    if wrong is not None:
        raise ValueError(
            f"there is no depth {wrong}: the model has {len(blocks)} blocks, so 0 to {len(blocks)}"
        )
    seen: dict[int, Tensor] = {}
    with model.held(), ExitStack() as hooks:
        for depth in depths:
            if depth:
                handle = blocks[depth - 1].module.register_forward_hook(_keeping_output(seen, depth))
            else:
                handle = blocks[0].module.register_forward_pre_hook(_keeping_input(seen), with_kwargs=True)
            hooks.callback(handle.remove)
        yield seen


def _keeping_output(seen: dict[int, Tensor], depth: int):
    def keep(module: nn.Module, args: object, output: object) -> None:
        tensor = main_tensor(output)
        assert tensor is not None
        seen[depth] = tensor

    return keep


def _keeping_input(seen: dict[int, Tensor]):
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = main_tensor((args, kwargs))
        assert tensor is not None
        seen[0] = tensor

    return keep
