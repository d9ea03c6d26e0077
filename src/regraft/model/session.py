"""One thread at a time in a live model, in evaluation mode; what it is made of, to notice when that changes.

A sweep puts stand-ins, hooks and packed layers into the user's own module. Another thread that ran it
meanwhile would measure them, and two at once would restore each other's: so whatever runs or changes the
model holds it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
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
LARGEST, PAGE = 1 << 30, (1 << 16) - 8
"""Bytes that a fingerprint reads at most, once a sweep, and those that it adds up in one piece: an odd number
of words, a prime one, so that signs that all change do not add up to nothing, and rows of a matrix do not
fall together with pages."""
AT_ONCE = 64
"""Pages that are added up together: 4 MiB, which a processor's own memory keeps from one sum to the other."""


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

    Bytes are added up as whole numbers, along every page and across the pages, on the device that has them
    (a sum is as fast as memory is read, a cyclic checksum a tenth of that): any number that is written
    changes its page's sum, numbers that are exchanged within a page the sums across, rows the sums along. Of
    more than `LARGEST` bytes pages of `PAGE` are taken at even distances from every tensor, as many as make
    up `LARGEST`: there a write through `.data`, which raises no version, is seen where it touches one of
    them.
    """
    parameters = list(hf.parameters())
    found = 0
    sizes = sum(p.numel() * p.element_size() for p in parameters if not p.is_meta)
    step = max(1, -(-sizes // LARGEST))
    for p in parameters:
        if not p.is_meta:
            found = zlib.crc32(_sums(p.detach(), step).cpu().numpy().data, found)
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


def _sums(tensor: Tensor, step: int) -> Tensor:
    """Sums along every so many-th page of a tensor's bytes, and across those pages; what is behind the last
    whole page is a page of its own."""
    begins_at_a_word = tensor.storage_offset() * tensor.element_size() % 8 == 0
    whole = tensor if tensor.is_contiguous() and begins_at_a_word else tensor.contiguous().clone()
    flat_b = whole.reshape(-1).view(torch.uint8)
    full = len(flat_b) // PAGE * PAGE
    found = [torch.zeros(0, dtype=torch.int64, device=tensor.device)]
    across = torch.zeros(PAGE // 8, dtype=torch.int64, device=tensor.device)
    for pages_bw in flat_b[:full].view(torch.int64).view(-1, PAGE // 8)[::step].split(AT_ONCE):
        found.append(pages_bw.sum(1))
        across += pages_bw.sum(0)
    left_b = flat_b[full:] if (full // PAGE) % step == 0 else flat_b[:0]
    words = len(left_b) // 8 * 8
    found += [across] if full else []
    return torch.cat([*found, left_b[:words].view(torch.int64), left_b[words:].to(torch.int64)])


def hooks(hf: nn.Module) -> tuple[int, ...]:
    """Numbers of the hooks that hang on a model's modules, and places of forwards put over a module's own."""
    found: list[int] = []
    for module in hf.modules():
        found += [*module._forward_hooks, *module._forward_pre_hooks]
        if "forward" in module.__dict__:
            found.append(-id(module.__dict__["forward"]))
    return tuple(found)


def live_digest(hf: nn.Module, elsewhere: Callable[[str], Tensor] | None = None) -> str:
    """SHA-256 over the names and bytes of a live model's tensors; `elsewhere` reads those that are not in
    memory."""
    digest = hashlib.sha256()
    for name, here in sorted(hf.state_dict().items()):
        tensor = elsewhere(name) if here.is_meta and elsewhere is not None else here
        digest.update(name.encode())
        digest.update(
            tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes() if tensor.dim() else b"0"
        )
    return digest.hexdigest()
