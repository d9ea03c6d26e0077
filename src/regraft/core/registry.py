"""What an experiment is, and the registry that the command line, the report and the studio read.

An experiment is one file in `experiments/`, named in `EXPERIMENTS`, that defines a function of that name
whose first parameter is `model` (or `weights`, where the matrices of the checkpoint's files are enough and no
model need be built) and whose result is an `xarray.Dataset`. What it draws at random comes from its parameter
`seed`. Parameters, defaults and explanations are read from the source without importing it, so that the
command line can list everything without loading PyTorch. A third-party package adds one through the entry
point group `regraft.experiments`, whose value is `package.module:function`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.core.later import later
from regraft.core.signatures import Parameter, parameters_of_function, unfit

if TYPE_CHECKING:
    import xarray as xr


GROUP = "regraft.experiments"
SEED = "seed"
"""The parameter of experiments that draw at random; all commands have the option, so it is none of their
own."""
EXPERIMENTS = {
    "attention": "observe.attention",
    "compile": "observe.compile",
    "completions": "observe.completions",
    "contributions": "observe.contributions",
    "correlations": "observe.correlations",
    "disaggregate": "observe.disaggregate",
    "geometry": "observe.geometry",
    "lens": "observe.lens",
    "linearity": "observe.linearity",
    "neurons": "observe.neurons",
    "spectra": "observe.spectra",
    "trajectories": "observe.trajectories",
    "ablate": "intervene.ablate",
    "bottleneck": "intervene.bottleneck",
    "cache": "intervene.cache",
    "knockout": "intervene.knockout",
    "noise": "intervene.noise",
    "patch": "intervene.patch",
    "paths": "intervene.paths",
    "prune": "intervene.prune",
    "push": "intervene.push",
    "quantize": "intervene.quantization.quantize",
    "quantizers": "intervene.quantization.quantizers",
    "reorder": "intervene.reorder",
    "repeat": "intervene.repeat",
    "replacement": "intervene.replacement",
    "shuffle": "intervene.shuffle.shuffle",
    "steer": "intervene.steer",
    "swap": "intervene.swap",
    "transplant": "intervene.transplant",
}
"""Every experiment of this package and its module in `regraft.experiments`; commands, API and report read it
here."""
DOES_NOT_APPLY = (ValueError, ImportError)
"""What an experiment refuses a model with, and what a library that is not installed ends in."""
REFUSALS = (ValueError, OSError, MemoryError, RuntimeError, ImportError, LookupError)


@dataclass(frozen=True)
class Experiment:
    """An experiment that can be run by name."""

    name: str
    module: str
    summary: str
    parameters: tuple[Parameter, ...]
    needs: str = "model"
    draws: bool = False
    """Whether it draws at random and so takes a seed, which every command gives."""

    def function(self) -> Callable[..., xr.Dataset]:
        """The function itself; this imports its module."""
        return getattr(importlib.import_module(self.module), self.name)

    def checked(self) -> Callable[..., xr.Dataset]:
        """The function as Python offers it: what it is given is looked at before any work, and the result
        says where it comes from."""
        function = self.function()

        @functools.wraps(function)
        def looked_at(model: Any, *args: Any, **options: Any) -> xr.Dataset:
            self.check(model, args, options)
            given = inspect.signature(function).bind(model, *args, **options).arguments
            return _run(self, given)

        return looked_at

    def check(self, model: Any, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Make sure that what Python was given is an opened model and options of the kinds that the signature
        says.

        Raises:
            ValueError: it is not; the sentence says what to write.
        """
        if isinstance(model, (str, Path)) or not hasattr(model, "fingerprint"):
            named = repr(str(model)) if isinstance(model, (str, Path)) else "..."
            what = f"a {type(model).__name__}"
            raise ValueError(
                f"{self.name} takes an opened model, not {what}: regraft.{self.name}(regraft.load({named}))"
            )
        given = {**{p.name: value for p, value in zip(self.parameters, args, strict=False)}, **options}
        for parameter in self.parameters:
            if parameter.name in given and (wanted := unfit(parameter.annotation, given[parameter.name])):
                raise ValueError(f"{parameter.name}={given[parameter.name]!r} of {self.name} is not {wanted}")


def _run(experiment: Experiment, given: dict[str, Any]) -> xr.Dataset:
    model, *names = given
    seed = {SEED: given[SEED]} if SEED in names else {}
    options = {name: given[name] for name in names if name != SEED}
    return later("run_experiment")(experiment, given[model], **seed, **options)


@cache
def experiments() -> dict[str, Experiment]:
    """Every experiment by name: those of this package, then those that other packages add.

    Raises:
        ValueError: two experiments bear one name.
    """
    root = Path(__file__).parent.parent
    found: dict[str, Experiment] = {}
    sources = [
        (
            f"regraft.experiments.{module}",
            name,
            root.joinpath("experiments", *module.split(".")).with_suffix(".py"),
        )
        for name, module in EXPERIMENTS.items()
    ]
    for point in entry_points(group=GROUP):
        module, _, name = point.value.partition(":")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(f"the experiment {point.name!r} points to {module}, which is not installed")
        sources.append((module, name, Path(spec.origin)))
    for module, name, file in sources:
        experiment = read_experiment(module, name, file)
        if experiment is None:
            continue
        if name in found:
            raise ValueError(f"two experiments are called {name!r}: {found[name].module} and {module}")
        found[name] = experiment
    return found


def read_experiment(module: str, name: str, file: Path) -> Experiment | None:
    """Read an experiment's name, summary and parameters from its source; None where the file defines none."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if (
        not functions
        or not functions[0].args.args
        or functions[0].args.args[0].arg not in ("model", "weights")
    ):
        return None
    needs, given = functions[0].args.args[0].arg, parameters_of_function(functions[0], module)
    own = tuple(parameter for parameter in given if parameter.name != SEED)
    summary = (ast.get_docstring(functions[0]) or "").split("\n\n")[0].replace("\n", " ")
    return Experiment(name, module, summary, own, needs, len(own) < len(given))
