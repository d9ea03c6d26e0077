"""The command line: `report`, `inspect`, and one command for each experiment, made from its parameters.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regraft.experiment import REFUSALS, Experiment, Parameter, experiments

if TYPE_CHECKING:
    from regraft.model.opened import Model
    from regraft.model.weights import Weights

app = typer.Typer(
    help="Take a transformer apart, see what every part does, replace one, and prove that it still works.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

graft = typer.Typer(help="Put another part in a part's place, trained against the model and measured.", no_args_is_help=True)
embedding = typer.Typer(help="A token embedding computed from each token's bytes.", no_args_is_help=True)
app.add_typer(graft, name="graft")
graft.add_typer(embedding, name="embedding")

ModelOption = Annotated[str, typer.Option("--model", "-m", help="A folder, a hub id, or specimen:qwen3|tuned|gpt2|t5.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute, for example cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16; by default what suits the device.")]
AttentionOption = Annotated[str, typer.Option(help="sdpa or eager; by default the model's own.")]
RemoteOption = Annotated[bool, typer.Option("--remote-code", help="Run modelling code that comes with the checkpoint.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
TokenizerOption = Annotated[str, typer.Option(help="Folder or hub id of a tokenizer; by default the model's own.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder to write the run to.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]


@contextmanager
def errors_in_one_sentence(debug: bool) -> Iterator[None]:
    """Wrong use ends with exit code 2, a failed run with 1, each in one sentence; `--debug` shows where."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except REFUSALS as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"regraft: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        from regraft.model.files import CheckpointError

        raise typer.Exit(2 if isinstance(error, ValueError) and not isinstance(error, CheckpointError) else 1) from None


def open_matrices(model: str, device: str) -> Weights:
    """The weight matrices of a checkpoint, from its files alone."""
    from regraft.model.weights import open_weights

    return open_weights(model, device)


def open_model(model: str, device: str, dtype: str, attention: str, remote_code: bool, tokenizer: str) -> Model:
    """Open a model as the common options say."""
    from regraft.model.load import load

    return load(
        model,
        tokenizer or None,
        device=device,
        dtype=dtype or None,
        attention=attention or None,
        remote_code=remote_code,
    )


@app.command()
def report(
    model: ModelOption = "specimen:qwen3",
    out: Annotated[Path, typer.Option(help="Folder to write report.html and the results to.")] = Path("report"),
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "",
    attention: AttentionOption = "",
    remote_code: RemoteOption = False,
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Run what suits the model and write one page that explains it."""
    with errors_in_one_sentence(debug):
        from regraft.commands import make_report

        options = {"device": device, "dtype": dtype, "attention": attention, "tokenizer": tokenizer, "seed": seed}
        options["remote_code"] = remote_code
        make_report(open_model(model, device, dtype, attention, remote_code, tokenizer), out, seed, options)


@app.command("inspect")
def inspect_model(
    source: Annotated[str, typer.Argument(metavar="[MODEL]", help="The model; or use --model.")] = "",
    model: ModelOption = "specimen:qwen3",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "",
    attention: AttentionOption = "",
    remote_code: RemoteOption = False,
    tokenizer: TokenizerOption = "",
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="From the files' headers alone: no model is built.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --weights-only: a folder for the anatomy as JSON and a drawing.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show a model's parts, shapes, parameters and bytes, its sites, and the self-check."""
    with errors_in_one_sentence(debug):
        from regraft.commands import show_anatomy, show_dissection

        if weights_only:
            show_dissection(source or model, out, as_json)
            return
        if out is not None:
            raise ValueError("--out draws what the headers tell: add --weights-only")
        show_anatomy(open_model(source or model, device, dtype, attention, remote_code, tokenizer), as_json)


@app.command("rebuild")
def rebuild_model(
    source: Annotated[str, typer.Argument(metavar="[MODEL]", help="The model; or use --model.")] = "",
    model: ModelOption = "specimen:qwen3",
    text: Annotated[list[str] | None, typer.Option(help="What both models read; write it again for several texts.")] = None,
    stage: Annotated[str, typer.Option(help="The last stage to compare, for example 0.scores.")] = "",
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="float64 tells rounding from error.")] = "float32",
    skeleton: Annotated[Path | None, typer.Option(help="Write a folder for a student's own implementation instead.")] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a model written anew from its files beside the official one, stage by stage, and name what parts."""
    with errors_in_one_sentence(debug):
        from regraft.commands import rebuild_model

        code = rebuild_model(source or model, text or [], stage, dtype, skeleton, out, as_json)
    raise typer.Exit(code)


GraftOption = Annotated[Path, typer.Option(help="Folder of a graft.")]


@embedding.command("fit")
def fit_embedding(
    model: ModelOption = "specimen:qwen3",
    text: Annotated[list[str] | None, typer.Option(help="File or folder to train on; again for several. None: almanac.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the run and the graft.")] = Path("byte-embedding"),
    group: Annotated[int, typer.Option(help="Bytes kept of each token.")] = 16,
    byte_width: Annotated[int, typer.Option(help="Width of a byte.")] = 48,
    blocks: Annotated[int, typer.Option(help="Transformer blocks over the bytes.")] = 1,
    neurons: Annotated[int, typer.Option(help="Neurons of the MLP.")] = 384,
    readout: Annotated[Literal["flatten", "pool"], typer.Option(help="Bytes side by side, or pooled by attention.")] = "flatten",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 128,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    warm: Annotated[int, typer.Option(help="Steps of regression on the table before.")] = 300,
    hidden: Annotated[float, typer.Option(help="Weight of the stream's error in the loss.")] = 1.0,
    kl: Annotated[float, typer.Option(help="Weight of the divergence of predictions in the loss.")] = 1.0,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Train an embedding that computes each token's vector from its bytes."""
    with errors_in_one_sentence(debug):
        from regraft.commands import with_bar
        from regraft.graft.byte_embedding import ByteConfig
        from regraft.graft.distill import Plan
        from regraft.graft.embedding_task import Weights
        from regraft.graft_commands import fit_embedding

        config = ByteConfig(group, byte_width, blocks, neurons=neurons, readout=readout)
        plan = Plan(steps=steps, batch=batch, rate=rate)
        opened = open_model(model, device, "", "", False, tokenizer)
        losses = Weights(hidden=hidden, kl=kl)
        typer.echo(with_bar(lambda: fit_embedding(opened, text or [], out, config, plan, losses, length, warm, seed)))


