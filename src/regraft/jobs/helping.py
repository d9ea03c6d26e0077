"""Who measures shares of sweeps beside this process: other cards of this machine, or a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regraft.model.cpu_pack import packed_layer, packing_applies
from regraft.model.load import load
from regraft.model.model import Model
from regraft.streaming.residency import free_now
from regraft.sweeps.cluster import Cluster
from regraft.sweeps.several_devices import Devices
from regraft.sweeps.shares import Helpers

EVERY_CARD = "cuda:*"


def devices_of(device: str) -> list[str]:
    """The devices that a list names, `cuda:*` for every card.

    Raises:
        ValueError: there is no card.
    """
    if device == EVERY_CARD:
        count = torch.cuda.device_count()
        if not count:
            raise ValueError("device 'cuda:*' was asked for, but this PyTorch sees no GPU: use --device cpu")
        return [f"cuda:{number}" for number in range(count)]
    return [one.strip() for one in device.split(",") if one.strip()]


def memory_of_each(devices: Sequence[str]) -> int | None:
    """Bytes that a copy of the model may take where several share the work; None for one device, which is
    asked for without a thought of memory.

    A model that does not fit is streamed then, on each device by itself.
    """
    if len(devices) < 2:
        return None
    first = torch.device(devices[0])
    sharing = sum(torch.device(one) == first for one in devices)
    return free_now(first) // sharing


def helpers_for(
    model: Model, devices: Sequence[str], cluster: str, opening: Mapping[str, Any]
) -> Helpers | None:
    """Copies of the model on all devices but the first, or the workers of a cluster; None for neither.

    Args:
        model: as it was opened on the first device.
        devices: all of them.
        cluster: `local` or an address, nothing for none.
        opening: how the model was opened: dtype, attention, remote_code.

    Raises:
        ValueError: both are asked for.
        ClusterError: the cluster cannot be used.
    """
    if cluster and len(devices) > 1:
        raise ValueError("--cluster and several devices are two ways to share the work: choose one")
    if cluster:
        return Cluster(model, cluster, opening)
    if len(devices) < 2:
        return None
    return Devices(model, [_copy(model, device, opening) for device in devices[1:]])


def _copy(model: Model, device: str, opening: Mapping[str, Any]) -> Model:
    """The same model on another device, its layers packed as there; streamed where it is."""
    streams = model.streamed is not None
    made = load(model.source, device=device, pack=False, stream=streams, **opening)
    names = {module: name for name, module in model.hf.named_modules()}
    wanted = {names[module] for module in model.packed}
    chosen = [m for name, m in made.hf.named_modules() if name in wanted and packing_applies(m)]
    made.packed = {module: packed_layer(module) for module in chosen}
    return made
