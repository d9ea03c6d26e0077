"""How many features of adapters are active, on some text.

Shapes: B sequences, T tokens, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import xarray as xr
from torch import Tensor, nn

from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.model.model import Model
from regraft.modules.transcoder import Transcoders
from regraft.sweeps.provenance import provenance


def active_features(model: Model, graft: Transcoders, rows: Sequence[Sequence[int]]) -> xr.Dataset:
    """Features above zero at a token, mean over all tokens, for each block.

    Args:
        model: the model with its adapters in their places.
        graft: the adapters.
        rows: token ids of some texts.

    Raises:
        ValueError: there is no text.
    """
    tokens = sum(map(len, rows))
    if not tokens:
        raise ValueError("there is no text to count active features on: give some with --text")
    counts = [0] * graft.shape.blocks

    def counting(block: int):
        def count(layer: nn.Module, args: object, output: Tensor) -> None:
            counts[block] += int((output > 0).sum())

        return count

    with ExitStack() as hooks, torch.no_grad():
        for block, adapter in enumerate(graft):
            handle = adapter.enc.register_forward_hook(counting(block))
            hooks.callback(handle.remove)
        for number, row in enumerate(rows):
            model.run(input_ids=torch.tensor([list(row)], device=model.device))
            advance("counting active features", number + 1, len(rows))
    return xr.Dataset(
        {
            "active": quantity(
                "block", [count / tokens for count in counts], "features above zero at a token, mean",
                "Fewer are easier to read; the mean over blocks is what such adapters are named by.",
                "transcoder adapters (nathanhu0/transcoder-adapters)",
            ),
            "tokens": ((), tokens, {"units": "tokens read"}),
        },
        coords={"block": [str(block) for block in range(graft.shape.blocks)]},
        attrs={**provenance(model), "experiment": "active features"},
    )  # fmt: skip
