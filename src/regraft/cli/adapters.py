"""`regraft graft transcoder`: adapters that learn what the tuning of a model changed; heavy imports wait for
a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from regraft.cli.common import push_saved, settings_of
from regraft.cli.errors import errors_in_one_sentence
from regraft.cli.options import DebugOption, DeviceOption, SeedOption, filling, folder_option, open_model
from regraft.core.files import check_empty, expanded
from regraft.core.runs import store_settings
from regraft.data.exchanges import check_shares
from regraft.export.graft_description import read_about
from regraft.features.descriptions import Endpoint
from regraft.jobs.checks import check_domains, check_least, check_texts

transcoder = typer.Typer(
    help="The difference between two models, made of sparse features beside every MLP.", no_args_is_help=True
)
FOLDER = Path("transcoder")
KIND = "transcoder adapters"
BaseOption = Annotated[str, typer.Option(help="The model before it was tuned; its MLPs stay.")]
TargetOption = Annotated[str, typer.Option(help="The tuned model, which teaches.")]
GraftOption = Annotated[Path, folder_option(help="Folder of the adapters.")]
TextOption = Annotated[
    list[str] | None, typer.Option(help="File or folder to train on; again for several. None: worked sums.")
]
DomainOption = Annotated[
    list[str] | None, typer.Option(help="NAME=PATH of a domain; again for several. None: worked sums.")
]
LengthOption = Annotated[int, typer.Option(help="Tokens of a sequence.")]
PromptsOption = Annotated[bool, typer.Option(help="Count predictions of the questions' tokens, too.")]


@transcoder.command("fit")
@filling(plan="training.trainer:TrainingPlan", weights="training.tasks.transcoder_task:TranscoderLoss")
def fit(
    *,
    context: typer.Context,
    base: BaseOption = "specimen:qwen3",
    target: TargetOption = "specimen:tuned",
    backbone: Annotated[
        Literal["base", "target"], typer.Option(help="Whose attention, norms, embeddings and head.")
    ] = "target",
    features: Annotated[int, typer.Option(help="Features of every block.")] = 1024,
    text: TextOption = None,
    out: Annotated[Path, folder_option(help="Folder for the run and the adapters.")] = FOLDER,
    plan: dict[str, Any],
    weights: dict[str, Any],
    length: LengthOption = 256,
    prompts_count: PromptsOption = True,
    share: Annotated[
        list[str] | None,
        typer.Option(help="DOMAIN=SHARE of chat records; again for each. None: as they come."),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="Data set to train on instead: folder or hub id; rows of turns or text.")
    ] = "",
    rows: Annotated[int, typer.Option(help="Rows of it that are read.")] = 10_000,
    random_features: Annotated[
        bool, typer.Option("--random-features", help="Encoders stay as drawn; only decoders learn.")
    ] = False,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Train an adapter beside every MLP on what tuning changed."""
    with errors_in_one_sentence(debug):
        check_empty(out / "graft", "--out")
        check_least(1, features=features, steps=plan["steps"], batch=plan["batch"], rows=rows)
        check_least(0, **{name: value for name, value in weights.items() if name != "by_layer"})
        check_least(2, length=length)
        named, shares = check_texts(text or []), _shares(share or [])
        if text and dataset:
            raise ValueError("--text and --dataset are both given: choose one")
        if shares and not (text or dataset):
            raise ValueError("--share is for chat records: name some with --text or --dataset")
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.transcoder_jobs import fit_transcoder
        from regraft.training.tasks.transcoder_task import TranscoderLoss
        from regraft.training.trainer import TrainingPlan

        options: dict[str, Any] = {"weights": TranscoderLoss(**weights), "plan": TrainingPlan(**plan)}
        models = [open_model(name, device, "", "", False, "") for name in (base, target)]
        options |= {"backbone": backbone, "features": features, "length": length}
        options |= {"prompts_count": prompts_count, "seed": seed, "shares": shares}
        options |= {"random_features": random_features, "dataset": dataset, "rows": rows}
        told = with_bar(lambda: fit_transcoder(models[0], models[1], out, named, **options))
        if told:
            typer.echo(told)
            store_settings(settings_of(context, "graft transcoder fit"), out)


