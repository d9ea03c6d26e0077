"""Which layers a kept run computes with packed weights.

Packed products differ in the last bits, and a trial by the clock may choose otherwise the next time. The
choice is kept with the run, and for other runs of the same weights on the same machine in the cache.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from regraft.core.caching import cache_folder, cache_is_kept
from regraft.core.runs import write_whole
from regraft.model.cpu_pack import packed_layer, packing_applies
from regraft.model.model import Model

if TYPE_CHECKING:
    from regraft.model.weights import Weights

FILE = "packing.json"


@contextmanager
def same_packing(model: Model | Weights, folder: Path) -> Iterator[None]:
    """While inside, those layers are packed that were when the run in the folder began."""
    if not isinstance(model, Model):
        yield
        return
    before = model.packed
    names = {module: name for name, module in model.hf.named_modules()}
    key = _key(model)
    wanted = _read(folder / FILE).get(key)
    if wanted is None and cache_is_kept():
        wanted = _read(cache_folder() / FILE).get(key)
    if wanted is None:
        wanted = sorted(names[module] for module in before)
    chosen = [m for m, name in names.items() if name in set(wanted) and packing_applies(m)]
    model.packed = {module: before.get(module) or packed_layer(module) for module in chosen}
    write_whole(folder / FILE, json.dumps({key: wanted}))
    if cache_is_kept():
        _add(cache_folder() / FILE, key, wanted)
    try:
        yield
    finally:
        model.packed = before


def _key(model: Model) -> str:
    """Weights and machine: a choice of another one says nothing here."""
    machine = f"{platform.machine()} {platform.processor()} {os.cpu_count()}"
    return f"{model.weights_sha256} {torch.__version__} {torch.get_num_threads()} {machine}"


def _read(file: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _add(file: Path, key: str, wanted: Sequence[str]) -> None:
    """A cache that cannot be written to is none."""
    there = _read(file)
    if there.get(key) != list(wanted):
        with suppress(OSError):
            write_whole(file, json.dumps({**there, key: list(wanted)}))
