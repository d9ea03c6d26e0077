"""The command `regraft tuned-lens`; heavy imports wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regraft.cli.common import settings_of
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.graft import LengthOption, TrainOption, check_plan
from regraft.cli.options import (
    DebugOption,
    DeviceOption,
    ModelOption,
    SeedOption,
    TokenizerOption,
    filling,
    folder_option,
    open_model,
)
from regraft.core.defaults import SEQUENCE_LENGTH
from regraft.core.files import check_empty
from regraft.core.runs import store_settings
from regraft.jobs.checks import check_least, check_texts


@filling(plan="training.trainer:TrainingPlan")
def tuned_lens(
    *,
    context: typer.Context,
    model: ModelOption = "specimen:qwen3",
    text: TrainOption = None,
    out: Annotated[Path, folder_option(help="Folder for the run and the lens.")] = Path("tuned-lens"),
    plan: dict[str, Any],
    positions: Annotated[int, typer.Option(help="Places of a batch that are read at every depth.")] = 128,
    length: LengthOption = SEQUENCE_LENGTH,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Tune a lens: an affine map for each depth, trained to say there what the model says at the end."""
    with errors_in_one_sentence(debug):
        check_empty(out / "lens", "--out")
        check_least(1, positions=positions)
        check_plan(plan, length)
        text = check_texts(text or [])
        opened = open_model(model, device, "", "", False, tokenizer)
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.lens_job import fit_lens
        from regraft.training.trainer import TrainingPlan

        how_opened = {"device": device, "tokenizer": tokenizer}
        options = {"positions": positions, "length": length, "seed": seed, "opened": how_opened}
        sentence = with_bar(lambda: fit_lens(opened, out, text, TrainingPlan(**plan), **options))
        if sentence:
            typer.echo(sentence)
            store_settings(settings_of(context, "tuned-lens"), out)
