"""`import regraft` makes the model type of exported grafts known to transformers, without importing
transformers itself.

When transformers loads its module of automatic classes, now or later, `regraft.modules.hf_model` is imported
behind it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

AUTO, OURS = "transformers.models.auto.modeling_auto", "regraft.modules.hf_model"


class _Behind(Loader):
    """A module's own loader, and ours behind it."""

    def __init__(self, own: Loader):
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        importlib.import_module(OURS)


class _Finder(MetaPathFinder):
    """Finds the module of automatic classes as Python would, and gives it a loader that goes on to ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Behind(spec.loader)
        return spec


def register() -> None:
    """Make the type known as soon as transformers can know it; a second call changes nothing."""
    if AUTO in sys.modules:
        importlib.import_module(OURS)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
