"""Run what suits a model and write its report."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from regraft.experiment import REFUSALS, experiments, measured, provenance
from regraft.model.opened import Model
from regraft.report.page import page
from regraft.runs import store, whole_folder

CHAPTERS: tuple[tuple[str, dict], ...] = (
    ("completions", {"count": 20}),
    ("lens", {}),
    ("geometry", {}),
    ("spectra", {}),
    ("linearity", {}),
    ("trajectories", {}),
    ("neurons", {}),
    ("knockout", {}),
    ("swap", {}),
    ("patch", {}),
    ("patch", {"grid": "head"}),
    ("push", {}),
    ("ablate", {}),
    ("repeat", {}),
    ("noise", {}),
    ("replacement", {}),
    ("transplant", {}),
    ("prune", {}),
    ("reorder", {}),
    ("shuffle", {}),
    ("quantize", {}),
    ("quantizers", {}),
    ("correlations", {}),
)


def build(
    model: Model,
    out: Path,
    seed: int = 0,
    chapter: Callable[[str, int, int], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Path, list[str]]:
    """Run the chapters, write `report.html` and a run folder for each result, and say what was left out and why.

    `chapter` is called with (name, chapters done, chapters in all). Returns the page's path and the sentences.
    """
    started = time.perf_counter()
    results: list[xr.Dataset] = []
    commands: list[str] = []
    slugs: list[str] = []
    left_out: list[str] = []
    for number, (name, chosen) in enumerate(CHAPTERS):
        if chapter is not None:
            chapter(name, number, len(CHAPTERS))
        try:
            results.append(measured(model, name, seed, **chosen))
        except REFUSALS as error:
            left_out.append(f"{name} is left out: {' '.join(str(error).split())}")
            continue
        commands.append(command_line(name, model, {**chosen, **(options or {})}))
        slugs.append("-".join([name, *map(str, chosen.values())]))
    with whole_folder(out) as folder:
        for dataset, slug in zip(results, slugs, strict=True):
            (folder / slug).mkdir()
            store(dataset, folder / slug)
        text = page(model, results, commands, time.perf_counter() - started)
        (folder / "report.html").write_text(text, encoding="utf-8")
        store_mark(model, folder)
    return out / "report.html", left_out


DEFAULTS = {"device": "cpu", "dtype": "", "attention": "", "tokenizer": "", "seed": 0, "remote_code": False}


def command_line(name: str, model: Model, options: Mapping[str, Any]) -> str:
    """The command that makes a result again, options that are not the default included."""
    words = ["regraft", name, "--model", model.source or model.name]
    from_files = experiments()[name].needs == "weights"
    for key, value in options.items():
        if DEFAULTS.get(key) != value and not (from_files and key in ("dtype", "attention", "tokenizer", "remote_code")):
            words += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(words)


def store_mark(model: Model, folder: Path) -> None:
    """The `run.json` that says whose report this is."""
    mark = {**provenance(model), "experiment": "report"}
    (folder / "run.json").write_text(json.dumps(mark, indent=1, sort_keys=True) + "\n", encoding="utf-8")