@transcoder.command("pareto")
@filling(plan="training.trainer:TrainingPlan")
def pareto(
    *,
    context: typer.Context,
    base: BaseOption = "specimen:qwen3",
    target: TargetOption = "specimen:tuned",
    l1: Annotated[
        list[float] | None, typer.Option(help="A weight of the features' sizes; again for each. None: five.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="Fit beside: base, next-token or random; again for several.")
    ] = None,
    control_l1: Annotated[float, typer.Option(help="The weight of the sizes for these.")] = 0.001,
    features: Annotated[int, typer.Option(help="Features of every block.")] = 1024,
    text: TextOption = None,
    held: DomainOption = None,
    out: Annotated[Path, folder_option(help="Folder of all fits.")] = FOLDER / "pareto",
    plan: dict[str, Any],
    length: LengthOption = 256,
    solve: Annotated[int, typer.Option(help="Held-out worked sums that every model solves.")] = 0,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Fit and measure several weights of sparsity: one table, and divergence over active features."""
    with errors_in_one_sentence(debug):
        check_least(1, features=features, steps=plan["steps"], batch=plan["batch"])
        check_least(0, solve=solve, control_l1=control_l1, l1=min(l1 or [0.0]))
        check_least(2, length=length)
        controls = _controls(control or [])
        named = check_texts(text or [])
        check_domains(held or [])
        models = [open_model(name, device, "", "", False, "") for name in (base, target)]
        from regraft.cli.console import show_rows
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.pareto_job import PUBLISHED_L1, pareto_table, pareto_transcoder
        from regraft.training.trainer import TrainingPlan

        options: dict[str, Any] = {"l1": l1 or PUBLISHED_L1, "controls": controls, "held": held or []}
        options |= {"plan": TrainingPlan(**plan), "features": features, "length": length}
        options |= {"solve": solve, "seed": seed, "control_l1": control_l1}
        data = with_bar(lambda: pareto_transcoder(models[0], models[1], out, named, **options))
        head, rows = pareto_table(data)
        show_rows("adapters of several weights", head, rows, range(2, len(head)))
        typer.echo(f"open {out / 'pareto.html'} in a browser")
        store_settings(settings_of(context, "graft transcoder pareto"), out)


@transcoder.command("eval")
def evaluate(
    *,
    context: typer.Context,
    graft: GraftOption = FOLDER / "graft",
    base: BaseOption = "",
    target: TargetOption = "",
    text: DomainOption = None,
    length: LengthOption = 256,
    windows: Annotated[int, typer.Option(help="Sequences read of each domain.")] = 200,
    prompts_count: PromptsOption = True,
    solve: Annotated[
        int, typer.Option(help="Held-out problems that every model solves. 0: none, or all of --problems.")
    ] = 0,
    problems: Annotated[
        str, typer.Option(help="JSONL file with question and answer on each line. None: worked sums.")
    ] = "",
    new_tokens: Annotated[int, typer.Option(help="Tokens written behind a problem at most.")] = 96,
    device: DeviceOption = "cpu",
    debug: DebugOption = False,
) -> None:
    """Measure what adapters recover of the target's gain, and write their certificate."""
    with errors_in_one_sentence(debug):
        _check_adapters(graft)
        check_domains(text or [])
        check_least(1, windows=windows, new_tokens=new_tokens)
        check_least(0, solve=solve)
        if problems and not expanded(problems).is_file():
            raise ValueError(f"there is no file {problems}: name one with a question and an answer on a line")
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.transcoder_jobs import evaluate_transcoder, transcoder_sentences

        options: dict[str, Any] = {"base": base, "target": target, "length": length, "most": windows}
        options |= {"prompts_count": prompts_count, "device": device, "solve": solve}
        options |= {"problems": problems, "new_tokens": new_tokens}
        data = with_bar(lambda: evaluate_transcoder(graft, text or [], **options))
        for line in transcoder_sentences(data):
            typer.echo(line)


@transcoder.command("export")
def export(
    *,
    context: typer.Context,
    graft: GraftOption = FOLDER / "graft",
    save: Annotated[Path, folder_option(help="Folder to write the model to.")],
    remote_code: Annotated[
        bool, typer.Option("--remote-code", help="Carry the code along, to open the folder without regraft.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Write the model with the adapters in it as a Hugging Face folder; measure them first if need be."""
    with errors_in_one_sentence(debug):
        _check_adapters(graft)
        check_empty(save, "--save")
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.transcoder_jobs import export_transcoder

        typer.echo(with_bar(lambda: export_transcoder(graft, save, remote_code)))
        push_saved(save)


def _controls(given: list[str]) -> list[str]:
    """Controls by name.

    Raises:
        ValueError: one is not known.
    """
    known = ("base", "next-token", "random")
    wrong = next((one for one in given if one not in known), None)
    if wrong is not None:
        raise ValueError(f"--control {wrong} is not known: choose of {', '.join(known)}")
    return given


def _shares(given: list[str]) -> dict[str, float]:
    """Shares by domain.

    Raises:
        ValueError: one is no DOMAIN=SHARE.
    """
    found = {}
    for one in given:
        name, _, number = one.partition("=")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise ValueError(
                f"--share {one} is no share: write DOMAIN=SHARE, for example math=0.7"
            ) from error
    check_shares(found)
    return found


def _check_adapters(folder: Path) -> None:
    """Make sure that a folder holds adapters.

    Raises:
        ValueError: it holds another graft.
    """
    found = read_about(folder)["kind"]
    if found != KIND:
        raise ValueError(f"{folder} holds a {found}, not {KIND}")


@transcoder.command("features")
def features(
    *,
    context: typer.Context,
    graft: GraftOption = FOLDER / "graft",
    out: Annotated[Path, folder_option(help="New folder for the page.")] = FOLDER / "features",
    text: DomainOption = None,
    length: LengthOption = 256,
    sequences: Annotated[int, typer.Option(help="Sequences read of each domain.")] = 500,
    kept: Annotated[int, typer.Option(help="Activations of each feature that are kept, of each kind.")] = 20,
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Also write the files of circuit-tracer and SAELens.")
    ] = False,
    endpoint: Annotated[
        str,
        typer.Option(
            help="Address of a language model that describes features (key: OPENAI_API_KEY). None: off."
        ),
    ] = "",
    describer: Annotated[str, typer.Option(help="Name of that model at the endpoint.")] = "",
    described: Annotated[int, typer.Option(help="Features of each block that it describes.")] = 20,
    of: Annotated[
        Literal["adapters", "random", "neurons"],
        typer.Option(
            help="Whose features; random directions and the MLPs' neurons are what adapters are held to."
        ),
    ] = "adapters",
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    debug: DebugOption = False,
) -> None:
    """Tell of every feature where it is active and what it pushes: a page to browse and search."""
    with errors_in_one_sentence(debug):
        _check_adapters(graft)
        check_empty(out, "--out")
        check_domains(text or [])
        check_least(1, sequences=sequences, kept=kept, described=described)
        if bool(endpoint) != bool(describer):
            raise ValueError("--endpoint and --describer go together: where, and which model there")
        asked = Endpoint(endpoint, describer) if endpoint else None
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.feature_jobs import PAGE, describe_features, feature_sentences

        options: dict[str, Any] = {"most": sequences, "length": length, "k": kept, "seed": seed}
        options |= {
            "device": device,
            "neighbours": neighbours,
            "described": described,
            "endpoint": asked,
            "of": of,
        }
        data = with_bar(lambda: describe_features(graft, out, text or [], **options))
        typer.echo(feature_sentences(data)[0])
        if endpoint:
            typer.echo(str(data.attrs["descriptions"]))
        typer.echo(f"open {out / PAGE / 'index.html'} in a browser")


@transcoder.command("attribute")
def attribute(
    *,
    context: typer.Context,
    prompt: Annotated[str, typer.Option(help="Text whose next token is explained.")],
    graft: GraftOption = FOLDER / "graft",
    out: Annotated[Path, folder_option(help="New folder for the graph.")] = FOLDER / "graph",
    nodes: Annotated[float, typer.Option(help="Share of all influence that kept nodes make up.")] = 0.8,
    edges: Annotated[float, typer.Option(help="Share of it that kept edges make up.")] = 0.98,
    most: Annotated[int, typer.Option(help="Features at tokens that are looked at.")] = 512,
    device: DeviceOption = "cpu",
    debug: DebugOption = False,
) -> None:
    """Explain one prediction by a graph of features, tokens and logits."""
    with errors_in_one_sentence(debug):
        _check_adapters(graft)
        check_empty(out, "--out")
        check_least(1, most=most)
        for name, share in (("nodes", nodes), ("edges", edges)):
            if not 0 < share <= 1:
                raise ValueError(f"--{name} is {share}: write a share above 0 and at most 1")
        from regraft.cli.progress_bar import with_bar
        from regraft.jobs.feature_jobs import attribute_prompt, graph_sentences

        options: dict[str, Any] = {"nodes": nodes, "edges": edges, "most": most, "device": device}
        graph = with_bar(lambda: attribute_prompt(graft, prompt, out, **options))
        for line in graph_sentences(graph):
            typer.echo(line)
        typer.echo(f"open {out / 'graph.html'} in a browser")
