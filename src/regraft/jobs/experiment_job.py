"""An experiment run into a folder: kept as it is measured, gone on with where it was begun, told and then
written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from regraft.core.begun_runs import begun, ended, finished
from regraft.core.files import still_told, whole_folder
from regraft.core.interrupts import kept_when_stopped
from regraft.core.registry import Experiment
from regraft.core.runs import check_writable, open_run, store, store_settings
from regraft.experiments.running import run_experiment
from regraft.model.kept_packing import same_packing
from regraft.model.model import Model
from regraft.model.weights import Weights
from regraft.reporting.chapter_section import csv_text
from regraft.sweeps.kept_sweeps import keeping
from regraft.sweeps.provenance import opened_told, option_told, provenance


@dataclass(frozen=True)
class KeptExperiment:
    """A run that a folder holds: its result, and whether it was measured just now."""

    result: xr.Dataset
    fresh: bool


def run_kept(
    experiment: Experiment,
    model: Model | Weights,
    options: Mapping[str, Any],
    out: Path,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
    tell: Callable[[xr.Dataset], object] = lambda found: None,
    work: Callable[[Callable[[], xr.Dataset]], xr.Dataset] = lambda run: run(),
) -> KeptExperiment:
    """Run one experiment into a folder; the same call goes on with a run that did not end, answers with one
    that did, and replaces it with `force`.

    Args:
        experiment: what to run.
        model: an opened model, or matrices where the experiment needs no more.
        options: the experiment's own parameters.
        out: the folder.
        seed: of everything that it draws.
        settings: the options that make the run again, as `--config` reads them.
        force: replace what is there.
        tell: is given the result before it is written, so that it is seen where the disk is full.
        work: runs what it is given, for who shows how far it is.

    Raises:
        RunFolderError: the folder holds something else, or another process writes there.
        StoppedError: Ctrl-C came; what was measured is kept.
        NotWrittenError: the disk is full.
    """
    check_writable(out, experiment.name, model.weights_sha256, version("regraft"), force)
    told = run_told(experiment, model, options, seed)
    if not force and finished(out, told):
        there = open_run(out)
        tell(there)
        return KeptExperiment(there, False)
    mark = {**provenance(model), "experiment": experiment.name}
    kept = kept_when_stopped(
        lambda: f"stopped. {out} keeps what was measured; the same command goes on from there"
    )
    with begun(out, told, mark, force) as place, kept:
        with still_told(tell), keeping(place), same_packing(model, place):
            dataset = work(lambda: run_experiment(experiment, model, seed, **options))
        tell(dataset)
        write_run(dataset, out, settings, ended(told))
    return KeptExperiment(dataset, True)


def run_told(
    experiment: Experiment, model: Model | Weights, options: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """What the numbers of a run hang on: weights, options, versions, and how the model was opened."""
    kinds = {one.name: one.annotation.removesuffix(" | None") for one in experiment.parameters}
    return {
        "experiment": experiment.name,
        **opened_told(model, seed),
        **{
            f"--{name.replace('_', '-')}": option_told(kinds.get(name, ""), value)
            for name, value in options.items()
        },
    }


def write_run(
    dataset: xr.Dataset,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    begun: Mapping[str, Any] | None = None,
) -> None:
    """The run folder: data, provenance, the options that make it again, and the numbers as CSV. Figures are
    drawn when they are asked for (`regraft show RUN --draw`), so that a folder stays small."""
    with whole_folder(out) as folder:
        store(dataset, folder, begun)
        if settings:
            store_settings(settings, folder)
        (folder / "data.csv").write_text(csv_text(dataset), encoding="utf-8")
