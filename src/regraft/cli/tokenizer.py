"""The command line of the tokenizers: `regraft tokenizer train | compare | transplant`; heavy imports wait
for a command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regraft.checkpoint.locate import located
from regraft.cli.common import push_saved
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    SeedOption,
    filling,
    folder_option,
    open_model,
)
from regraft.cli.origin_text import explained_lines
from regraft.core.files import check_empty, check_place, still_told
from regraft.jobs.checks import check_beside, check_domains, check_model, check_texts

if TYPE_CHECKING:
    import xarray as xr

    from regraft.jobs.transplant_sources import Sources
    from regraft.model.model import Model
    from regraft.tokenizers.init_methods import InitSettings

tokenizer = typer.Typer(
    help="Train tokenizers, measure them in bytes, transplant them into models.", no_args_is_help=True
)

TextsOption = Annotated[
    list[str] | None, typer.Option("--text", help="NAME=PATH of a domain; again for several. None: almanac.")
]
EachOption = Annotated[str, typer.Option(help="Folder whose every text file is a domain of its own.")]
PiecesOption = Annotated[int, typer.Option(help="Pieces of about 800 characters drawn from each domain.")]

NewOption = Annotated[
    str,
    typer.Option("--tokenizer", help="Folder, hub id or specimen whose tokenizer the model is to get."),
]
EncoderOption = Annotated[
    str,
    typer.Option(help="Sentence encoder, a folder or hub id; `none`: the model's own rows take its place."),
]
CacheOption = Annotated[Path, folder_option(help="Folder where the encoder's vectors are kept.")]
DonorOption = Annotated[str, typer.Option(help="For pursuit: the model that the new tokenizer comes from.")]
MultipleOption = Annotated[
    int, typer.Option(help="Pad the tables to a multiple; 0: as the old table is padded.")
]
LearnOption = Annotated[
    list[str] | None, typer.Option(help="Text for align, focus and healing; again for several.")
]
ExplainOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TOKEN",
        help=(
            "Say what this new token's row would be made of, and write nothing: its text, its name in the"
            " vocabulary, or # and its id; again for several."
        ),
    ),
]


@tokenizer.command("train")
@filling(recipe="tokenizers.training:Recipe")
def train(
    *,
    text: Annotated[
        list[str] | None, typer.Option(help="File, JSONL or folder to train on; again for several.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:CONFIG]",
            help="Data set with a column `text`, a hub id or a folder, read as a stream.",
        ),
    ] = None,
    recipe: dict[str, Any],
    lengths: Annotated[
        str,
        typer.Option(
            help=(
                "Chunk lengths: gaussian:MEAN:DEVIATION, probabilities of 1, 2, ... between commas, or a YAML"
                " file."
            )
        ),
    ] = "gaussian:200:50",
    like: Annotated[
        str, typer.Option(help="Tokenizer whose special tokens and chat template are carried over.")
    ] = "",
    out: Annotated[Path, folder_option(help="Folder to write the tokenizer to.")] = Path("tokenizer"),
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Train a byte-level BPE whose tokens may hold several words."""
    with errors_in_one_sentence(debug):
        check_empty(out, "--out")
        text = check_texts(text or [])
        if like:
            located(like)
        from regraft.tokenizers.text_chunks import read_lengths

        drawn = read_lengths(lengths)
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.tokenizer_jobs import train_tokenizer
        from regraft.tokenizers.training import Recipe

        trained = Recipe(**recipe, lengths=drawn, seed=seed)
        typer.echo(with_bar(lambda: train_tokenizer(out, text, dataset or [], trained, like=like)))


