"""What the commands do once their options are read."""

from __future__ import annotations

import csv
import io
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console
from rich.table import Table

from regraft.checkpoint.hub import resolve
from regraft.cli.anatomy_text import print_anatomy
from regraft.cli.columns import aligned, short
from regraft.cli.common import common
from regraft.cli.progress_bar import StepBars, progress_bar, with_bar
from regraft.core.files import still_told
from regraft.core.interrupts import kept_when_stopped
from regraft.core.progress import listening
from regraft.core.registry import Experiment
from regraft.core.runs import check_writable, store_settings
from regraft.core.strict_json import json_text, opened_attributes
from regraft.data.own_texts import given_prompts
from regraft.experiments.running import run_experiment
from regraft.jobs.experiment_job import run_kept, write_run
from regraft.jobs.inspection import headers_json, inspect, inspect_headers
from regraft.jobs.report_job import report, report_beside
from regraft.model.model import Model
from regraft.model.weights import Weights
from regraft.reference.checkpoint_reader import open_rebuilt
from regraft.reference.skeleton import write_skeleton
from regraft.reference.verify import rebuild
from regraft.reporting.build import SideBySide
from regraft.reporting.chapter_inputs import LEAST
from regraft.reporting.chapter_section import csv_text
from regraft.reporting.drawings import drawing_of
from regraft.reporting.figures.rebuild_figures import OUTSIDE, split
from regraft.reporting.page import CHECKS
from regraft.sweeps.forecast import PlannedError, planning

console = Console(markup=False)
SHOWN_ROWS = 12
"""Rows of a table that fit on a screen with what stands around them; the rest is counted."""


def read_given(
    model: Model, prompts: list[str] | None, file: str, text: str, count: int, asked: bool
) -> list[str]:
    """The user's prompts: all that are written out, and as many passages of a running text as are measured.

    Args:
        count: how many prompts the experiment measures, 0 where it does not say.
        asked: whether the user named that number; if so it counts for prompts that are written out, too.
    """
    found = given_prompts(model, prompts, file, text, count or LEAST)
    return found[:count] if count and (asked or text) else found


def make_report(
    model: Model,
    out: Path,
    told: dict[str, Any],
    debug: bool = False,
    settings: Mapping[str, Any] | None = None,
    cluster: SideBySide | None = None,
    other: Model | None = None,
) -> int:
    """Write the report, with a bar for its chapters, and say where it is and what is not on it; 1 where a
    chapter failed.

    Args:
        told: what `regraft.report` is told beside the model and the folder.
        other: a second model, which is set beside the first.
    """
    started = time.perf_counter()
    with progress_bar() as bar:
        whole = bar.add_task("report", total=None)
        steps = StepBars(bar)

        def chapter(name: str, done: int, total: int) -> None:
            bar.update(whole, description=f"{name:<24}", completed=done, total=total)
            steps.clear()

        kept = kept_when_stopped(
            lambda: (
                f"stopped. {out / 'report.html'} and the folders beside it hold the chapters that were"
                " measured; the same command goes on from there"
            )
        )
        with listening(steps.heard), kept:
            if other is None:
                path, missing = report(model, out, chapter=chapter, cluster=cluster, **told)
            else:
                path, missing = report_beside(model, other, out, chapter=chapter, **told)
        store_settings(settings or {}, out)
        bar.update(whole, description=f"{'done':<24}", completed=1, total=1)
    for one in missing:
        console.print(str(one), style="red" if one.trace else "yellow", highlight=False)
        if debug and one.trace:
            print(one.trace, end="", file=sys.stderr)
    failed = sum(1 for one in missing if one.trace)
    console.print(
        f"{path} made in {time.perf_counter() - started:.0f} s; open it in a browser.", highlight=False
    )
    if failed:
        print(
            f"regraft: {failed} {'chapter' if failed == 1 else 'chapters'} failed: --debug shows where",
            file=sys.stderr,
        )
    return 1 if failed else 0


