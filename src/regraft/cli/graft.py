"""The command line of the grafts: `regraft graft embedding | head | transcoder`; heavy imports wait for a
command.

A command opens its model before it imports more: opening silences what the libraries behind transformers say
as they load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regraft.cli.adapters import transcoder
from regraft.cli.common import push_saved, settings_of
from regraft.cli.errors import errors_in_one_sentence
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
from regraft.core.files import check_empty, still_told
from regraft.core.runs import store_settings
from regraft.export.graft_description import check_certified, model_of, read_about
from regraft.jobs.checks import check_domains, check_least, check_texts

if TYPE_CHECKING:
    import xarray as xr

graft = typer.Typer(
    help="Put another part in a part's place, trained against the model and measured.", no_args_is_help=True
)
embedding = typer.Typer(help="A token embedding computed from each token's bytes.", no_args_is_help=True)
head = typer.Typer(help="A tree of decisions in place of the output matrix.", no_args_is_help=True)
graft.add_typer(embedding, name="embedding")
graft.add_typer(head, name="head")
graft.add_typer(transcoder, name="transcoder")

EMBEDDING_FOLDER, HEAD_FOLDER = Path("byte-embedding"), Path("tree-head")
GraftsModelOption = Annotated[
    str, typer.Option("--model", "-m", help="The model; by default the one that the graft was made for.")
]
GraftOption = Annotated[Path, folder_option(help="Folder of a graft.")]
WithOption = Annotated[
    Path | None, folder_option("--with", help="Folder of a second graft, in its place at the same time.")
]
TrainOption = Annotated[
    list[str] | None, typer.Option(help="File or folder to train on; again for several. None: almanac.")
]
DomainOption = Annotated[
    list[str] | None, typer.Option(help="NAME=PATH of a domain; again for several. None: almanac.")
]
LengthOption = Annotated[int, typer.Option(help="Tokens of a sequence.")]
WindowsOption = Annotated[int, typer.Option(help="Sequences read of each domain.")]
SaveOption = Annotated[Path, folder_option(help="Folder to write the model to.")]
CodeOption = Annotated[
    bool, typer.Option("--remote-code", help="Carry the code along, to open the folder without regraft.")
]


@embedding.command("fit")
@filling(
    config="modules.byte_embedding:ByteConfig",
    plan="training.trainer:TrainingPlan",
    losses="training.tasks.embedding_task:LossWeights",
)
def fit_embedding(
    *,
    context: typer.Context,
    model: ModelOption = "specimen:qwen3",
    text: TrainOption = None,
    out: Annotated[Path, folder_option(help="Folder for the run and the graft.")] = EMBEDDING_FOLDER,
    config: dict[str, Any],
    plan: dict[str, Any],
    losses: dict[str, Any],
    length: LengthOption = SEQUENCE_LENGTH,
    warm: Annotated[int, typer.Option(help="Steps of regression on the table before.")] = 1200,
    felt: Annotated[
        bool, typer.Option(help="Warm up in the metric that the model's predictions feel on the text.")
    ] = True,
    depth: Annotated[
        list[int] | None,
        typer.Option(help="Blocks behind which the stream is compared; write it again for several."),
    ] = None,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Train an embedding that computes each token's vector from its bytes."""
    with errors_in_one_sentence(debug):
        check_empty(out / "graft", "--out")
        sizes = {name: config[name] for name in ("group", "byte_width", "heads", "neurons")}
        check_least(1, **sizes)
        check_least(0, blocks=config["blocks"], warm=warm, **losses)
        check_plan(plan, length)
        text = check_texts(text or [])
        opened = open_model(model, device, "", "", False, tokenizer)
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.graft_jobs import fit_embedding
        from regraft.modules.byte_embedding import ByteConfig
        from regraft.training.tasks.embedding_task import LossWeights
        from regraft.training.trainer import TrainingPlan

        parts = (ByteConfig(**config), TrainingPlan(**plan), LossWeights(**losses))
        how_opened = {"device": device, "tokenizer": tokenizer}
        options = {"length": length, "warm": warm, "felt": felt, "seed": seed, "opened": how_opened}
        options["depths"] = tuple(depth or ())
        _told(with_bar(lambda: fit_embedding(opened, out, text, *parts, **options)), context, out)