@tokenizer.command("compare")
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="TOKENIZER...", help="Folders, hub ids or specimens.")
    ],
    text: TextsOption = None,
    each: EachOption = "",
    pieces: PiecesOption = 200,
    bits: Annotated[
        bool, typer.Option("--bits", help="The folders hold models: measure bits per byte, too.")
    ] = False,
    out: Annotated[Path, folder_option(help="Folder for the page and the data.")] = Path("tokenizers"),
    debug: DebugOption = False,
) -> None:
    """Compare tokenizers on the same text."""
    with errors_in_one_sentence(debug):
        check_empty(out, "--out")
        for name in names:
            (check_model if bits else located)(name)
        check_domains(text or [], each)
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.tokenizer_jobs import compare_tokenizers, comparison_rows

        def tell(data: xr.Dataset) -> None:
            for line in comparison_rows(data):
                typer.echo(line)

        with still_told(tell):
            tell(with_bar(lambda: compare_tokenizers(names, out, text or [], each, most=pieces, bits=bits)))
        typer.echo(f"written to {out / 'tokenizers.html'}")


@tokenizer.command("transplant")
@filling(settings="tokenizers.init_methods:InitSettings")
def transplant(
    *,
    new: NewOption,
    model: ModelOption = "specimen:qwen3",
    settings: dict[str, Any],
    encoder: EncoderOption = "sentence-transformers/all-MiniLM-L6-v2",
    cache: CacheOption = Path("token-vectors"),
    donor: DonorOption = "",
    multiple: MultipleOption = 0,
    learn: LearnOption = None,
    heal: Annotated[int, typer.Option(help="Steps of a short training of the new rows alone.")] = 0,
    explain: ExplainOption = None,
    controls: Annotated[
        bool, typer.Option(help="Measure rows drawn at random, too: what the method has to beat.")
    ] = True,
    text: TextsOption = None,
    pieces: PiecesOption = 100,
    save: Annotated[Path, folder_option(help="Folder to write the model to.")] = Path("transplanted"),
    dtype: DtypeOption = "",
    old_tokenizer: Annotated[
        str, typer.Option(help="The model's own tokenizer, where its folder has none.")
    ] = "",
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Give a model another tokenizer and measure what it costs, in bits per byte."""
    with errors_in_one_sentence(debug):
        method = settings["method"]
        uses = encoder if method in ("hybrid", "local") or (method == "pursuit" and not donor) else ""
        if not explain:
            check_beside(model, save, "--save")
        check_place(cache, "--cache")
        learn = check_texts(learn or [])
        check_domains(text or [])
        for name in (new, donor, uses if uses != "none" else ""):
            if name:
                located(name)
        opened = open_model(model, device, dtype, "", False, old_tokenizer)
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.transplant_job import transplant_rows, transplant_tokenizer
        from regraft.jobs.transplant_sources import Sources
        from regraft.tokenizers.init_methods import InitSettings

        chosen = InitSettings(**settings)
        given = {
            "--dtype": dtype,
            "--old-tokenizer": old_tokenizer,
            "--device": "" if device == "cpu" else device,
        }
        opening = tuple(word for pair in given.items() if pair[1] for word in pair)
        reads = "" if encoder == "none" else uses
        sources = Sources(tuple(learn), tuple(text or ()), pieces, reads, cache, donor, opening, controls)
        if explain:
            print_origins(opened, new, explain, chosen, sources)
            return

        def tell(data: xr.Dataset) -> None:
            for line in transplant_rows(data):
                typer.echo(line)

        with still_told(tell):
            data, sentence = with_bar(
                lambda: transplant_tokenizer(
                    opened, new, save, chosen, sources, multiple=multiple, heal=heal, seed=seed
                )
            )
        tell(data)
        typer.echo(sentence)
        push_saved(save)


def print_origins(
    opened: Model, new: str, tokens: list[str], settings: InitSettings, sources: Sources
) -> None:
    """Print what the rows of some new tokens would be made of."""
    from regraft.cli.progress_bar import with_bar
    from regraft.jobs.transplant_sources import explain_token

    for token in tokens:
        for line in explained_lines(with_bar(partial(explain_token, opened, new, token, settings, sources))):
            typer.echo(line)