def show_anatomy(model: Model, as_json: bool) -> None:
    """Print parts, sites and self-check."""
    found = inspect(model)
    if as_json:
        console.print_json(json_text(found.as_dict()))
        return
    parts = [[row.part, row.path, row.shape, f"{row.parameters:,}", f"{row.bytes:,}"] for row in found.parts]
    show_rows(f"{model.name}: parts", ("part", "module", "shape", "parameters", "bytes"), parts, (3, 4))
    sites = [[row.site, f"{row.blocks} of {row.total}", row.reason] for row in found.sites]
    show_rows("sites", ("site", "blocks", "why not in the others"), sites)
    check = found.self_check
    table = _table("self-check", ("check", "what is compared", "measured", "unit"), right=(2,))
    for name, what, unit in CHECKS:
        table.add_row(name, what, f"{check[name]:.2g}", unit)
    table.add_row("causal", "no position sees a later one", "yes" if check["causal"] else "no", "")
    console.print(table)


def show_rows(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """Print a table; columns in `right` are set as figures."""
    table = _table(title, tuple(head), tuple(right))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _table(title: str, columns: tuple[str, ...], right: tuple[int, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    return table


def show_dissection(source: str, out: Path | None, as_json: bool, pickle_shapes: bool = False) -> None:
    """Print what a checkpoint's headers tell, and draw it where a folder is given."""
    components = inspect_headers(source, out, pickle_shapes)
    if as_json:
        print(headers_json(source, components), end="")
        return
    print_anatomy(source, components, console)
    if out is not None:
        console.print(f"written to {out} (anatomy.json, anatomy.svg)", highlight=False)


def show_experiment(
    experiment: Experiment,
    model: Model | Weights,
    options: dict[str, Any],
    out: Path | None,
    seed: int,
    as_json: bool,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Run one experiment, write its run folder where one is asked for, and print a short table.

    With a folder the run is kept as it is measured: the same command goes on with one that did not end,
    prints one that did, and replaces it with `force`.
    """
    if out is None:
        with still_told(lambda found: _told(found, None, as_json)):
            dataset = with_bar(lambda: run_experiment(experiment, model, seed, **options))
        _told(dataset, None, as_json)
        return
    kept = run_kept(
        experiment, model, options, out, seed, settings, force, lambda it: _told(it, None, as_json), with_bar
    )
    if as_json or common().quiet:
        return
    if kept.fresh:
        _say_written(out)
    else:
        console.print(f"{out} holds this run, finished: nothing was run (--force measures anew)")


def show_plan(experiment: Experiment, model: Model | Weights, options: dict[str, Any], seed: int) -> None:
    """Print what an experiment's first sweep would run and hold. Completions that it reads are written, since
    the plan hangs on them.

    Raises:
        ValueError: the experiment came to its end without a sweep.
    """
    try:
        with planning():
            with_bar(lambda: run_experiment(experiment, model, seed, **options))
    except PlannedError as planned:
        console.print(f"{experiment.name} would sweep {planned.forecast}.", highlight=False)
        console.print("Nothing was measured; a sweep that follows may depend on this one.", style="dim")
        return
    raise ValueError(f"{experiment.name} makes no sweep with these options: there is no plan to show")


def _told(
    dataset: xr.Dataset,
    out: Path | None,
    as_json: bool,
    settings: Mapping[str, Any] | None = None,
    show: Callable[[xr.Dataset], None] | None = None,
) -> None:
    """Print a result, by `show` where it is no table, and then write its run folder where one is asked
    for."""
    if as_json:
        print_as_json(dataset)
    else:
        (show or print_result)(dataset)
    if out is not None:
        write_run(dataset, out, settings)
        if not as_json and not common().quiet:
            _say_written(out)


def _say_written(out: Path) -> None:
    console.print(f"written to {out} (`regraft show {out} --draw` draws it)", highlight=False)


def print_as_json(dataset: xr.Dataset) -> None:
    """A result as JSON, its attributes as objects."""
    told = dataset.to_dict()
    console.print_json(json_text({**told, "attrs": opened_attributes(told["attrs"])}))


def rebuild_model(
    source: str,
    texts: list[str],
    stage: str,
    dtype: str,
    carry: bool,
    skeleton: Path | None,
    out: Path | None,
    as_json: bool,
    settings: Mapping[str, Any] | None = None,
) -> int:
    """Compare a rebuilt model stage by stage, or write a student's folder; 1 where a stage parts."""
    if skeleton is not None:
        stages = write_skeleton(source, skeleton, texts)
        check = shlex.join(["python", str(skeleton / "check.py")])
        console.print(
            f"{len(stages)} stages written to {skeleton}: fill in model.py, then `{check}`", soft_wrap=True
        )
        return 0
    if out is not None:
        check_writable(out, "rebuild", open_rebuilt(resolve(source)[0]).weights_sha256, version("regraft"))
    with progress_bar() as bar:
        bar.add_task("the official model, in a process of its own, then the rebuilt one", total=None)
        dataset = rebuild(source, texts, stage, dtype, carry=carry)
    _told(dataset, out, as_json, settings, print_stages)
    return 0 if dataset.attrs["agrees"] else 1


def print_stages(dataset: xr.Dataset) -> None:
    """The finding, and one row for each kind of stage: its blocks, shape, differences and decimals at their
    worst."""
    console.print(drawing_of(dataset).finding(dataset), highlight=False)
    kinds: dict[tuple[str, str], list[int]] = {}
    for place, stage in enumerate(dataset.stage.values):
        block, kind = split(str(stage))
        kinds.setdefault((block.rpartition(".")[0], kind), []).append(place)
    table = [["stage", "blocks", "shape", "largest", "mean", "decimals"]]
    for (stack, kind), places in kinds.items():
        some = dataset.isel(stage=places)
        pairs = zip(some.shape_of_ours.values, some.shape_of_official.values, strict=True)
        shapes = ", ".join(dict.fromkeys(a if a == b else f"{a} (officially {b})" for a, b in pairs))
        blocks = "" if split(str(some.stage.values[0]))[0] == OUTSIDE else str(len(places))
        numbers = (
            f"{float(some.largest.max()):.2g}",
            f"{float(some['mean'].max()):.2g}",
            str(int(some.decimals.min())),
        )
        table.append([f"{stack}.{kind}" if stack else kind, blocks, shapes, *numbers])
    print("\n".join(aligned(table)))
    for parting in filter(None, dataset.attrs.get("partings", "").split(" | ")):
        console.print(f"parts: {parting}", highlight=False)
    if dataset.attrs["values"]:
        console.print(dataset.attrs["values"], highlight=False)
    attrs = dataset.attrs
    console.print(
        f"model {attrs['model']} ({attrs['weights_sha256'][:12]}), {attrs['dtype']},"
        f" {attrs['seconds']:.1f} s; largest and mean: absolute differences at their worst over the blocks;"
        " decimals: 17 is equal to the bit",
        highlight=False,
        style="dim",
    )


def print_result(dataset: xr.Dataset) -> None:
    """The finding, the head of the data as a table with units, and where the numbers come from."""
    drawing = drawing_of(dataset)
    finding = drawing.finding(dataset)
    if finding:
        console.print(finding, highlight=False)
    saved = str(dataset.attrs.get("saved", ""))
    if saved and saved not in finding:
        console.print(f"Saved: {saved}", highlight=False)
    rows = list(csv.reader(io.StringIO(csv_text(dataset))))
    print("\n".join(aligned([[short(cell) for cell in row] for row in rows[: SHOWN_ROWS + 1]])))
    if len(rows) > SHOWN_ROWS + 1:
        console.print(
            f"... {len(rows) - SHOWN_ROWS - 1:,} more rows (--out DIR keeps them all)", highlight=False
        )
    if common().quiet:
        return
    units = {str(n): v.attrs.get("units", "") for n, v in dataset.data_vars.items() if str(n) in rows[0]}
    console.print("units: " + "; ".join(f"{n}: {u}" for n, u in units.items()), highlight=False, style="dim")
    console.print(_origin(dataset.attrs), highlight=False, style="dim")


def _origin(attrs: Mapping[str, Any]) -> str:
    """Where numbers come from: the model and how it was run, or the file and the machine."""
    if "model" not in attrs:
        kept = ("file", "size", "cores", "machine", "load", "versions")
        return "; ".join(f"{name} {attrs[name]}" for name in kept)
    deviation = (
        f", control deviation {attrs['control_deviation']:.1g}" if "control_deviation" in attrs else ""
    )
    return (
        f"model {attrs['model']} ({attrs['weights_sha256'][:12]}), {attrs['dtype']} on {attrs['device']},"
        f" {attrs['seconds']:.1f} s{deviation}" + (f"; {attrs['notes']}" if attrs.get("notes") else "")
    )
