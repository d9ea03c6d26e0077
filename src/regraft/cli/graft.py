"""The command line of the grafts: `regraft graft embedding | head`; heavy imports wait for a command.

A command opens its model before it imports more: opening silences what the libraries behind transformers say as they load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from regraft.cli.options import (
    DebugOption,
    DeviceOption,
    ModelOption,
    SeedOption,
    TokenizerOption,
    errors_in_one_sentence,
    folder_option,
    open_model,
)
from regraft.core.files import check_empty, still_told
from regraft.export.graft_description import check_certified, read_about
from regraft.jobs.checks import check_domains, check_least, check_texts

if TYPE_CHECKING:
    import xarray as xr

graft = typer.Typer(help="Put another part in a part's place, trained against the model and measured.", no_args_is_help=True)
embedding = typer.Typer(help="A token embedding computed from each token's bytes.", no_args_is_help=True)
head = typer.Typer(help="A tree of decisions in place of the output matrix.", no_args_is_help=True)
graft.add_typer(embedding, name="embedding")
graft.add_typer(head, name="head")

EMBEDDING_FOLDER, HEAD_FOLDER = Path("byte-embedding"), Path("tree-head")
GraftOption = Annotated[Path, folder_option(help="Folder of a graft.")]
WithOption = Annotated[Path | None, folder_option("--with", help="Folder of a second graft, in its place at the same time.")]
TrainOption = Annotated[list[str] | None, typer.Option(help="File or folder to train on; again for several. None: almanac.")]
DomainOption = Annotated[list[str] | None, typer.Option(help="NAME=PATH of a domain; again for several. None: almanac.")]
LengthOption = Annotated[int, typer.Option(help="Tokens of a sequence.")]
WindowsOption = Annotated[int, typer.Option(help="Sequences read of each domain.")]
StepsOption = Annotated[int, typer.Option(help="Training steps.")]
BatchOption = Annotated[int, typer.Option(help="Sequences a step.")]
RateOption = Annotated[float, typer.Option(help="Highest learning rate of AdamW; Muon's is five times it.")]
MatricesOption = Annotated[Literal["muon", "adamw"], typer.Option(help="What moves the matrices of linear layers.")]
PrecisionOption = Annotated[Literal["no", "bf16", "fp16"], typer.Option(help="Mixed precision.")]
AccumulateOption = Annotated[int, typer.Option(help="Batches whose gradients make one step.")]
PatienceOption = Annotated[int, typer.Option(help="Stop where the loss has not fallen for so many steps (0: never).")]
ShardOption = Annotated[bool, typer.Option("--shard", help="Spread the frozen trunk over the processes of `accelerate launch`.")]
SaveOption = Annotated[Path, folder_option(help="Folder to write the model to.")]
CodeOption = Annotated[bool, typer.Option("--remote-code", help="Carry the code along, to open the folder without regraft.")]


@embedding.command("fit")
def fit_embedding(
    model: ModelOption = "specimen:qwen3",
    text: TrainOption = None,
    out: Annotated[Path, folder_option(help="Folder for the run and the graft.")] = EMBEDDING_FOLDER,
    group: Annotated[int, typer.Option(help="Bytes kept of each token; flattened, it must divide the model's width.")] = 16,
    byte_width: Annotated[int, typer.Option(help="Width of a byte.")] = 48,
    blocks: Annotated[int, typer.Option(help="Transformer blocks over the bytes.")] = 1,
    neurons: Annotated[int, typer.Option(help="Neurons of the MLP.")] = 384,
    readout: Annotated[Literal["flatten", "pool"], typer.Option(help="Bytes side by side, or pooled by attention.")] = "flatten",
    steps: StepsOption = 600,
    batch: BatchOption = 8,
    length: LengthOption = 128,
    rate: RateOption = 1e-3,
    warm: Annotated[int, typer.Option(help="Steps of regression on the table before.")] = 1200,
    felt: Annotated[bool, typer.Option(help="Warm up in the metric that the model's predictions feel on the text.")] = True,
    hidden: Annotated[float, typer.Option(help="Weight of the stream's error in the loss.")] = 1.0,
    kl: Annotated[float, typer.Option(help="Weight of the divergence of predictions in the loss.")] = 1.0,
    matrices: MatricesOption = "muon",
    precision: PrecisionOption = "no",
    accumulate: AccumulateOption = 1,
    patience: PatienceOption = 0,
    shard: ShardOption = False,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Train an embedding that computes each token's vector from its bytes."""
    with errors_in_one_sentence(debug):
        check_empty(out / "graft", "--out")
        check_least(1, group=group, byte_width=byte_width, blocks=blocks, neurons=neurons, steps=steps, batch=batch)
        check_least(0, warm=warm, hidden=hidden, kl=kl, rate=rate, patience=patience)
        check_least(2, length=length)
        check_least(1, accumulate=accumulate)
        text = check_texts(text or [])
        opened = open_model(model, device, "", "", False, tokenizer)
        from regraft.cli.console import with_bar
        from regraft.jobs.graft_jobs import fit_embedding
        from regraft.modules.byte_embedding import ByteConfig
        from regraft.training.tasks.embedding_task import Weights
        from regraft.training.trainer import Plan

        config = ByteConfig(group, byte_width, blocks, neurons=neurons, readout=readout)
        plan = Plan(
            steps=steps, batch=batch, rate=rate, accumulate=accumulate, precision=precision, matrices=matrices,
            patience=patience, shard=shard,
        )  # fmt: skip
        losses = Weights(hidden=hidden, kl=kl)
        warming, how_opened = (warm, felt), {"device": device, "tokenizer": tokenizer}
        _say(with_bar(lambda: fit_embedding(opened, text, out, config, plan, losses, length, warming, seed, how_opened)))


