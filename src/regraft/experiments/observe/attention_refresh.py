"""Loss behind a place where recurrent states are emptied, and keys hidden: which of them carries the text.

Shapes: B texts, q tokens behind the place.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from regraft.core.quantities import quantity
from regraft.data.corpus import text_rows
from regraft.model.block_call import longest_input
from regraft.model.model import Model
from regraft.systems.state_refresh import LEFT, check_goes_on, keeps_keys, losses_behind

TOKENS, TEXTS = 96, 8
"""Of each text, half of them in front of the place; and how many texts."""
SPANS = 4
"""Parts of what stands behind the place."""


def refresh_dataset(model: Model, seed: int) -> xr.Dataset:
    """Loss over distance with all that a model carries on, with states emptied, keys hidden, and both.

    Raises:
        ValueError: the model has no recurrent state that can be emptied, or no text to read.
    """
    length = min(TOKENS, longest_input(model.hf.config) or TOKENS)
    prefix = length // 2
    ids_BT = torch.tensor(text_rows(model, "", seed, length, TEXTS), device=model.device)
    check_goes_on(model, ids_BT, prefix)
    told = {
        name: losses_behind(model, ids_BT, prefix, *how).cpu().numpy()
        for name, how in LEFT.items() if keeps_keys(model) or not how[1]
    }  # fmt: skip
    parts = np.array_split(np.arange(length - prefix - 1), SPANS)
    table = [[float(losses[:, part].mean()) for part in parts] for losses in told.values()]
    found = quantity(
        ("left", "behind"), table, "nats per token",
        "Where emptying the state costs little, attention carries the text; where hiding keys does, states.",
        "Waleffe et al., An Empirical Study of Mamba-based Language Models (2024), on hybrids",
    )  # fmt: skip
    middle = [round(float(part.mean())) + 2 for part in parts]
    return xr.Dataset({"refresh_loss": found}, coords={"left": list(told), "behind": middle})
