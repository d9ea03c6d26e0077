"""What all commands share: common options, errors in one sentence, opening a model. Nothing heavy is imported
early."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from regraft.core.files import expanded
from regraft.core.signatures import Parameter, fields_of
from regraft.core.silence import silent
from regraft.jobs.checks import check_opening

if TYPE_CHECKING:
    from regraft.model.model import Model
    from regraft.model.weights import Weights
    from regraft.sweeps.shares import Helpers


def folder_option(*names: str, help: str) -> Any:
    """An option that names a folder, in which `~` is written out: a shell leaves it as it is behind
    `--out=`."""
    return typer.Option(*names, help=help, parser=expanded, metavar="PATH")


ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A folder, a hub id, or specimen:qwen3|tuned|gpt2|t5.")
]
DeviceOption = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda, or several (cuda:0,cuda:1; cuda:*).")
]
DtypeOption = Annotated[
    str, typer.Option(help="float32, float64, bfloat16 or float16; by default what suits the device.")
]
AttentionOption = Annotated[str, typer.Option(help="sdpa or eager; by default the model's own.")]
RemoteOption = Annotated[
    bool, typer.Option("--remote-code", help="Run modelling code that comes with the checkpoint.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
TokenizerOption = Annotated[
    str, typer.Option(help="Folder or hub id of a tokenizer; by default the model's own.")
]
TargetTokenizerOption = Annotated[
    str, typer.Option(help="Tokenizer of what an encoder-decoder writes, if another.")
]
StreamOption = Annotated[
    bool, typer.Option("--stream", help="Leave the blocks on disk and read each one when it runs.")
]
MemoryOption = Annotated[
    str,
    typer.Option(help="Most that the process may hold, for example 3GiB; a larger model is streamed."),
]
ClusterOption = Annotated[
    str, typer.Option(help="local, or the address of a Ray cluster whose machines share the sweeps.")
]
OutOption = Annotated[Path | None, folder_option(help="Folder to write the run to.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what the first sweep would run and hold, and stop there.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the run that --out holds.")]
PromptsFileOption = Annotated[
    str, typer.Option(help="Prompts in a file: one on each line, or a JSON list.", metavar="FILE")
]
TextOption = Annotated[
    str, typer.Option(help="Running text in a file, cut by tokens into prompts.", metavar="FILE")
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]


def own_device(device: str) -> str:
    """The device of this process, the first of a list: where a launcher has started several on one machine,
    `cuda` is a card for each."""
    rank, device = os.environ.get("LOCAL_RANK"), device.partition(",")[0].replace("cuda:*", "cuda:0")
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device


def open_matrices(model: str, device: str) -> Weights:
    """The weight matrices of a checkpoint, from its files alone; a wrong name is told before anything heavy
    is imported."""
    check_opening(model, device, config=False)
    from regraft.model.weights import open_weights

    return open_weights(model, own_device(device))


def open_model(
    model: str,
    device: str,
    dtype: str,
    attention: str,
    remote_code: bool,
    tokenizer: str,
    target_tokenizer: str = "",
    stream: bool = False,
    memory: str = "",
) -> Model:
    """Open a model as the common options say; what is wrong with them is told before anything heavy is
    imported."""
    check_opening(model, device, dtype, tokenizer, memory)
    with silent():  # what libraries say as they are imported is of this machine, not of the model
        from regraft.jobs.helping import devices_of, memory_of_each
        from regraft.model.load import load

    room = None if stream or memory else memory_of_each(devices_of(device))
    return load(
        model,
        tokenizer or None,
        target_tokenizer=target_tokenizer or None,
        device=own_device(device),
        dtype=dtype or None,
        attention=attention or None,
        remote_code=remote_code,
        stream=stream,
        memory=memory or room,
    )


@contextmanager
def helping(
    model: Model | Weights, device: str, cluster: str, opening: Mapping[str, Any]
) -> Iterator[Helpers | None]:
    """While inside, other devices or a cluster measure shares of sweeps, where that is asked for."""
    if not cluster and "," not in device and "*" not in device:
        yield None
        return
    from regraft.jobs.helping import devices_of, helpers_for
    from regraft.model.model import Model
    from regraft.sweeps.shares import helped_by

    if not isinstance(model, Model):
        raise ValueError("this command reads matrices from files: name one device, and no cluster")
    told = {name: opening[name] for name in ("dtype", "attention", "remote_code") if opening.get(name)}
    helpers = helpers_for(model, devices_of(device), cluster, told)
    try:
        with helped_by(helpers):
            yield helpers
    finally:
        if helpers is not None:
            helpers.close()


_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    **dict.fromkeys(("TextFile", "KeptFolder", "NewFolder", "ModelName"), str),
    "list[str]": list[str],
    "list[int]": list[int],
    "list[float]": list[float],
}


def option_of(parameter: Parameter) -> inspect.Parameter:
    """A Typer option for one parameter; its annotation must be one of a few plain ones."""
    text = parameter.annotation.removesuffix(" | None")
    optional = text != parameter.annotation
    if text.startswith("Literal["):
        choices = tuple(part.strip().strip("'\"") for part in text[len("Literal[") : -1].split(","))
        plain: Any = Literal[choices]
    else:
        plain = _TYPES[text]
    help_text = parameter.help[:1].upper() + parameter.help[1:]
    annotation = Annotated[plain | None if optional else plain, typer.Option(help=help_text)]
    return inspect.Parameter(
        parameter.name, inspect.Parameter.KEYWORD_ONLY, default=parameter.default, annotation=annotation
    )


def filling(**places: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the fields of dataclasses options of a command, which is given their values as a dictionary for
    each.

    The classes are read from their source, so that nothing heavy is imported before the command runs; a field
    without an explanation below it is no option.

    Args:
        places: for a parameter of the command, module and class: `plan="training.trainer:TrainingPlan"`.
    """
    fields = {name: fields_of(place) for name, place in places.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = inspect.signature(command).parameters
        parameters: list[inspect.Parameter] = []
        for name, parameter in own.items():
            if name in fields:
                parameters += [option_of(one) for one in fields[name]]
            else:
                parameters.append(
                    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
                )

        @functools.wraps(command)
        def filled(**given: Any) -> None:
            taken = {name: {one.name: given.pop(one.name) for one in some} for name, some in fields.items()}
            command(**given, **taken)

        del filled.__wrapped__
        filled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        filled.__annotations__ = {p.name: p.annotation for p in parameters}
        return filled

    return decorate
