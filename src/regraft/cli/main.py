"""The command line: `report`, `inspect`, and one command for each experiment, made from its parameters.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from regraft.checkpoint.locate import located
from regraft.cli.common import (
    Common,
    applied,
    common,
    defaults_of,
    hoisted,
    is_written,
    push_saved,
    settings_of,
)
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.graft import graft
from regraft.cli.lens_command import tuned_lens
from regraft.cli.options import (
    AttentionOption,
    ClusterOption,
    DebugOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    OutOption,
    PromptsFileOption,
    RemoteOption,
    SeedOption,
    StreamOption,
    TargetTokenizerOption,
    TextOption,
    TokenizerOption,
    folder_option,
    helping,
    open_matrices,
    open_model,
    option_of,
)
from regraft.cli.pack import pack, unpack
from regraft.cli.report import report
from regraft.cli.reproduce import reproduce
from regraft.cli.run_commands import compare, runs, show
from regraft.cli.studio_command import studio
from regraft.cli.tokenizer import tokenizer
from regraft.core.files import check_empty
from regraft.core.registry import Experiment, experiments
from regraft.export.hub_upload import check_push
from regraft.jobs.checks import check_devices, check_model, check_parameters, check_prompts, check_run

app = typer.Typer(
    help="Take a transformer apart, see what every part does, replace one, and prove that it still works.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


PUSH = "Where --save saves a model, send it there afterwards: OWNER/NAME on the hub."


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"regraft {version('regraft')}")
        raise typer.Exit()


@app.callback()
def _whole(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which version this is.", callback=_tell_version, is_eager=True),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="The result and errors alone: no bars.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="What goes on, line by line, for bars.")] = False,
    log_file: Annotated[str, typer.Option(help="The same to a file, errors too.", metavar="FILE")] = "",
    config: Annotated[
        str,
        typer.Option(help="Options of the command from a YAML file, as run.yaml of a run.", metavar="FILE"),
    ] = "",
    config_for: Annotated[str, typer.Option(hidden=True)] = "",
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", help="Keep no completions. (They lie in $REGRAFT_CACHE or ~/.cache/regraft.)"
        ),
    ] = False,
    push_to_hub: Annotated[str, typer.Option(help=PUSH, metavar="OWNER/NAME")] = "",
) -> None:
    """What stands in front of every command."""
    with errors_in_one_sentence(False):
        if quiet and verbose:
            raise ValueError("--quiet and --verbose contradict each other: choose one")
        if config:
            context.default_map = defaults_of(context, config, config_for)
        if push_to_hub:
            check_push(push_to_hub)
        said = Common(quiet, verbose, push_to_hub)
        context.with_resource(applied(said, log_file, no_cache))


app.add_typer(graft, name="graft")
app.add_typer(tokenizer, name="tokenizer")
app.command("pack")(pack)
app.command("unpack")(unpack)
app.command("tuned-lens")(tuned_lens)
app.command("reproduce")(reproduce)
app.command("report")(report)
app.command("runs")(runs)
app.command("show")(show)
app.command("compare")(compare)
app.command("studio")(studio)


@app.command("inspect")
def inspect_model(
    source: Annotated[str, typer.Argument(metavar="[MODEL]", help="The model; or use --model.")] = "",
    model: ModelOption = "specimen:qwen3",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "",
    attention: AttentionOption = "",
    remote_code: RemoteOption = False,
    tokenizer: TokenizerOption = "",
    stream: StreamOption = False,
    memory: MemoryOption = "",
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="From the files' headers alone: no model is built.")
    ] = False,
    pickle_shapes: Annotated[
        bool,
        typer.Option(
            "--pickle-shapes",
            help="With --weights-only: tell the tensors of pickles too, executing nothing.",
        ),
    ] = False,
    out: Annotated[
        Path | None, folder_option(help="With --weights-only: folder for the anatomy as JSON and a drawing.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show a model's parts, shapes, parameters and bytes, its sites, and the self-check."""
    with errors_in_one_sentence(debug):
        if weights_only:
            _dissect(source or model, out, as_json, pickle_shapes)
            return
        if pickle_shapes:
            raise ValueError("--pickle-shapes tells what files hold: add --weights-only")
        if out is not None:
            raise ValueError("--out draws what the headers tell: add --weights-only")
        opened = open_model(
            source or model, device, dtype, attention, remote_code, tokenizer, stream=stream, memory=memory
        )
        from regraft.cli.console import show_anatomy

        show_anatomy(opened, as_json)


def _dissect(source: str, out: Path | None, as_json: bool, pickle_shapes: bool) -> None:
    located(source)
    if out is not None:
        check_empty(out, "--out")
    from regraft.cli.console import show_dissection

    show_dissection(source, out, as_json, pickle_shapes)