@head.command("build")
def build_head(
    model: ModelOption = "specimen:qwen3",
    text: TrainOption = None,
    out: Annotated[Path, folder_option(help="Folder for the head.")] = HEAD_FOLDER,
    tree: Annotated[
        Literal["by-id", "huffman", "two-means", "scores", "merges"],
        typer.Option(help="Which tree; `scores`: 2-means of what the tokens score on the model's states."),
    ] = "scores",
    branching: Annotated[int, typer.Option(help="Children of a node: 2, 4, 8, ...")] = 2,
    adapter: Annotated[float, typer.Option(help="Neurons of the MLP before the tree, in times the width; 0: none.")] = 4.0,
    start: Annotated[
        Literal["means", "states"], typer.Option(help="Start at differences of mean rows, or fit them to the head's own paths.")
    ] = "states",
    states: Annotated[int, typer.Option(help="States of the model that the tree and the start are fitted on.")] = 4000,
    length: LengthOption = 128,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Build a tree head from the model's own output matrix, without training, and say its loss."""
    with errors_in_one_sentence(debug):
        for name in ("graft", "run"):
            check_empty(out / name, "--out")
        check_least(0, adapter=adapter)
        check_least(1, states=states)
        check_least(2, length=length, branching=branching)
        text = check_texts(text or [])
        opened = open_model(model, device, "", "", False, tokenizer)
        from regraft.cli.console import with_bar
        from regraft.jobs.head_jobs import Build, build_head

        how, how_opened = Build(tree, branching, adapter, start, states), {"device": device, "tokenizer": tokenizer}
        typer.echo(with_bar(lambda: build_head(opened, text, out, how, length, seed, how_opened)))


@head.command("fit")
def fit_head(
    model: ModelOption = "specimen:qwen3",
    text: TrainOption = None,
    out: Annotated[Path, folder_option(help="Folder that `head build` has written; the run goes there too.")] = HEAD_FOLDER,
    loss: Annotated[
        Literal["path", "divergence"],
        typer.Option(help="The next token's path alone, or the divergence from the original head's whole distribution."),
    ] = "path",
    steps: StepsOption = 600,
    batch: BatchOption = 8,
    length: LengthOption = 128,
    rate: RateOption = 1e-3,
    matrices: MatricesOption = "muon",
    precision: PrecisionOption = "no",
    accumulate: AccumulateOption = 1,
    patience: PatienceOption = 0,
    shard: ShardOption = False,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Train a tree head that was built before."""
    with errors_in_one_sentence(debug):
        read_about(out / "graft")
        check_least(1, steps=steps, batch=batch, accumulate=accumulate)
        check_least(0, rate=rate, patience=patience)
        check_least(2, length=length)
        text = check_texts(text or [])
        opened = open_model(model, device, "", "", False, tokenizer)
        from regraft.cli.console import with_bar
        from regraft.jobs.head_jobs import fit_head
        from regraft.training.trainer import Plan

        plan = Plan(
            steps=steps, batch=batch, rate=rate, accumulate=accumulate, precision=precision, matrices=matrices,
            patience=patience, shard=shard,
        )  # fmt: skip
        how_opened = {"device": device, "tokenizer": tokenizer}
        _say(with_bar(lambda: fit_head(opened, text, out, plan, loss, length, seed, how_opened)))


def _say(text: str) -> None:
    """Print a command's sentence; of several processes only the first has one."""
    if text:
        typer.echo(text)


def _measured(
    graft: Path, second: Path | None, model: str, text: list[str], length: int, windows: int, device: str, tokenizer: str
) -> None:
    folders = [graft, *([second] if second else [])]
    for folder in folders:
        read_about(folder)
    check_domains(text)
    check_least(1, windows=windows)
    check_least(2, length=length)
    opened = open_model(model, device, "", "", False, tokenizer)
    from regraft.cli.console import with_bar
    from regraft.jobs.graft_jobs import evaluate, sentences

    how_opened = {"device": device, "tokenizer": tokenizer}

    def tell(data: xr.Dataset) -> None:
        for line in sentences(data):
            typer.echo(line)

    with still_told(tell):
        tell(with_bar(lambda: evaluate(opened, folders, text, length, windows, how_opened)))


def _exported(graft: Path, second: Path | None, model: str, save: Path, remote_code: bool, device: str, tokenizer: str) -> None:
    folders = [graft, *([second] if second else [])]
    check_certified(folders)
    check_empty(save, "--save")
    opened = open_model(model, device, "", "", False, tokenizer)
    from regraft.jobs.graft_jobs import export_grafts

    typer.echo(export_grafts(opened, folders, save, remote_code))


@embedding.command("eval")
def eval_embedding(
    graft: GraftOption = EMBEDDING_FOLDER / "graft",
    second: WithOption = None,
    model: ModelOption = "specimen:qwen3",
    text: DomainOption = None,
    length: LengthOption = 128,
    windows: WindowsOption = 64,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Measure a graft against the model that it came from, and write its certificate."""
    with errors_in_one_sentence(debug):
        _measured(graft, second, model, text or [], length, windows, device, tokenizer)


@head.command("eval")
def eval_head(
    graft: GraftOption = HEAD_FOLDER / "graft",
    second: WithOption = None,
    model: ModelOption = "specimen:qwen3",
    text: DomainOption = None,
    length: LengthOption = 128,
    windows: WindowsOption = 64,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Measure a tree head against the model that it came from, and write its certificate."""
    with errors_in_one_sentence(debug):
        _measured(graft, second, model, text or [], length, windows, device, tokenizer)


@embedding.command("export")
def export_embedding(
    save: SaveOption,
    graft: GraftOption = EMBEDDING_FOLDER / "graft",
    second: WithOption = None,
    model: ModelOption = "specimen:qwen3",
    remote_code: CodeOption = False,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Write the model with the graft in it as a Hugging Face folder of its own type."""
    with errors_in_one_sentence(debug):
        _exported(graft, second, model, save, remote_code, device, tokenizer)


@head.command("export")
def export_head(
    save: SaveOption,
    graft: GraftOption = HEAD_FOLDER / "graft",
    second: WithOption = None,
    model: ModelOption = "specimen:qwen3",
    remote_code: CodeOption = False,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Write the model with the tree head in it as a Hugging Face folder of its own type."""
    with errors_in_one_sentence(debug):
        _exported(graft, second, model, save, remote_code, device, tokenizer)


@embedding.command("bake")
def bake_embedding(
    save: SaveOption,
    graft: GraftOption = EMBEDDING_FOLDER / "graft",
    model: ModelOption = "specimen:qwen3",
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Write the model with the graft's vectors as an ordinary table, which any transformers opens."""
    with errors_in_one_sentence(debug):
        check_certified([graft], "byte embedding")
        check_empty(save, "--save")
        opened = open_model(model, device, "", "", False, tokenizer)
        from regraft.jobs.graft_jobs import bake_embedding

        typer.echo(bake_embedding(opened, graft, save))
