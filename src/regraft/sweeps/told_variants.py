"""What tells variants apart, as bytes: values that are put in, places, routes, modules, functions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regraft.model.session import live_digest
from regraft.sweeps.variants import Variant


def digest_of(variants: Sequence[Variant]) -> str:
    """A digest that is another one where an edit, a value, a route or a module is.

    Of a function its code and what it closes over count; of an object that is none of these its type alone.
    """
    found, known = hashlib.sha256(), dict[int, str]()
    for variant in variants:
        found.update(_told((variant.edits, variant.route), known).encode())
    return found.hexdigest()


def _told(thing: Any, known: dict[int, str]) -> str:
    if isinstance(thing, (Tensor, nn.Module)):
        if id(thing) not in known:  # one recording's activation may be the value of every edit
            known[id(thing)] = _bytes(thing) if isinstance(thing, Tensor) else live_digest(thing)
        return known[id(thing)]
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return repr(thing)
    if isinstance(thing, (list, tuple)):
        return f"[{','.join(_told(one, known) for one in thing)}]"
    if isinstance(thing, partial):
        return f"partial{_told((thing.func, *thing.args), known)}"
    code = getattr(thing, "__code__", None)
    if code is not None:
        inside = [cell.cell_contents for cell in thing.__closure__ or ()]
        return f"{thing.__qualname__}{code.co_code.hex()}{code.co_consts!r}{_told(inside, known)}"
    if is_dataclass(thing) and type(thing).__module__.startswith("regraft.sweeps"):
        own = [getattr(thing, field.name) for field in fields(thing)]
        return f"{type(thing).__name__}{_told(own, known)}"
    return type(thing).__qualname__


def _bytes(tensor: Tensor) -> str:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return f"{tuple(tensor.shape)}{tensor.dtype}{hashlib.sha256(flat.tobytes()).hexdigest()}"
