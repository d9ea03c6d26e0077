"""Experiments run by name: provenance with every result, results kept as long as nothing changes, refusals
told from faults."""

from __future__ import annotations

import linecache
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from regraft.core.files import still_told
from regraft.core.registry import Experiment, experiments
from regraft.core.results import as_result
from regraft.core.strict_json import json_text
from regraft.sweeps.provenance import provenance

if TYPE_CHECKING:
    import xarray as xr

    from regraft.model.model import Model
    from regraft.model.weights import Weights


def run_experiment(
    experiment: Experiment, model: Model | Weights, seed: int = 0, **options: Any
) -> xr.Dataset:
    """Run an experiment and attach provenance to its result.

    Args:
        experiment: what to run, as `experiments()` lists it.
        model: an opened model, or its matrices where the experiment needs no more.
        seed: of everything that it draws; an experiment that draws nothing takes none.
        options: the experiment's own parameters.

    Raises:
        TypeError: an option that the experiment does not have.
        NotWrittenError: a folder that it writes could not be written; its `result` is what was measured.
    """
    started = time.perf_counter()

    def proved(dataset: xr.Dataset) -> xr.Dataset:
        dataset.attrs = {**provenance(model), **dataset.attrs, "experiment": experiment.name, "seed": seed}
        dataset.attrs["options"] = json_text(options, sort_keys=True)
        dataset.attrs["seconds"] = round(time.perf_counter() - started, 3)
        return as_result(dataset)

    if options.get("save"):
        model.check_whole("a model is written from all its weights")
    drawn = {"seed": seed} if experiment.draws else {}
    with still_told(proved):
        return proved(experiment.function()(model, **options, **drawn))


_RESULTS: WeakKeyDictionary[Any, dict[str, xr.Dataset]] = WeakKeyDictionary()


def measured(model: Model | Weights, name: str, seed: int = 0, **options: Any) -> xr.Dataset:
    """The result of an experiment on this model, run once for a seed and options as long as no weight
    changes.

    An option that is given as it would be anyway is the same as none.
    """
    kept, key = _RESULTS.setdefault(model, {}), _key(model, name, seed, options)
    if key not in kept:
        kept[key] = run_experiment(experiments()[name], model, seed, **options)
    return kept[key]


def remember(
    model: Model | Weights, name: str, seed: int, options: Mapping[str, Any], result: xr.Dataset
) -> None:
    """Keep what was measured elsewhere, or before, for those that ask for it with `measured`."""
    _RESULTS.setdefault(model, {})[_key(model, name, seed, options)] = result


def _key(model: Model | Weights, name: str, seed: int, options: Mapping[str, Any]) -> str:
    usual = {parameter.name: parameter.default for parameter in experiments()[name].parameters}
    chosen = {key: value for key, value in options.items() if key not in usual or value != usual[key]}
    return repr((name, seed, sorted(chosen.items()), model.fingerprint()))


def refused(error: Exception, name: str) -> bool:
    """Whether regraft, or the package that an experiment comes from, said no: with a `raise` of its own.

    A ValueError that a library raises, or arithmetic on what does not fit, is a fault of ours, not a property
    of the model.
    """
    if isinstance(error, ImportError):
        return True
    frame, line = [*traceback.walk_tb(error.__traceback__)][-1]
    ours = {module.partition(".")[0] for module in (__name__, experiments()[name].module)}
    raised = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")
    return raised and str(frame.f_globals.get("__name__")).partition(".")[0] in ours
