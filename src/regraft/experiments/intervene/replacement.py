"""Activation and norm replacement: another nonlinearity in the MLPs, another norm in front of the branches.

Shapes: C changes, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F

from regraft.checkpoint.roles import side_of
from regraft.core.defaults import COMPLETION_TOKENS, PROMPT_COUNT
from regraft.data.evaluation import evaluation
from regraft.model.model import Model
from regraft.model.norm_parameters import Gains, gains_of, rms_norm, takes_mean_away
from regraft.model.parts import Block, is_norm
from regraft.sweeps.metrics import loss
from regraft.sweeps.provenance import sweep_attributes
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "relu squared": lambda x: F.relu(x) ** 2,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
NORMS = ("other norm",)


def replacement(
    model: Model,
    changes: list[str] | None = None,
    prompts: list[str] | None = None,
    count: int = PROMPT_COUNT,
    tokens: int = COMPLETION_TOKENS,
) -> xr.Dataset:
    """Put another nonlinearity, or another kind of norm, into one block or into all, and measure the loss.

    Nonlinearities: silu, gelu, relu, relu squared, tanh, identity, in place of the one that the MLP calls.
    Other norm: where a norm takes no mean away (RMSNorm) the mean is taken away first (LayerNorm), and the
    other way round.

    Args:
        changes: which of them; by default all.
        prompts: texts whose completions are scored; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.

    Raises:
        ValueError: an unknown change, blocks that call neither a nonlinearity nor a norm of their own, or a
            model without a next-token loss.

    Examples:
        >>> data = regraft.replacement(model, changes=["identity"], count=1, tokens=4)
        >>> dict(data["increase"].sizes), data["increase"].attrs["units"]
        ({'change': 1, 'block': 12}, 'nats per token above clean, in one block')
    """
    known = (*NONLINEARITIES, *NORMS)
    chosen = list(changes) if changes else list(known)
    unknown = next((c for c in chosen if c not in known), None)
    if unknown is not None:
        raise ValueError(f"there is no change {unknown!r}: choose among {', '.join(known)}")
    text = evaluation(model, prompts, count, tokens)
    blocks = list(model.parts.stacks[-1].blocks)
    total = len(model.blocks)
    cells: list[tuple[int, int]] = []
    variants: list[Variant] = []
    lacking: list[str] = []
    for row, change in enumerate(chosen):
        changed = {
            block.index: run for block in blocks if (run := _changed(model, block, change)) is not None
        }
        if len(changed) < len(blocks):
            without = [block.address for block in blocks if block.index not in changed]
            lacking.append(
                f"{change} cannot be put into block {', '.join(without)}, which calls no module for it"
            )
        for column, block in enumerate(blocks):
            if block.index in changed:
                cells.append((row, column))
                variants.append(Variant(route=Route.replace(total, {block.index: changed[block.index]})))
        if changed:
            cells.append((row, len(blocks)))
            variants.append(Variant(route=Route.replace(total, changed)))
    if not variants:
        raise ValueError(f"nothing can be replaced in {model.name}: {'; '.join(lacking)}")
    result = sweep(text.recordings, variants, loss())
    losses = np.full((len(chosen), len(blocks) + 1), np.nan)
    for (row, column), value in zip(cells, result.mean("loss").tolist(), strict=True):
        losses[row, column] = value
    clean = result.clean_mean("loss")
    attributes = sweep_attributes(result)
    attributes["notes"] = "; ".join(note for note in (attributes["notes"], *lacking) if note)
    return xr.Dataset(
        {
            "increase": (
                ("change", "block"),
                losses[:, :-1] - clean,
                {"units": "nats per token above clean, in one block", "correlate": "replaced by"},
            ),
            "everywhere": (
                "change",
                losses[:, -1] - clean,
                {"units": "nats per token above clean, in all blocks"},
            ),
        },
        coords={"change": chosen, "block": [block.address for block in blocks]},
        attrs={**attributes, "clean_loss": clean, **text.attributes},
    )


def _changed(model: Model, block: Block, change: str) -> Callable[..., Any] | None:
    """The block with a change, to be called as the block is; None where it calls no module that could be
    changed."""
    hooks = _norm_hooks(model, block) if change in NORMS else _activation_hooks(block, NONLINEARITIES[change])
    if not hooks:
        return None

    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as held:
            for module, hook in hooks:
                held.callback(module.register_forward_hook(hook).remove)
            return block.module(*args, **kwargs)

    return run


Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


def _activation_hooks(block: Block, function: Callable[[Tensor], Tensor]) -> list[tuple[nn.Module, Hook]]:
    """A hook for every nonlinearity outside the attention that answers with another function of the same
    input."""

    def instead(module: nn.Module, args: tuple[Any, ...], outcome: Any) -> Tensor:
        return function(args[0])

    return [
        (module, instead)
        for name, module in block.module.named_modules()
        if is_nonlinearity(module) and side_of(name) == "mlp"
    ]


def is_nonlinearity(module: nn.Module) -> bool:
    """Whether a module is a plain function of its input: one of those of PyTorch or transformers, without
    parameters."""
    home = type(module).__module__
    return home in ("torch.nn.modules.activation", "transformers.activations") and not list(
        module.parameters()
    )


def _norm_hooks(model: Model, block: Block) -> list[tuple[nn.Module, Hook]]:
    """A hook for every norm as wide as the stream that answers as the other kind of norm would."""
    width = model.check.width
    found: list[tuple[nn.Module, Hook]] = []
    for module in block.module.modules():
        weight: Any = getattr(module, "weight", None)
        if is_norm(module) and isinstance(weight, Tensor) and weight.shape == (width,):
            found.append(
                (
                    module,
                    _as_rms(gains_of(module, width)) if takes_mean_away(module, width) else _as_layer_norm,
                )
            )
    return found


def _as_layer_norm(module: nn.Module, args: tuple[Any, ...], outcome: Any) -> Tensor:
    """An RMSNorm of the input less its mean is a LayerNorm."""
    x = args[0]
    return module.forward(x - x.mean(-1, keepdim=True))


def _as_rms(gains: Gains) -> Hook:
    """The same factors and offsets on the input over its root mean square."""
    return lambda module, args, outcome: rms_norm(args[0], gains)
