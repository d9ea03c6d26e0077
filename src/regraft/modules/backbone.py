"""Two models of one architecture, and the one that adapters stand in: attention, norms, embeddings and head
of either, the MLPs of the base."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from regraft.model.cpu_pack import copied
from regraft.model.load import load
from regraft.model.model import Model

Backbone = Literal["base", "target"]


def check_pair(base: Model, target: Model) -> None:
    """Make sure that two models are of one architecture and read text alike.

    Raises:
        ValueError: tensors or tokenizers differ; the sentence names them.
    """
    if base.two_stacks or base.parts.head is None or not base.causal:
        raise ValueError(f"{base.name} does not write on behind a text, so there is nothing to tune")
    ours, theirs = ({name: tuple(t.shape) for name, t in m.hf.state_dict().items()} for m in (base, target))
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"{base.name} and {target.name} are of different shapes in {len(wrong)} tensors, first {first}:"
            f" {ours.get(first, 'none')} and {theirs.get(first, 'none')}"
        )
    if (base.tokenizer is None) != (target.tokenizer is None) or (
        base.tokenizer is not None and base.tokenizer.get_vocab() != target.tokenizer.get_vocab()
    ):
        raise ValueError(f"the tokenizers of {base.name} and {target.name} have different tokens")


def mlps_of(model: Model) -> list[nn.Module]:
    """The module of every block's MLP, which an adapter stands beside.

    Raises:
        ValueError: a block has none of its own.
    """
    found = []
    for block in model.main_blocks:
        if not model.taps.exists(block.index, "mlp_in"):
            raise ValueError(
                f"block {block.address} of {model.name} has no MLP that is a module of its own, which an"
                " adapter could stand beside"
            )
        found.append(model.tap(f"{block.address}.mlp_in").module)
    return found


def mlp_paths(model: Model) -> list[str]:
    """Where in the Hugging Face model those modules stand."""
    names = {id(module): name for name, module in model.hf.named_modules()}
    return [names[id(mlp)] for mlp in mlps_of(model)]


def carrier_of(base: Model, target: Model, backbone: Backbone) -> Model:
    """The model that adapters stand in: the base itself, or the target with the base's MLPs (the hybrid).

    Raises:
        ValueError: the two are no pair.
    """
    check_pair(base, target)
    if backbone == "base":
        return base
    target.check_whole("adapters stand in a copy of the target")
    base.check_whole("adapters stand beside the base's MLPs")
    hf = copied(target.hf)
    with torch.no_grad():
        for place, ours in zip(mlp_paths(target), mlps_of(base), strict=True):
            hf.get_submodule(place).load_state_dict(ours.state_dict())
    made = load(hf if target.tokenizer is None else (hf, target.tokenizer), pack=False)
    made.name = f"{target.name} with the MLPs of {base.name}"
    return made
