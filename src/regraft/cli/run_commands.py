"""`regraft runs`, `regraft show`, `regraft compare`: what run folders hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.columns import aligned, cut
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.options import DebugOption, JsonOption
from regraft.core.files import expanded
from regraft.core.strict_json import json_text

FOLDER = "Folder with run folders in it, whole reports too."


def runs(
    folder: Annotated[str, typer.Argument(metavar="[FOLDER]", help=FOLDER)] = ".",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the run folders in a folder."""
    with errors_in_one_sentence(debug):
        from regraft.jobs.run_folders import found_runs

        found = found_runs(expanded(folder))
        if as_json:
            typer.echo(json_text([{**vars(one), "folder": str(one.folder)} for one in found], indent=1))
            return
        rows = [["folder", "experiment", "model", "weights", "made", "s", "state"]]
        for one in found:
            seconds = "" if one.seconds != one.seconds else f"{one.seconds:.1f}"
            rows.append(
                [
                    str(one.folder),
                    one.experiment,
                    one.model,
                    one.weights[:8],
                    one.time[:19],
                    seconds,
                    one.state,
                ]
            )
        typer.echo("\n".join(aligned(rows)))


def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    draw: Annotated[
        bool,
        typer.Option("--draw", help="Write its figures to figure.html in the folder; open it in a browser."),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Print what a run found, and draw its figures."""
    with errors_in_one_sentence(debug):
        folder = expanded(run)
        from regraft.core.runs import read_mark

        mark = read_mark(folder)
        if mark.get("experiment") == "report":
            raise ValueError(f"{run} is a whole report: open its report.html, or name one of its chapters")
        if mark.get("finished") is False:
            raise ValueError(
                f"the run {run} did not come to its end: the command that began it goes on with it"
                " (regraft.open_run gives what was measured so far)"
            )
        from regraft.cli.console import print_as_json, print_result
        from regraft.core.runs import open_run

        dataset = open_run(folder)
        if as_json:
            print_as_json(dataset)
        else:
            print_result(dataset)
        if draw:
            from regraft.reporting.run_pages import draw_run

            typer.echo(f"drawn: {draw_run(folder)}")


def compare(
    one: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    other: Annotated[str, typer.Argument(metavar="RUN", help="Another run of the same experiment.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what differs between two runs of one experiment: how they were made, and their values."""
    with errors_in_one_sentence(debug):
        folders: tuple[Path, Path] = (expanded(one), expanded(other))
        from regraft.jobs.run_folders import compare_runs

        found = compare_runs(*folders)
        if as_json:
            values = [vars(value) for value in found.values]
            told = {"provenance": found.provenance, "values": values, "alone": found.alone}
            typer.echo(json_text(told, indent=1))
            return
        rows = [["made with", one, other]]
        rows += [[name, *(cut(str(value)) for value in both)] for name, both in found.provenance.items()]
        typer.echo("\n".join(aligned(rows)) if len(rows) > 1 else "Both were made in the same way.")
        apart = [value for value in found.values if value.largest or value.reason]
        typer.echo("")
        rows = [["quantity", "largest difference", "of the largest value", "where", "unit"]]
        for value in sorted(apart, key=lambda value: -value.share if value.share == value.share else 0):
            if value.reason:
                rows.append([value.name, "", "", value.reason, value.units])
            else:
                told = [f"{value.largest:.3g}", f"{value.share:.2%}", value.place, value.units]
                rows.append([value.name, *told])
        if apart:
            typer.echo("\n".join(aligned(rows)))
        same = len(found.values) - len(apart)
        typer.echo(f"{same} of {len(found.values)} quantities are the same to the bit.")
        for folder, names in zip((one, other), found.alone, strict=True):
            if names:
                typer.echo(f"in {folder} alone: {', '.join(names)}")
