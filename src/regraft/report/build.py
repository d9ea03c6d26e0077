"""Run what suits a model and write its report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from regraft.experiment import experiments
from regraft.model.opened import Model
from regraft.report.page import page
from regraft.runs import store, whole_folder

CHAPTERS: tuple[tuple[str, dict], ...] = (
    ("lens", {}),
    ("knockout", {}),
    ("swap", {}),
    ("patch", {}),
    ("patch", {"grid": "head"}),
)


def build(
    model: Model, out: Path, seed: int = 0, chapter: Callable[[str, int, int], None] | None = None
) -> tuple[Path, list[str]]:
    """Run the chapters, write `report.html` and a run folder for each result, and say what was left out and why.

    `chapter` is called with (name, chapters done, chapters in all). Returns the page's path and the sentences.
    """
    started = time.perf_counter()
    results: list[xr.Dataset] = []
    commands, left_out = [], []
    for number, (name, options) in enumerate(CHAPTERS):
        if chapter is not None:
            chapter(name, number, len(CHAPTERS))
        try:
            results.append(experiments()[name].run(model, seed, **options))
        except ValueError as error:
            left_out.append(f"{name} is left out: {error}")
            continue
        flags = "".join(f" --{key} {value}" for key, value in options.items())
        commands.append(f"regraft {name} --model {model.name}{flags}")
    with whole_folder(out) as folder:
        for dataset, command in zip(results, commands, strict=True):
            slug = "-".join(command.split()[1::2]).replace(f"-{model.name}", "").replace("/", "-").replace(":", "-")
            (folder / slug).mkdir()
            store(dataset, folder / slug)
        text = page(model, results, commands, time.perf_counter() - started)
        (folder / "report.html").write_text(text, encoding="utf-8")
        store_mark(model, folder)
    return out / "report.html", left_out


def store_mark(model: Model, folder: Path) -> None:
    """The `run.json` that says whose report this is."""
    import json

    from regraft.experiment import provenance

    mark = {**provenance(model), "experiment": "report"}
    (folder / "run.json").write_text(json.dumps(mark, indent=1, sort_keys=True) + "\n", encoding="utf-8")