@embedding.command("eval")
def eval_embedding(
    graft: GraftOption = Path("byte-embedding/graft"),
    model: ModelOption = "specimen:qwen3",
    text: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a domain; again for several. None: almanac.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 128,
    windows: Annotated[int, typer.Option(help="Sequences read of each domain.")] = 64,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Measure a graft against the model that it came from, and write its certificate."""
    with errors_in_one_sentence(debug):
        from regraft.commands import with_bar
        from regraft.graft_commands import eval_embedding, sentences

        opened = open_model(model, device, "", "", False, tokenizer)
        for line in sentences(with_bar(lambda: eval_embedding(opened, graft, text or [], length, windows))):
            typer.echo(line)


@embedding.command("bake")
def bake_embedding(
    save: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    graft: GraftOption = Path("byte-embedding/graft"),
    model: ModelOption = "specimen:qwen3",
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = "",
    debug: DebugOption = False,
) -> None:
    """Write the model with the graft's vectors as an ordinary table, which any transformers opens."""
    with errors_in_one_sentence(debug):
        from regraft.graft_commands import bake_embedding

        typer.echo(bake_embedding(open_model(model, device, "", "", False, tokenizer), graft, save))


def command_for(experiment: Experiment) -> Callable[..., None]:
    """A command whose options are the experiment's parameters and the common ones."""

    opening = {"model": ModelOption, "device": DeviceOption}
    if experiment.needs == "model":
        opening |= {"dtype": DtypeOption, "attention": AttentionOption}
        opening |= {"remote_code": RemoteOption, "tokenizer": TokenizerOption}

    def command(**given: Any) -> None:
        common = {name: given.pop(name) for name in opening}
        out, seed, as_json, debug = (given.pop(name) for name in ("out", "seed", "as_json", "debug"))
        with errors_in_one_sentence(debug):
            from regraft.commands import run_experiment

            opened = open_model(**common) if experiment.needs == "model" else open_matrices(**common)
            run_experiment(experiment, opened, given, out, seed, as_json)

    own = [_option(parameter) for parameter in experiment.parameters]
    defaults = {"model": "specimen:qwen3", "device": "cpu", "remote_code": False}
    if experiment.needs == "weights":
        defaults["device"] = "auto"
    shared = [
        *((name, annotation, defaults.get(name, "")) for name, annotation in opening.items()),
        ("out", OutOption, None),
        ("seed", SeedOption, 0),
        ("as_json", JsonOption, False),
        ("debug", DebugOption, False),
    ]
    kind = inspect.Parameter.KEYWORD_ONLY
    common = [inspect.Parameter(name, kind, default=default, annotation=a) for name, a, default in shared]
    command.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *common]}
    command.__doc__ = experiment.summary
    return command


_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list[str]": list[str],
    "list[int]": list[int],
    "list[float]": list[float],
}


def _option(parameter: Parameter) -> inspect.Parameter:
    """A Typer option for one parameter of an experiment; its annotation must be one of a few plain ones."""
    text = parameter.annotation.removesuffix(" | None")
    optional = text != parameter.annotation
    if text.startswith("Literal["):
        choices = tuple(part.strip().strip("'\"") for part in text[len("Literal[") : -1].split(","))
        plain: Any = Literal[choices]
    else:
        plain = _TYPES[text]
    help_text = parameter.help[:1].upper() + parameter.help[1:]
    annotation = Annotated[plain | None if optional else plain, typer.Option(help=help_text)]
    return inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, default=parameter.default, annotation=annotation)


for _experiment in experiments().values():
    app.command(_experiment.name, help=_experiment.summary)(command_for(_experiment))


def spread_lists(words: list[str]) -> list[str]:
    """The command line with every list option written once for each value: `--targets a b` as `--targets a --targets b`."""
    experiment = experiments().get(words[0]) if words else None
    parameters = experiment.parameters if experiment else ()
    lists = {"--" + p.name.replace("_", "-") for p in parameters if p.annotation.startswith("list[")}
    options = {"-m", *(word for word in words if word.startswith("--"))}
    found: list[str] = []
    option, values = "", 0
    for word in words:
        if word in options:
            option, values = word, 0
        elif option in lists:
            values += 1
            if values > 1:
                found.append(option)
        found.append(word)
    return found


def main() -> None:
    """The entry point."""
    sys.exit(app(spread_lists(sys.argv[1:])))