@app.command("rebuild")
def rebuild_model(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="[MODEL]", help="The model; or use --model.")] = "",
    model: ModelOption = "specimen:qwen3",
    text: Annotated[
        list[str] | None, typer.Option(help="What both models read; write it again for several texts.")
    ] = None,
    stage: Annotated[str, typer.Option(help="The last stage to compare, for example 0.scores.")] = "",
    dtype: Annotated[
        Literal["float32", "float64"], typer.Option(help="float64 tells rounding from error.")
    ] = "float32",
    carry: Annotated[bool, typer.Option("--carry", help="Go on with official tensors, marked.")] = False,
    skeleton: Annotated[
        Path | None, folder_option(help="Write a folder for a student's own implementation instead.")
    ] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a model written anew from its files beside the official one, stage by stage, and name what
    parts."""
    with errors_in_one_sentence(debug):
        check_model(source or model)
        if skeleton is not None:
            check_empty(skeleton, "--skeleton")
        else:
            check_run(out, "rebuild")
        from regraft.cli.console import rebuild_model

        settings = settings_of(context, "rebuild")
        code = rebuild_model(
            source or model, text or [], stage, dtype, carry, skeleton, out, as_json, settings
        )
    raise typer.Exit(code)


def command_for(experiment: Experiment) -> Callable[..., None]:
    """A command whose options are the experiment's parameters and the common ones."""

    opening = {"model": ModelOption, "device": DeviceOption}
    if experiment.needs == "model":
        opening |= {"dtype": DtypeOption, "attention": AttentionOption}
        opening |= {
            "remote_code": RemoteOption,
            "tokenizer": TokenizerOption,
            "target_tokenizer": TargetTokenizerOption,
            "stream": StreamOption,
            "memory": MemoryOption,
            "cluster": ClusterOption,
        }

    reads = any(parameter.name == "prompts" for parameter in experiment.parameters)

    def command(context: typer.Context, **given: Any) -> None:
        how_opened = {name: given.pop(name) for name in opening}
        out, seed, as_json, debug = (given.pop(name) for name in ("out", "seed", "as_json", "debug"))
        force, dry_run = given.pop("force"), given.pop("dry_run")
        file, text = (given.pop(name) for name in ("prompts_file", "text")) if reads else ("", "")
        with errors_in_one_sentence(debug):
            check_parameters(experiment, given, out, force)
            if common().push_to and not given.get("save"):
                raise ValueError("--push-to-hub sends a saved model: name its folder with --save")
            check_prompts(given.get("prompts"), file, text)
            cluster, device = how_opened.pop("cluster", ""), how_opened["device"]
            check_devices(device)
            opened = open_model(**how_opened) if experiment.needs == "model" else open_matrices(**how_opened)
            from regraft.cli.console import read_given, show_experiment, show_plan

            if file or text or given.get("prompts"):
                count, asked = given.get("count") or 0, is_written(context, "count")
                given["prompts"] = read_given(
                    cast(Any, opened), given.get("prompts"), file, text, count, asked
                )
            settings = settings_of(context, experiment.name)
            if dry_run:
                show_plan(experiment, opened, given, seed)
                return
            with helping(opened, device, cluster, how_opened):
                show_experiment(experiment, opened, given, out, seed, as_json, settings, force)
            push_saved(str(given.get("save") or ""))

    own = [option_of(parameter) for parameter in experiment.parameters]
    defaults = {"model": "specimen:qwen3", "device": "cpu", "remote_code": False, "stream": False}
    if experiment.needs == "weights":
        defaults["device"] = "auto"
    shared = [
        *([("prompts_file", PromptsFileOption, ""), ("text", TextOption, "")] if reads else []),
        *((name, annotation, defaults.get(name, "")) for name, annotation in opening.items()),
        ("out", OutOption, None),
        ("force", ForceOption, False),
        ("dry_run", DryRunOption, False),
        ("seed", SeedOption, 0),
        ("as_json", JsonOption, False),
        ("debug", DebugOption, False),
    ]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=default, annotation=a) for name, a, default in shared]
    context = inspect.Parameter("context", kind, annotation=typer.Context)
    command.__signature__ = inspect.Signature([context, *own, *added])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [context, *own, *added]}
    command.__doc__ = experiment.summary
    return command


for _experiment in experiments().values():
    app.command(_experiment.name, help=_experiment.summary)(command_for(_experiment))


def spread_lists(words: list[str]) -> list[str]:
    """The command line with every list option written once for each value: `--targets a b` as `--targets a
    --targets b`."""
    experiment = experiments().get(words[0]) if words else None
    parameters = experiment.parameters if experiment else ()
    lists = {"--" + p.name.replace("_", "-") for p in parameters if p.annotation.startswith("list[")}
    lists |= {"--prompts", "--from"} if words[:1] == ["report"] else set()
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


def prepared(words: list[str]) -> list[str]:
    """The command line as click takes it: common options in front, every value of a list behind its
    option."""
    found = hoisted(words)
    if any(word.startswith("--push-to-hub") for word in found):
        _check_saves(found)
    at = next((i for i, word in enumerate(found) if word == "report" or word in experiments()), None)
    return found if at is None else [*found[:at], *spread_lists(found[at:])]


def _check_saves(words: list[str]) -> None:
    """Make sure that a command saves a model, where one is to be sent somewhere.

    Raises:
        ValueError: it does not.
    """
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    if "save" not in [parameter.name for parameter in command.params]:
        raise ValueError(f"--push-to-hub sends a saved model, and `regraft {command.name}` saves none")


def main() -> None:
    """The entry point."""
    try:
        with errors_in_one_sentence("--debug" in sys.argv):
            words = prepared(sys.argv[1:])
    except typer.Exit as end:
        sys.exit(end.exit_code)
    sys.exit(app(words))
