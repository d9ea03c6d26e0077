"""What `regraft tokenizer transplant` does once its options are read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xarray as xr

from regraft.data.texts import text_files, texts_in
from regraft.graft.distill import Plan, train
from regraft.graft.windows import windows_over
from regraft.model.load import load
from regraft.model.opened import Model
from regraft.report.page import page
from regraft.specimens import almanac
from regraft.tokenizer_commands import domain_pieces
from regraft.tokens.bits import pieces
from regraft.tokens.encoder import SentenceEncoder, Vectors
from regraft.tokens.estimate import Settings
from regraft.tokens.folder import open_tokenizer
from regraft.tokens.heal import HealTask
from regraft.tokens.planted import check_target, write_model
from regraft.tokens.transplant import Transplant, measured, old_case, transplant

READ = 2000
"""Pieces of text that alignment and auxiliary vectors are made from."""


@dataclass(frozen=True)
class Sources:
    """What a transplant reads besides the model: text to learn from, text to measure on, an encoder, its cache, a donor."""

    train: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    pieces: int = 100
    encoder: str = ""
    cache: Path = Path("token-vectors")
    donor: str = ""


def learning_text(train_on: Sequence[str]) -> list[str]:
    """Pieces of the files that are named, or of an almanac."""
    if not train_on:
        return pieces(["\n".join(almanac.corpus(2_000_000, 1))], READ)
    return pieces((text for file in text_files(train_on) for text in texts_in(file)), READ)


def transplant_command(
    model: Model, tokenizer: str, settings: Settings, sources: Sources, multiple: int, heal: int, target: Path, seed: int
) -> tuple[xr.Dataset, str]:
    """Estimate, heal, measure, write; the certificate and what to say."""
    check_target(model, target)
    vectors = Vectors(SentenceEncoder(sources.encoder, str(model.device)), sources.cache) if sources.encoder else None
    donor_VD = load(sources.donor, pack=False).parts.embedding.weight if sources.donor else None
    texts = learning_text(sources.train)
    case = old_case(model, open_tokenizer(tokenizer), texts, vectors, donor_VD)
    if donor_VD is not None and len(donor_VD) < len(case.new.table):
        raise ValueError(f"{sources.donor} has fewer rows than the tokenizer has tokens: the donor must be its own model")
    done = transplant(model, case, settings, multiple)
    domains = domain_pieces(sources.domains, "", sources.pieces)
    data = measured(done, domains, settings)
    if heal:
        data = healed(done, texts, domains, settings, data, heal, target, seed)
    encoder = vectors.encoder if vectors is not None else None
    data.attrs["encoder"] = f"{encoder.name}, sha256 {encoder.digest}" if encoder else "none: the model's own rows"
    data.attrs["learnt_from"] = ", ".join(sources.train) or "an almanac made with a seed"
    said = write_model(done, data, target)
    words = ["regraft", "tokenizer", "transplant", "--model", model.source or model.name, "--tokenizer", tokenizer]
    words += said_options(settings, sources, multiple, heal, seed)
    text = page(model, [data], [shlex.join([*words, "--save", str(target)])], float(data.attrs["seconds"]))
    (target / "certificate.html").write_text(text, encoding="utf-8")
    return data, f"{done.sentence}. {said}"


def healed(
    done: Transplant, texts: list[str], domains: dict, settings: Settings, data: xr.Dataset, steps: int, target: Path, seed: int
) -> xr.Dataset:
    """Train the new rows, keep them, and measure again; the certificate then has both."""
    run = target.with_name(f"{target.name}-healing")
    task = HealTask(done)
    text = windows_over(done.new.tokenizer, texts, 128, run / "text.ids", seed)
    plan = Plan(steps=steps, batch=8, rate=task.rate, warmup=min(20, steps))
    train(task, text, plan, run, origin={"model": done.model.weights_sha256, "settings": repr(settings)})
    task.keep()
    after = measured(done, domains, settings)
    data["bits_per_byte_unhealed"] = data.bits_per_byte.sel(state="after", drop=True)
    data["bits_per_byte"] = after.bits_per_byte
    data.attrs["healing_steps"] = steps
    return data


def said_options(settings: Settings, sources: Sources, multiple: int, heal: int, seed: int) -> list[str]:
    """The options that make the same transplant again: the method, and all that differ from their defaults."""
    given = {**asdict(settings), "multiple": multiple, "heal": heal, "seed": seed, "pieces": sources.pieces}
    usual = {**asdict(Settings()), "multiple": 0, "heal": 0, "seed": 0, "pieces": Sources().pieces}
    words = ["--method", settings.method]
    words += [w for name, value in given.items() if name != "method" and value != usual[name] for w in (f"--{name}", str(value))]
    words += [w for text in sources.train for w in ("--learn", text)] + [w for text in sources.domains for w in ("--text", text)]
    words += ["--donor", sources.donor] if sources.donor else []
    return [*words, "--encoder", sources.encoder or "none"]


def transplant_rows(data: xr.Dataset) -> Iterator[str]:
    """A certificate in words, a line for each domain."""
    for domain in map(str, data.domain.values):
        one = data.sel(domain=domain)
        before, after = (float(value) for value in one.bits_per_byte.values)
        short = [float(value) for value in one.bytes_per_token.values]
        unhealed = (
            f" ({float(one.bits_per_byte_unhealed):.4f} before {data.attrs['healing_steps']} healing steps)"
            if "bits_per_byte_unhealed" in data
            else ""
        )
        yield (
            f"{domain}: {before:.4f} bits per byte become {after:.4f}{unhealed}; {short[0]:.3f} bytes per token become "
            f"{short[1]:.3f}"
        )
