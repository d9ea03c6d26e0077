"""What a configuration says of single blocks, said again for another sequence of them; and what it cannot
say.

A configuration keeps such facts as a list with an entry for each block, as a list of the numbers of some
blocks, as a pattern that is repeated, as a number of blocks at the beginning, or as a period. The first four
can be rewritten. Whether the result is right is asked of transformers: an empty model of the new
configuration must have the blocks that are meant.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from regraft.core.silence import silent
from regraft.model.block_call import CANNOT, text_config
from regraft.model.model import Model
from regraft.model.parts import Block

_OF_BLOCKS = re.compile(r"layer|block|pattern|attention_types|_idx")
_AT_THE_BEGINNING = re.compile(r"^(first_|num_dense_|max_window_)")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_DECODER_COUNTS = ("num_decoder_layers", "decoder_layers")
_NUMBERED = re.compile(r"layer_?(idx|id|index|number)|^(index|idx)$")
_PERIODS = re.compile(r"period|offset|interval|step|every|freq|^first_|sparse|window_layers")
Value = list[Any] | str | int


def adjusted(config: Any, before: int, kept: Sequence[int], decoder: bool) -> Any:
    """A copy of a configuration for another sequence of blocks, as far as it can be said.

    Args:
        config: the whole model's; the part that writes text is adjusted.
        before: number of blocks that it speaks of.
        kept: for each new block, the old one whose facts it has.
        decoder: whether the blocks are an encoder-decoder's decoder.
    """
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    for name, value in list(vars(text).items()):
        if _OF_BLOCKS.search(name) or _AT_THE_BEGINNING.search(name):
            stated = _restated(name, value, before, list(kept))
            if stated is not None:
                setattr(text, name, stated)
    counts = [name for name in (_DECODER_COUNTS if decoder else _COUNTS) if hasattr(text, name)] or [
        _COUNTS[0]
    ]
    setattr(text, counts[0], len(kept))
    return changed


def _restated(name: str, value: Any, before: int, kept: list[int]) -> Value | None:
    """The value for the new sequence; None where it stays as it is."""
    if isinstance(value, list) and _expanded(value) is not None and len(_expanded(value) or []) == before:
        every = _expanded(value) or []
        return [[[every[k]], 1] for k in kept]
    if isinstance(value, list) and len(value) == before:
        return [value[k] for k in kept]
    if isinstance(value, str) and len(value) == before and "pattern" in name:
        return "".join(value[k] for k in kept)
    if isinstance(value, list) and value and _are_numbers(value, before):
        return [place for place, k in enumerate(kept) if k in value]
    if type(value) is int and _AT_THE_BEGINNING.search(name) and 0 < value <= before:
        inside = [k < value for k in kept]
        return sum(inside) if inside == sorted(inside, reverse=True) else None
    return None


def _expanded(value: list[Any]) -> list[Any] | None:
    """The kinds that `[[[a, b], 3]]` stands for: a and b, three times over."""
    pairs = [one for one in value if isinstance(one, (list, tuple)) and len(one) == 2]
    if (
        not value
        or len(pairs) != len(value)
        or not all(isinstance(a, list) and type(n) is int for a, n in pairs)
    ):
        return None
    return [kind for kinds, times in pairs for kind in kinds * times]


def _are_numbers(value: list[Any], before: int) -> bool:
    whole = all(type(v) is int and 0 <= v < before for v in value)
    return whole and all(a < b for a, b in pairwise(value))


def check_expressible(model: Model, blocks: Sequence[Block | nn.Module], kept: Sequence[int]) -> None:
    """Make sure, before anything is measured, that the model's configuration can say this sequence of blocks.

    An empty model of the new configuration is made and its blocks compared with those that are meant:
    classes, shapes of their tensors, and the plain facts that they keep of themselves.

    Raises:
        ValueError: it cannot; the first block and what it would be are named.
    """
    stack = model.parts.stacks[-1]
    config = adjusted(model.hf.config, len(stack.blocks), kept, model.two_stacks)
    what = f"this sequence of blocks cannot be written as a checkpoint of {type(model.hf).__name__}"
    try:
        with silent(), torch.device("meta"):
            empty = type(model.hf)(config)
    except (*CANNOT, StrictDataclassError) as error:
        raise ValueError(
            f"{what}: its configuration would not be valid ({' '.join(str(error).split())[:200]})"
        ) from error
    made = getattr(empty.get_submodule(stack.path.rpartition(".")[0]), stack.attribute)
    if len(made) != len(blocks):
        raise ValueError(f"{what}: its configuration would give {len(made)} blocks for {len(blocks)}")
    for place, (meant, given) in enumerate(zip(blocks, made, strict=True)):
        own = isinstance(meant, Block)
        if reason := _differs(meant.module if isinstance(meant, Block) else meant, given, own):
            told = _facts(text_config(model.hf.config))
            raise ValueError(
                f"{what}: block {place} would have"
                f" {reason}{f'; the configuration says {told}' if told else ''}"
            )


def _differs(meant: nn.Module, made: nn.Module, own: bool) -> str:
    """The first difference of two blocks, "" where there is none."""
    theirs = dict(made.named_modules())
    for name, module in meant.named_modules():
        other = theirs.get(name)
        if other is None or type(other) is not type(module):
            found = "nothing" if other is None else f"a {type(other).__name__}"
            return f"{found} for the {type(module).__name__} {name}".rstrip()
        if own and (
            fact := next(
                (f for f in _plain(module) if f in vars(other) and vars(other)[f] != vars(module)[f]), None
            )
        ):
            return f"{name}.{fact} {vars(other)[fact]!r} for {vars(module)[fact]!r}".lstrip(".")
    shapes, found = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (meant, made))
    wrong = next((n for n in {**shapes, **found} if shapes.get(n) != found.get(n)), None)
    return "" if wrong is None else f"{wrong} of shape {found.get(wrong)} for {shapes.get(wrong)}"


def _plain(module: nn.Module) -> list[str]:
    """The names of what a module keeps of itself as a plain word, number or truth value, its own number left
    out."""
    kept = [
        n for n, v in vars(module).items() if type(v) in (str, int, float, bool) and not n.startswith("_")
    ]
    return [n for n in kept if n != "training" and not _NUMBERED.search(n)]


def _facts(text: Any) -> str:
    """What a configuration says of single blocks by numbers that cannot be rewritten: periods and counts."""
    numbers = {name: value for name, value in vars(text).items() if type(value) is int and value}
    return ", ".join(f"{name}={value}" for name, value in numbers.items() if _PERIODS.search(name))