@head.command("build")
@filling(how="jobs.head_jobs:Build")
def build_head(
    *,
    context: typer.Context,
    model: ModelOption = "specimen:qwen3",
    text: TrainOption = None,
    out: Annotated[Path, folder_option(help="Folder for the head.")] = HEAD_FOLDER,
    how: dict[str, Any],
    length: LengthOption = SEQUENCE_LENGTH,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Build a tree head from the model's own output matrix, without training, and say its loss."""
    with errors_in_one_sentence(debug):
        for name in ("graft", "run"):
            check_empty(out / name, "--out")
        check_least(0, adapter=how["adapter"])
        check_least(1, states=how["states"])
        check_least(2, length=length, branching=how["branching"])
        text = check_texts(text or [])
        opened = open_model(model, device, "", "", False, tokenizer)
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.head_jobs import Build, build_head

        built, how_opened = Build(**how), {"device": device, "tokenizer": tokenizer}
        told = {"length": length, "seed": seed, "opened": how_opened}
        _told(with_bar(lambda: build_head(opened, out, text, built, **told)), context, out)


@head.command("fit")
@filling(plan="training.trainer:TrainingPlan")
def fit_head(
    *,
    context: typer.Context,
    model: GraftsModelOption = "",
    text: TrainOption = None,
    out: Annotated[
        Path, folder_option(help="Folder that `head build` has written; the run goes there too.")
    ] = HEAD_FOLDER,
    loss: Annotated[
        Literal["path", "divergence"],
        typer.Option(
            help="The next token's path alone, or the divergence from the original head's whole distribution."
        ),
    ] = "path",
    plan: dict[str, Any],
    length: LengthOption = SEQUENCE_LENGTH,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Train a tree head that was built before."""
    with errors_in_one_sentence(debug):
        model = model_of(out / "graft", model)
        check_plan(plan, length)
        text = check_texts(text or [])
        opened = open_model(model, device, "", "", False, tokenizer)
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.head_jobs import fit_head
        from regraft.training.trainer import TrainingPlan

        options = {
            "loss": loss,
            "length": length,
            "seed": seed,
            "opened": {"device": device, "tokenizer": tokenizer},
        }
        _told(
            with_bar(lambda: fit_head(opened, out, text, TrainingPlan(**plan), **options)),
            context,
            out / "run",
        )


def check_plan(plan: dict[str, Any], length: int) -> None:
    """What `TrainingPlan` itself refuses, before anything heavy is imported."""
    check_least(1, **{name: plan[name] for name in ("steps", "batch", "accumulate", "save_every")})
    check_least(0, **{name: plan[name] for name in ("rate", "warmup", "clip", "weight_decay", "patience")})
    check_least(2, length=length)


def _told(sentence: str, context: typer.Context, out: Path) -> None:
    """Print a command's sentence and keep its options; of several processes only the first has one."""
    if sentence:
        typer.echo(sentence)
        store_settings(settings_of(context, context.command_path.partition(" ")[2]), out)


def _measured(
    graft: Path,
    second: Path | None,
    model: str,
    text: list[str],
    length: int,
    windows: int,
    device: str,
    tokenizer: str,
) -> None:
    folders = [graft, *([second] if second else [])]
    model = model_of(folders[0], model)
    for folder in folders[1:]:
        read_about(folder)
    check_domains(text)
    check_least(1, windows=windows)
    check_least(2, length=length)
    opened = open_model(model, device, "", "", False, tokenizer)
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.graft_jobs import evaluate_grafts, sentences

    how_opened = {"device": device, "tokenizer": tokenizer}

    def tell(data: xr.Dataset) -> None:
        for line in sentences(data):
            typer.echo(line)

    with still_told(tell):
        tell(
            with_bar(
                lambda: evaluate_grafts(opened, folders, text, length=length, most=windows, opened=how_opened)
            )
        )


def _exported(
    graft: Path, second: Path | None, model: str, save: Path, remote_code: bool, device: str, tokenizer: str
) -> None:
    folders = [graft, *([second] if second else [])]
    check_certified(folders)
    check_empty(save, "--save")
    opened = open_model(model_of(folders[0], model), device, "", "", False, tokenizer)
    from regraft.jobs.graft_jobs import export_grafts

    typer.echo(export_grafts(opened, folders, save, remote_code))
    push_saved(save)


def _add_measuring(app: typer.Typer, folder: Path, what: str) -> None:
    """`eval` and `export`, which every kind of graft has, each with its own usual folder."""

    @app.command(
        "eval", help=f"Measure {what} against the model that it came from, and write its certificate."
    )
    def _eval(
        graft: GraftOption = folder / "graft",
        second: WithOption = None,
        model: GraftsModelOption = "",
        text: DomainOption = None,
        length: LengthOption = SEQUENCE_LENGTH,
        windows: WindowsOption = 64,
        device: DeviceOption = "cpu",
        tokenizer: TokenizerOption = "",
        debug: DebugOption = False,
    ) -> None:
        with errors_in_one_sentence(debug):
            _measured(graft, second, model, text or [], length, windows, device, tokenizer)

    @app.command(
        "export", help=f"Write the model with {what} in it as a Hugging Face folder of its own type."
    )
    def _export(
        save: SaveOption,
        graft: GraftOption = folder / "graft",
        second: WithOption = None,
        model: GraftsModelOption = "",
        remote_code: CodeOption = False,
        device: DeviceOption = "cpu",
        tokenizer: TokenizerOption = "",
        debug: DebugOption = False,
    ) -> None:
        with errors_in_one_sentence(debug):
            _exported(graft, second, model, save, remote_code, device, tokenizer)


_add_measuring(embedding, EMBEDDING_FOLDER, "a graft")
_add_measuring(head, HEAD_FOLDER, "a tree head")


@embedding.command("bake")
def bake_embedding(
    save: SaveOption,
    graft: GraftOption = EMBEDDING_FOLDER / "graft",
    model: GraftsModelOption = "",
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Write the model with the graft's vectors as an ordinary table, which any transformers opens."""
    with errors_in_one_sentence(debug):
        check_certified([graft], "byte embedding")
        check_empty(save, "--save")
        opened = open_model(model_of(graft, model), device, "", "", False, tokenizer)
        from regraft.jobs.graft_jobs import bake_embedding

        typer.echo(bake_embedding(opened, graft, save))
        push_saved(save)
