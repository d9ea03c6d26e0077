"""The command `regraft studio`; heavy imports wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.options import DebugOption, folder_option
from regraft.core.defaults import STUDIO_PORT
from regraft.core.files import check_place
from regraft.jobs.checks import check_model

LAST_PORT = 65535
"""The largest number of a port."""


def studio(
    source: Annotated[str, typer.Argument(metavar="[MODEL]", help="The model; or use --model.")] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder, a hub id, or specimen:qwen3|tuned|gpt2|t5.")
    ] = "specimen:qwen3",
    runs: Annotated[Path, folder_option(help="Folder that runs are written to and read from.")] = Path(
        "runs"
    ),
    folder: Annotated[
        list[str] | None,
        typer.Option(help="Another folder that the page may name: models, grafts, texts; again for several."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes one that is free.")] = STUDIO_PORT,
    host: Annotated[
        str, typer.Option(help="Where to listen: this machine alone, unless you write another address.")
    ] = "127.0.0.1",
    debug: DebugOption = False,
) -> None:
    """Play with a model in a local page: touch any part, and see what changes."""
    with errors_in_one_sentence(debug):
        named = source or model
        check_model(named)
        check_place(runs, "--runs")
        if not 0 <= port <= LAST_PORT:
            raise ValueError(f"--port is {port}: write 0 to {LAST_PORT}")
        missing = next((one for one in folder or [] if not Path(one).expanduser().is_dir()), None)
        if missing is not None:
            raise ValueError(f"--folder {missing} is no folder: name one that is there")
        from regraft.studio.server import serve

        runs.mkdir(parents=True, exist_ok=True)
        beside = [
            Path(one).expanduser() for one in [*(folder or []), named] if Path(one).expanduser().is_dir()
        ]
        serve(named, runs, beside, host, port, tell=typer.echo)
