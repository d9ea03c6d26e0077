"""Live models whose weights accelerate keeps in memory of the CPU or on disk, and brings in module by module.

Whoever calls a block by itself, or reads a matrix of it, must find it filled for as long as the block is in
use, not for one module's call. So the blocks are filled here from where accelerate keeps their numbers, as
those of a streamed model are from files; what is in no block is brought in for good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from regraft.model.streamed import Streamed, bytes_of_module, outer_lists, sizes_of
from regraft.streaming.block_store import BlockStore, Unit
from regraft.streaming.residency import Ceiling, Placement

NO_LIMIT = 1 << 62
"""Bytes that nobody's prompts take: what stays and what does not, accelerate decided."""
_TAKEN: WeakKeyDictionary[nn.Module, Streamed] = WeakKeyDictionary()


class Offloaded:
    """The numbers that accelerate keeps elsewhere, by the names of the parameters, and how a block gets
    them."""

    def __init__(self, places: Mapping[str, tuple[Mapping[str, Tensor], str]], device: torch.device):
        self.places, self.device, self.bytes_read = dict(places), device, 0
        self._read: dict[str, Tensor] = {}

    def read(self, name: str) -> Tensor:
        """One tensor, on the device that computes."""
        kept, own = self.places[name]
        found = kept[own]
        self.bytes_read += found.numel() * found.element_size()
        return found.to(self.device)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep a block's tensors until it is given them."""
        self._read |= tensors

    def hand_over(self, path: str, module: nn.Module) -> None:
        """Give the module at a path what was read for it."""
        for name, _ in list(module.named_parameters()):
            full = f"{path}.{name}" if path else name
            if full in self._read:
                _put(module, name, self._read.pop(full))

    def state(self) -> tuple[int, ...]:
        """Which tensors these are: accelerate reads, and never writes them."""
        return (id(self),)


def taken_over(hf: Any) -> Streamed | None:
    """Where the weights of a dispatched model come from from now on; None where all of them are in memory.

    Raises:
        ValueError: accelerate computes with them on several devices.
    """
    if hf in _TAKEN:
        return _TAKEN[hf]
    hooked = dict(_offloading(hf))
    if not hooked:
        return None
    places, devices = {}, {str(p.device) for p in hf.parameters() if not p.is_meta}
    for path, module in hooked.items():
        hook: Any = module._hf_hook
        devices.add(str(_device_of(hook)))
        for name, tensor in module.named_parameters():
            if tensor.is_meta:
                places[f"{path}.{name}".lstrip(".")] = (hook.weights_map, name)
    if len(devices) > 1:
        raise ValueError(
            f"accelerate computes with this {type(hf).__name__} on {' and '.join(sorted(devices))}: dispatch"
            " it to one device, with what does not fit offloaded, or name its folder with --stream"
        )
    weights = Offloaded(places, torch.device(devices.pop()))
    for module in hooked.values():
        _unhook(module)
    units = [_unit(hf, path, weights) for path in outer_lists(hf)]
    inside = {name for unit in units for name in unit.names}
    weights.fill({name: weights.read(name) for name in places if name not in inside})
    weights.hand_over("", hf)
    hf.tie_weights()
    store = BlockStore(units, weights, weights, Placement(True, True, 0), Ceiling(None, weights.device))
    sizes = sizes_of(hf, units, hf.get_input_embeddings(), hf.get_output_embeddings())
    kind = next(p.dtype for p in hf.parameters())
    told = f"offloaded by accelerate: {len(units)} blocks are brought to {weights.device} when they run"
    _TAKEN[hf] = Streamed(store, weights.device, kind, sizes, (), NO_LIMIT, told)
    return _TAKEN[hf]


def _offloading(hf: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose weights accelerate brings in when they are called."""
    for path, module in hf.named_modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None and getattr(hook, "offload", False) and hook.weights_map is not None:
            yield path, module


def _device_of(hook: object) -> torch.device:
    device = getattr(hook, "execution_device", None)
    return torch.device(f"cuda:{device}" if isinstance(device, int) else device or "cpu")


def _unhook(module: Any) -> None:
    """Let a module compute by itself again, its weights left where they are."""
    module.forward = module._old_forward
    del module._hf_hook, module._old_forward


def _unit(hf: nn.Module, path: str, weights: Offloaded) -> Unit:
    """A block; one that lies in part elsewhere is brought in whole, so that it can be emptied whole."""
    module = hf.get_submodule(path)
    named = {f"{path}.{name}": p for name, p in module.named_parameters()}
    if not any(name in weights.places for name in named):
        return Unit(path, module, (), bytes_of_module(module))
    here = {name: p.detach() for name, p in named.items() if name not in weights.places}
    weights.places |= {name: (here, name) for name in here}
    return Unit(path, module, tuple(named), bytes_of_module(module))


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
