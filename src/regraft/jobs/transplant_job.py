"""What `regraft tokenizer transplant` does once its options are read."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr

from regraft.core.files import expanded, keeping
from regraft.core.strict_json import json_text
from regraft.data.windows import windows_over
from regraft.jobs.tokenizer_jobs import domain_pieces
from regraft.jobs.transplant_sources import Sources, check_donor, opened_case, told_of
from regraft.model.model import Model
from regraft.reporting.page import page
from regraft.tokenizers.comparison import digest
from regraft.tokenizers.control_rows import CONTROLS
from regraft.tokenizers.healing import HealTask, check_healing
from regraft.tokenizers.init_methods import InitSettings, TransplantCase
from regraft.tokenizers.row_origins import frequent_origins, origin_lines
from regraft.tokenizers.row_view import row_view
from regraft.tokenizers.transplant_controls import control_quantities
from regraft.tokenizers.transplantation import Transplant, measured, scores_after, transplant
from regraft.tokenizers.transplanted_folder import check_media, check_start, check_target, write_model
from regraft.training.trainer import TrainingPlan, train

ROWS = "new_rows.jsonl"
"""The file beside a written model that says what each row was made of."""
LENGTH = 128
"""Tokens of a sequence that healing reads."""


def transplant_tokenizer(
    model: Model,
    tokenizer: str,
    target: Path | str,
    settings: InitSettings | None = None,
    sources: Sources | None = None,
    *,
    multiple: int = 0,
    heal: int = 0,
    seed: int = 0,
) -> tuple[xr.Dataset, str]:
    r"""Give a model another tokenizer: estimate rows, heal them, measure, write; the certificate and what to
    say.

    Args:
        model: an opened model.
        tokenizer: folder, hub id or specimen whose tokenizer the model is to get.
        target: the folder to write the model to.
        settings: how rows of new tokens are estimated.
        sources: what is read besides the model.
        multiple: pad the tables to a multiple of it; 0: as the old table is padded.
        heal: steps of a short training of the new rows alone.
        seed: of everything drawn at random.

    Returns:
        The certificate, and what to say of it.

    Raises:
        ValueError: the model cannot have this tokenizer, or what was asked for means nothing.
        RunFolderError: the target is not empty.

    Examples:
        >>> from regraft.specimens import almanac
        >>> _ = pathlib.Path("books.txt").write_text("\n".join(almanac.corpus(20_000, 7)))
        >>> words = regraft.Recipe(600, "superword")
        >>> made = regraft.train_tokenizer("new-words", ["books.txt"], recipe=words)
        >>> sources = regraft.Sources(encoder="none", pieces=2, controls=False)
        >>> pieces = regraft.InitSettings("retok")
        >>> data, said = regraft.transplant_tokenizer(model, "new-words", "planted", pieces, sources)
        >>> dict(data.bits_per_byte.sizes), data.bits_per_byte.attrs["units"]
        ({'state': 2, 'domain': 1}, 'bits per byte of text')
    """
    settings, sources, target = settings or InitSettings(), sources or Sources(), expanded(target)
    began = time.perf_counter()
    check_target(model, target)
    check_asked(model, settings, sources, multiple, heal, seed)
    domains = domain_pieces(sources.domains, "", sources.pieces)
    case = opened_case(model, tokenizer, sources)
    check_start(model, case.matching)
    check_media(model, case.matching)
    if heal:
        check_enough(case)
    done = transplant(model, case, settings, multiple, seed)
    data = measured(done, domains, settings)
    if sources.controls:
        data = data.assign(control_quantities(model, case, settings, domains, multiple, seed))
        data = data.assign_coords(control=list(CONTROLS)) if "control" in data.dims else data
    data = data.assign(frequent_origins(done, domains))
    data.attrs |= told_of(case, sources)
    command = _command(model, tokenizer, options_as_words(settings, sources, multiple, heal, seed), target)
    data.attrs["seconds"] = time.perf_counter() - began
    if not heal:
        data = data.assign(row_view(done))
        return data, written(done, data, command, target)
    task = HealTask(done)
    plan = TrainingPlan(
        steps=heal, batch=8, rate=task.rate, warmup=min(20, heal), save_every=max(1, min(200, heal // 10))
    )
    run = healing_folder(done, data, plan, seed, target)
    data = healed(task, list(case.texts), domains, settings, data, plan, run, seed)
    data = data.assign(row_view(done))
    data.attrs["seconds"] = time.perf_counter() - began
    sentence = written(done, data, command, target)
    shutil.rmtree(run)
    return data, sentence


def _command(model: Model, tokenizer: str, options: Sequence[str], target: Path) -> str:
    """The command that makes the same transplant again."""
    named = ["--model", model.source or model.name, "--tokenizer", tokenizer]
    return shlex.join(["regraft", "tokenizer", "transplant", *named, *options, "--save", str(target)])


def written(done: Transplant, data: xr.Dataset, command: str, target: Path) -> str:
    """Write the model with its certificate as a page and a list of its rows; what was done, in a sentence or
    two."""
    beside = {
        "certificate.html": page(done.model, [data], [command], float(data.attrs["seconds"])),
        ROWS: "".join(f"{line}\n" for line in origin_lines(done)),
    }
    with keeping(data):
        return f"{done.sentence}. {write_model(done, data, target, beside)}"


def check_asked(
    model: Model, settings: InitSettings, sources: Sources, multiple: int, heal: int, seed: int
) -> None:
    """Refuse before any work what would be refused behind it.

    Raises:
        ValueError: a number is negative, a donor is of no use, or the model cannot be healed.
    """
    if min(heal, multiple, seed) < 0:
        raise ValueError("--heal, --multiple and --seed are at least 0")
    check_donor(settings, sources)
    if heal:
        check_healing(model)


def check_enough(case: TransplantCase) -> None:
    """Make sure that there are rows to heal and a sequence of text to heal them with.

    Raises:
        ValueError: there are none, or too little text.
    """
    if not len(case.matching.missing):
        raise ValueError("no row is new: there is nothing to heal, so leave --heal out")
    tokens = sum(map(len, case.new.encode_texts(list(case.texts[:LENGTH]))))
    if tokens < LENGTH:
        raise ValueError(
            f"the text to learn from has {tokens:,} tokens, healing reads {LENGTH} at a time: give more with"
            " --learn"
        )


def healing_folder(done: Transplant, data: xr.Dataset, plan: TrainingPlan, seed: int, target: Path) -> Path:
    """Where a healing run is kept until the model is written: one for everything that the run depends on."""
    names = ("weights_sha256", "tokenizer_sha256", "settings", "encoder", "donor", "learnt_sha256")
    made = [repr(plan), seed, done.tables.rows, digest(done.old), str(done.model.dtype)]
    origin = json.dumps([*(str(data.attrs[name]) for name in names), *made])
    return target.with_name(f"{target.name}-healing-{hashlib.sha256(origin.encode()).hexdigest()[:12]}")


def healed(
    task: HealTask,
    texts: list[str],
    domains: dict[str, Any],
    settings: InitSettings,
    data: xr.Dataset,
    plan: TrainingPlan,
    run: Path,
    seed: int,
) -> xr.Dataset:
    """Train the new rows, keep them, and measure again; the certificate then has both, and the loss step by
    step."""
    done = task.done
    text = windows_over(done.new.tokenizer, texts, LENGTH, run / "text.ids", seed)
    log = train(
        task, text, plan, run, origin={"model": done.model.weights_sha256, "settings": repr(settings)}
    )
    task.keep()
    data["bits_per_byte_unhealed"] = data.bits_per_byte.sel(state="after", drop=True).copy()
    data.bits_per_byte.loc[{"state": "after"}] = [one.bits_per_byte for one in scores_after(done, domains)]
    data["healing_loss"] = (
        "step",
        [line["loss"] for line in log],
        {"units": "nats per token, and the stream's relative error"},
    )
    data.attrs["healing_steps"] = plan.steps
    data.attrs["healing_plan"] = json_text(asdict(plan))
    return data


def options_as_words(
    settings: InitSettings, sources: Sources, multiple: int, heal: int, seed: int
) -> list[str]:
    """The options that make the same transplant again: the method, and all that differ from their
    defaults."""
    given = {**asdict(settings), "multiple": multiple, "heal": heal, "seed": seed, "pieces": sources.pieces}
    usual = {**asdict(InitSettings()), "multiple": 0, "heal": 0, "seed": 0, "pieces": Sources().pieces}
    words = ["--method", settings.method]
    words += [
        w
        for name, value in given.items()
        if name != "method" and value != usual[name]
        for w in (f"--{name}", str(value))
    ]
    words += [w for text in sources.train for w in ("--learn", text)] + [
        w for text in sources.domains for w in ("--text", text)
    ]
    words += ["--donor", sources.donor] if sources.donor else []
    words += [] if sources.controls else ["--no-controls"]
    return [*words, "--encoder", sources.encoder or "none", *sources.opened]


def transplant_rows(data: xr.Dataset) -> Iterator[str]:
    """A certificate in words, a line for each domain."""
    for domain in map(str, data.domain.values):
        one = data.sel(domain=domain)
        short = [float(value) for value in one.bytes_per_token.values]
        tokens = f"{short[0]:.3f} bytes per token become {short[1]:.3f}"
        if "bits_per_byte" not in data:
            drawn = _controls(one, "distance_control")
            yield f"{domain}: embeddings move by {float(one.distance):.4f} (1 - cosine); {tokens}{drawn}"
            continue
        before, after = (float(value) for value in one.bits_per_byte.values)
        unhealed = (
            f" ({float(one.bits_per_byte_unhealed):.4f} before {data.attrs['healing_steps']} healing steps)"
            if "bits_per_byte_unhealed" in data
            else ""
        )
        tokens += _controls(one, "bits_per_byte_control")
        lossy = (
            ""
            if float(one.exact.min()) == 1
            else "; NOT COMPARABLE, a tokenizer does not keep this text as it is"
        )
        yield f"{domain}: {before:.4f} bits per byte become {after:.4f}{unhealed}; {tokens}{lossy}"
    if "row_norm" in data:
        sizes = [float(value) for value in data.row_norm.values]
        yield f"An estimated row is {sizes[1] / sizes[0]:.3f} times as long as one taken over (medians)"
    if "apart" in data:
        yield (
            f"Two different texts are {float(data.apart):.4f} apart; {float(data.same_nearest):.1%} of the"
            " texts keep their nearest other text"
        )


def _controls(one: xr.Dataset, name: str) -> str:
    """What drawn rows would have cost on a domain, where that was measured."""
    if name not in one:
        return ""
    pairs = zip(one.control.values, one[name].values, strict=True)
    return f"; controls: {', '.join(f'{float(value):.4f} with {kind} rows' for kind, value in pairs)}"
