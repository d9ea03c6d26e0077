"""The command `regraft reproduce`; heavy imports wait for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli.columns import aligned
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    MemoryOption,
    SeedOption,
    StreamOption,
    TokenizerOption,
    folder_option,
    open_model,
)
from regraft.core.files import read_text
from regraft.core.sizes import in_words as bytes_in_words
from regraft.jobs.checks import check_least, check_model
from regraft.landmarks.study import Step, Study, chosen_steps, studies, study_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regraft.landmarks.beside import Beside

MINUTE, HOUR, DAY = 60, 3600, 86400
"""Seconds of the units that a time is told in."""


def reproduce(
    *,
    source: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="The model; without one the studies are listed.")
    ] = "",
    study: Annotated[
        str, typer.Option(help="Whose figures, where the model is a folder: a name from the list.")
    ] = "",
    only: Annotated[
        list[str] | None, typer.Option(help="Run this step of the study alone; again for several.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it takes in time and memory, and fetch nothing.")
    ] = False,
    count: Annotated[int, typer.Option(help="Prompts read instead of the study's number. 0: its own.")] = 0,
    text: Annotated[
        str, typer.Option(help="Text file for figures that are of a text (WikiText-2's test part).")
    ] = "",
    out: Annotated[Path, folder_option(help="Folder for the page, the table and the results.")] = Path(
        "reproduced"
    ),
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "",
    tokenizer: TokenizerOption = "",
    stream: StreamOption = False,
    memory: MemoryOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Run the experiments that published a model's figures, and print each figure beside what is found."""
    with errors_in_one_sentence(debug):
        if not source and not study:
            list_studies()
            return
        chosen = study_for(source, study)
        source = source or chosen.model
        steps = chosen_steps(chosen, only or [])
        check_least(0, count=count)
        if text:
            read_text(text, "give running text")
        if plan:
            print_plan(chosen, steps, dtype or chosen.dtype, device, count)
            return
        check_model(source)
        opened = {"device": device, "dtype": dtype, "tokenizer": tokenizer, "seed": seed}
        opened |= {"stream": stream, "memory": memory}
        from regraft.jobs.reproduce_job import Reproduction, differences

        run = Reproduction(
            chosen, source, out,
            lambda: open_model(source, device, dtype, "", False, tokenizer, "", stream, memory),
            text, count, seed, opened, tell_step,
        )  # fmt: skip
        run.run(steps)
        if run.model is not None:
            typer.echo("Settings that differ:")
            for sentence in differences(chosen, run.model, count):
                typer.echo(f"- {sentence}")
        typer.echo(f"written to {out}")
    if run.refused:
        raise typer.Exit(1)


def list_studies() -> None:
    """Every study: its model, how many figures of how many steps, and where they were published."""
    rows = [["study", "model", "steps", "figures", "published"]]
    for study in studies().values():
        rows.append(
            [study.name, study.model, str(len(study.steps)), str(study.landmarks), study.source],
        )
    for line in aligned(rows):
        typer.echo(line)
    typer.echo("Run one: regraft reproduce MODEL, or, of a folder: regraft reproduce FOLDER --study STUDY")


def tell_step(step: Step, finding: str, found: Sequence[Beside]) -> None:
    """Print what a step found, and its landmarks beside that."""
    from regraft.jobs.reproduce_job import HEADER, landmark_cells

    typer.echo(f"{step.name}: {finding}" if finding else f"{step.name}: done")
    rows = [landmark_cells(one)[1:] for one in found]
    for line in aligned([HEADER[1:], *rows]) if rows else []:
        typer.echo(f"  {line}")


def print_plan(study: Study, steps: Sequence[Step], dtype: str, device: str, count: int) -> None:
    """Say what the steps take on this machine, without fetching anything."""
    from regraft.landmarks.study_plan import COMPLETIONS, measured_speed, planned, weight_bytes

    shape = study.shape
    if shape is None:
        raise ValueError(
            f"the shape of {study.model} is not stated, so there is no plan:"
            f" `regraft inspect {study.model} --weights-only` reads it from the headers alone"
        )
    speed = measured_speed(shape, dtype, device)
    costs = {cost.step: cost for cost in planned(steps, shape, speed, count)}
    weights = weight_bytes(shape, dtype)
    rows = [["step", "multiply-adds", "time, about", "beside the weights", "figures"]]
    if made := costs.get(COMPLETIONS):
        rows.append([COMPLETIONS, f"{made.work:.1e}", duration(made.seconds), "", ""])
    for step in steps:
        if (cost := costs.get(step.name)) is None:
            rows.append([step.name, "a command with a plan of its own", "", "", str(len(step.landmarks))])
            continue
        known = not math.isnan(cost.work)
        work = [f"{cost.work:.1e}", duration(cost.seconds)] if known else ["not estimated", "not estimated"]
        told = [*work, bytes_in_words(int(cost.bytes))]
        rows.append([step.name, *told, str(len(step.landmarks))])
    for line in aligned(rows):
        typer.echo(line)
    if costs:
        seconds = sum(cost.seconds for cost in costs.values() if not math.isnan(cost.seconds))
        typer.echo(
            f"{study.model}: {shape.parameters:,} parameters, {bytes_in_words(weights)} to fetch and to hold"
            f" in {dtype} (less with --stream --memory), {duration(seconds)} for what is estimated on"
            f" {device} at {speed.many / 1e9:,.0f} billion multiply-adds a second, which was measured now."
            " Nothing was fetched"
        )


def duration(seconds: float) -> str:
    """A time in words."""
    for unit, name in ((DAY, "days"), (HOUR, "hours"), (MINUTE, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
