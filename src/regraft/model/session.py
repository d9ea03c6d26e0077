"""One thread at a time in a live model, in evaluation mode; what it is made of, to notice when that changes.

A sweep puts stand-ins, hooks and packed layers into the user's own module. Another thread that ran it
meanwhile would measure them, and two at once would restore each other's: so whatever runs or changes the
model holds it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_GUARD = Lock()
SAMPLED = 4096
"""Elements of a tensor that a glance reads: as every read of a recording looks, it may not cost what a sweep
costs."""
LARGEST, PAGE = 1 << 30, 1 << 16
"""Bytes that a fingerprint reads at most, once a sweep, and those that it reads in one piece where there are
more."""


class Hold:
    """A re-entrant lock on a model: inside, all of it is in evaluation mode, plain and uncompiled; put back
    as it was.

    Compiled code would not see our hooks; autocast and inference mode would give other numbers and tensors.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.depth = 0

    @property
    def outermost(self) -> bool:
        """Whether the holder holds the model once: then every hook and stand-in that it carries is the user's
        own."""
        return self.depth == 1

    @contextmanager
    def on(self, hf: nn.Module) -> Iterator[Hold]:
        """Hold the model; entering again in the same thread costs nothing."""
        with self.lock:
            self.depth += 1
            try:
                if self.outermost:
                    with evaluated(hf), plain_numbers():
                        yield self
                else:
                    yield self
            finally:
                self.depth -= 1


@contextmanager
def evaluated(hf: nn.Module) -> Iterator[None]:
    """While inside, every module is in evaluation mode and runs its own Python; both are put back."""
    training = [module for module in hf.modules() if module.training]
    compiled = [
        (module, module._compiled_call_impl)
        for module in hf.modules()
        if module._compiled_call_impl is not None
    ]
    for module in training:
        module.training = False
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module, code in compiled:
            module._compiled_call_impl = code


@contextmanager
def plain_numbers() -> Iterator[None]:
    """While inside, neither the caller's autocast nor an inference mode reaches what is computed."""
    grad = torch.is_grad_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.set_grad_enabled(grad))
        yield


_HOLDS: WeakKeyDictionary[nn.Module, Hold] = WeakKeyDictionary()


def hold_of(hf: nn.Module) -> Hold:
    """The hold on a model: that of its first embedding, which every wrapper around the model shares."""
    anchor = next((module for module in hf.modules() if isinstance(module, nn.Embedding)), hf)
    with _GUARD:
        return _HOLDS.setdefault(anchor, Hold())


def fingerprint(hf: nn.Module) -> tuple[Any, ...]:
    """Changes when a weight is exchanged or written to, however that is done: addresses, versions, and a
    checksum of all bytes.

    Of more than `LARGEST` bytes the checksum takes pages of `PAGE` at even distances from every tensor, as
    many as make up `LARGEST`: there a write through `.data`, which raises no version, is seen where it
    touches one of them.
    """
    parameters = list(hf.parameters())
    found = 0
    sizes = sum(p.numel() * p.element_size() for p in parameters if not p.is_meta)
    step = max(1, -(-sizes // LARGEST))
    for p in parameters:
        if not p.is_meta:
            for page in _pages(p.detach(), step):
                found = zlib.crc32(page.cpu().numpy().data, found)
    return (_versions(parameters), found)


def glance(hf: nn.Module) -> tuple[Any, ...]:
    """The same at a glance, for every read of a recording: a sample in place of all bytes.

    A write through `.data` is seen where it changes more than one element in 4,096 of a tensor.
    """
    parameters = list(hf.parameters())
    return (_versions(parameters), _sampled([p.detach() for p in parameters if not p.is_meta]))


def _versions(parameters: list[nn.Parameter]) -> tuple[Any, ...]:
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)


def _sampled(tensors: list[Tensor]) -> int:
    by_type: dict[tuple[Any, ...], list[Tensor]] = {}
    for tensor in tensors:
        flat = (
            tensor.reshape(-1)
            if tensor.is_contiguous()
            else tensor.t().reshape(-1)
            if tensor.dim() == 2
            else tensor.flatten()
        )
        step = max(1, flat.numel() // SAMPLED) | 1
        by_type.setdefault((tensor.dtype, tensor.device), []).append(flat[::step])
    found = 0
    for parts in by_type.values():
        found = zlib.crc32(torch.cat(parts).view(torch.uint8).cpu().numpy().tobytes(), found)
    return found


def _pages(tensor: Tensor, step: int) -> list[Tensor]:
    """A tensor's bytes: all of them, or every so many-th page."""
    whole = tensor if tensor.is_contiguous() else tensor.contiguous()
    flat = whole.reshape(-1).view(torch.uint8)
    return [flat] if step == 1 else list(flat.split(PAGE)[::step])


def hooks(hf: nn.Module) -> tuple[int, ...]:
    """Numbers of the hooks that hang on a model's modules, and places of forwards put over a module's own."""
    found: list[int] = []
    for module in hf.modules():
        found += [*module._forward_hooks, *module._forward_pre_hooks]
        if "forward" in module.__dict__:
            found.append(-id(module.__dict__["forward"]))
    return tuple(found)


def live_digest(hf: nn.Module) -> str:
    """SHA-256 over the names and bytes of a live model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(hf.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes() if tensor.dim() else b"0"
        )
    return digest.hexdigest()
