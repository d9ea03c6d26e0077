"""A mixture's experts spread over machines, by what its own routers chose on text.

Shapes: L blocks with experts, R machines ("ranks"), N tokens.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from regraft.core.quantities import quantity
from regraft.model.model import Model
from regraft.systems.expert_dispatch import dispatch, in_a_row, replicated, router_trace

SOURCE = "Rajbhandari et al., DeepSpeed-MoE (2022); copies by load as DeepSeek-V3's report tells (2024)"
GIGA = 1e9
"""Bytes of a gigabyte, as links count them."""


def expert_dataset(model: Model, rows: list[list[int]], ranks: int) -> xr.Dataset:
    """Loads, bytes and the link that hides them, block by block, with each expert once and with as many
    copies more as there are machines.

    Raises:
        ValueError: the model has no experts whose choice could be heard, or fewer than machines.
    """
    if ranks < 2:
        raise ValueError("experts are spread over two ranks or more")
    trace = router_trace(model, torch.tensor(rows))
    fewest = min(one.experts for one in trace.values())
    if ranks > fewest:
        raise ValueError(f"{model.name} has {fewest} experts in a block: give {fewest} ranks at most")
    loads, copied, sent, uneven, even, link = [], [], [], [], [], []
    for one in trace.values():
        once = dispatch(one.choices_Nk, in_a_row(one.experts, ranks), ranks)
        more = dispatch(one.choices_Nk, replicated(one.choices_Nk, one.experts, ranks, ranks), ranks)
        loads.append(once.load_R)
        copied.append(more.load_R)
        sent.append(once.nbytes(model.width, model.dtype.itemsize))
        uneven.append(once.unevenness)
        even.append(more.unevenness)
        busiest = one.seconds * once.load_R.max() / once.load_R.sum()
        through = max(once.sent_RR.sum(0).max(), once.sent_RR.sum(1).max())
        link.append(2 * through * model.width * model.dtype.itemsize / busiest / GIGA)
    data = {
        "expert_load": quantity(("expert_block", "rank"), np.array(loads), "tokens times experts, computed",
                                "All wait for the machine with most.", SOURCE),
        "expert_load_copied": quantity(("expert_block", "rank"), np.array(copied),
                                       f"the same with {ranks} copies more, of the busiest experts",
                                       "More even, for the memory of the copies.", SOURCE),
        "expert_bytes": quantity("expert_block", sent, "bytes between machines, there and back",
                                 "A token goes once to every machine that has one of its experts."),
        "expert_unevenness": quantity("expert_block", uneven, "times the mean load, the busiest machine",
                                      "1: all have as much to do."),
        "expert_unevenness_copied": quantity("expert_block", even,
                                             "times the mean load, the busiest machine, with copies",
                                             "What copies save is the difference."),
        "expert_link": quantity("expert_block", link, "GB/s of each machine's link",
                                "From here on sending takes no longer than the busiest machine's experts"
                                " (as fast as this machine)."),
    }  # fmt: skip
    coords = {"expert_block": list(trace), "rank": np.arange(ranks)}
    return xr.Dataset(data, coords=coords)
