"""`regraft report`: one page that explains a model, from what is measured now or from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from regraft.cli.common import is_written, settings_of
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.options import (
    AttentionOption,
    ClusterOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    MemoryOption,
    ModelOption,
    PromptsFileOption,
    RemoteOption,
    SeedOption,
    StreamOption,
    TargetTokenizerOption,
    TextOption,
    TokenizerOption,
    folder_option,
    helping,
    open_model,
)
from regraft.core.defaults import REPORT_COUNT
from regraft.core.files import expanded, read_text
from regraft.jobs.checks import check_opening, check_prompts, check_run

if TYPE_CHECKING:
    from regraft.reporting.chapter_inputs import Reading

CHAPTERS = "Chapters to have, with commas between them: lens,patch; by default all that suit the model."


def report(
    context: typer.Context,
    model: ModelOption = "specimen:qwen3",
    out: Annotated[Path, folder_option(help="Folder to write report.html and the results to.")] = Path(
        "report"
    ),
    chapters: Annotated[str, typer.Option(help=CHAPTERS)] = "",
    beside: Annotated[
        str, typer.Option(help="Another model: every figure of both on one page, differences first.")
    ] = "",
    from_runs: Annotated[
        list[str] | None,
        typer.Option("--from", help="Run folders or reports to make the page of; nothing is measured."),
    ] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "",
    attention: AttentionOption = "",
    remote_code: RemoteOption = False,
    tokenizer: TokenizerOption = "",
    target_tokenizer: TargetTokenizerOption = "",
    prompts: Annotated[
        list[str] | None, typer.Option(help="Texts that the chapters read; again for several.")
    ] = None,
    prompts_file: PromptsFileOption = "",
    text: TextOption = "",
    pairs: Annotated[
        str, typer.Option(help="JSON list of clean, corrupt, answer, wrong, for patching.", metavar="FILE")
    ] = "",
    count: Annotated[
        int,
        typer.Option(
            help=f"How many prompts a chapter measures; by default those given, or {REPORT_COUNT}.", min=0
        ),
    ] = 0,
    stream: StreamOption = False,
    memory: MemoryOption = "",
    cluster: ClusterOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Run what suits the model and write one page that explains it."""
    with errors_in_one_sentence(debug):
        if from_runs:
            _from_runs(context, from_runs, out, beside)
            return
        check_run(out, "report")
        check_prompts(prompts, prompts_file, text)
        if pairs:
            read_text(pairs, "write a list of objects with clean, corrupt, answer, wrong")
        named = names_of(chapters)
        if beside and cluster:
            raise ValueError("--beside measures two models one after the other: leave --cluster out")
        how = (device, dtype, attention, remote_code, tokenizer, target_tokenizer, stream, memory)
        for one in (model, beside) if beside else (model,):
            check_opening(one, device, dtype, tokenizer, memory)
        from regraft.reporting.chapter_inputs import Reading

        reading = Reading(tuple(prompts or ()), prompts_file, text, pairs, count)
        check_asked(named, reading)
        opened = open_model(model, *how)
        from regraft.cli.console import make_report

        other = open_model(beside, *how) if beside else None
        words = (
            "device",
            "dtype",
            "attention",
            "remote_code",
            "tokenizer",
            "target_tokenizer",
            "stream",
            "memory",
        )
        options = {**dict(zip(words, how, strict=True)), "seed": seed}
        settings = settings_of(context, "report")
        with helping(opened, device, cluster, options) as helpers:
            shared = cast(Any, helpers) if cluster else None
            told = {"reading": reading, "options": options, "seed": seed, "chapters": named}
            code = make_report(opened, out, told, debug, settings, shared, other)
    raise typer.Exit(code)


def names_of(chapters: str) -> list[str]:
    """Names of chapters with commas between them."""
    return [name for name in (word.strip() for word in chapters.split(",")) if name]


def check_asked(names: list[str], reading: Reading) -> None:
    """Make sure that there are such chapters, and that one reads what is given, before a model is opened."""
    from regraft.reporting.build import CHAPTERS as WHOLE
    from regraft.reporting.chosen_chapters import check_read, chosen_chapters

    check_read(chosen_chapters(names, WHOLE), reading)


FROM_TOO = ("from_runs", "out", "beside", "debug")
"""What may be said beside --from."""


def _from_runs(context: typer.Context, folders: list[str], out: Path, beside: str) -> None:
    """The page of run folders."""
    named = [option.name or "" for option in context.command.params]
    wrong = [name for name in named if name not in FROM_TOO and is_written(context, name)]
    if wrong:
        said = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise ValueError(f"--from makes a page of runs that are there and measures nothing: leave out {said}")
    from regraft.reporting.run_pages import page_from_runs

    check_run(out, "report", force=True)
    page = page_from_runs([expanded(folder) for folder in folders], out, beside)
    typer.echo(f"{page} made from {len(folders)} {'folder' if len(folders) == 1 else 'folders'}.")
