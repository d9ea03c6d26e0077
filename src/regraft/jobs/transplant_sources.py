"""What a transplant reads besides its model, and what one row would be made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from torch import Tensor

from regraft.checkpoint.locate import CheckpointError
from regraft.core.strict_json import json_text
from regraft.data.text_files import text_files, texts_in
from regraft.model.load import load
from regraft.model.model import Model
from regraft.specimens import almanac
from regraft.sweeps.provenance import provenance
from regraft.tokenizers.bits_per_byte import pieces
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.encoder import SentenceEncoder, Vectors
from regraft.tokenizers.init_methods import InitSettings, TransplantCase
from regraft.tokenizers.row_origins import explained
from regraft.tokenizers.tokenizer_folder import open_tokenizer
from regraft.tokenizers.transplantation import old_case

READ = 2000
"""Pieces of text that alignment and auxiliary vectors are made from."""
NO_ENCODER = "none"
"""Said in an encoder's place where there is to be none, on the command line and here."""


@dataclass(frozen=True)
class Sources:
    """What a transplant reads besides the model: text to learn from, text to measure on, an encoder, its
    cache, a donor.

    `opened` are the options that the model was opened with, for the command that makes it all again;
    `controls`: whether rows drawn at random are measured, too.

    Examples:
        >>> regraft.Sources(train=("books.txt",), encoder="none").pieces  # that are measured of a domain
        100
    """

    train: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    pieces: int = 100
    encoder: str = ""
    cache: Path = Path("token-vectors")
    donor: str = ""
    opened: tuple[str, ...] = ()
    controls: bool = True


def learning_text(train_on: Sequence[str]) -> list[str]:
    """Pieces of the files that are named, or of an almanac."""
    if not train_on:
        return pieces(["\n".join(almanac.corpus(2_000_000, 1))], READ)
    return pieces((text for file in text_files(train_on) for text in texts_in(file)), READ)


def opened_case(model: Model, tokenizer: str, sources: Sources) -> TransplantCase:
    """What the methods look at, from what a command names."""
    reader = open_tokenizer(tokenizer)
    donor_VD = donor_table(sources.donor, reader) if sources.donor else None
    encoder = (
        None if sources.encoder in ("", NO_ENCODER) else open_encoder(sources.encoder, str(model.device))
    )
    vectors = encoder and Vectors(encoder, sources.cache)
    return old_case(model, reader, learning_text(sources.train), vectors, donor_VD)


def told_of(case: TransplantCase, sources: Sources) -> dict[str, str]:
    """What the rows were estimated from, for who reads the certificate."""
    encoder = case.vectors.encoder if case.vectors is not None else None
    return {
        "encoder": f"{encoder.name}, sha256 {encoder.digest}" if encoder else "none: the model's own rows",
        "donor": sources.donor,
        "learnt_from": ", ".join(sources.train) or "an almanac made with a seed",
        "learnt_sha256": hashlib.sha256("\n".join(case.texts).encode()).hexdigest(),
    }


def check_donor(settings: InitSettings, sources: Sources) -> None:
    """Make sure that a donor is of use.

    Raises:
        ValueError: the method looks at none.
    """
    if sources.donor and settings.method != "pursuit":
        raise ValueError(f"--donor serves --method pursuit alone, not {settings.method}: leave it out")


def explain_token(
    model: Model,
    tokenizer: str,
    token: str,
    settings: InitSettings | None = None,
    sources: Sources | None = None,
) -> xr.Dataset:
    r"""What the rows of one new token would be made of: its pieces and neighbours, how much alike, and the
    weights.

    Args:
        model: an opened model.
        tokenizer: folder, hub id or specimen whose tokenizer the model is to get.
        token: the token's text, its name in the vocabulary, or `#` and its id.
        settings: how rows of new tokens are estimated.
        sources: what is read besides the model.

    Returns:
        A row for each old token that is mixed in: its share of the length, likeness and weight, in shares.

    Raises:
        ValueError: the new tokenizer has no such token, or the model cannot have this tokenizer.

    Examples:
        >>> from regraft.specimens import almanac
        >>> _ = pathlib.Path("books.txt").write_text("\n".join(almanac.corpus(20_000, 7)))
        >>> made = regraft.train_tokenizer("words", ["books.txt"], recipe=regraft.Recipe(600, "superword"))
        >>> told = regraft.explain_token(model, "words", "#590", sources=regraft.Sources(encoder="none"))
        >>> round(float(told.weight.sum()), 3), told.weight.attrs["units"]
        (1.0, 'share of the new row')
    """
    settings, sources = settings or InitSettings(), sources or Sources()
    check_donor(settings, sources)
    case = opened_case(model, tokenizer, sources)
    data = explained(case, settings, token)
    data.attrs |= {**provenance(model), "settings": json_text(asdict(settings)), **told_of(case, sources)}
    return data


def open_encoder(name: str, device: str) -> SentenceEncoder:
    """A sentence encoder; where it cannot be had, the sentence says what serves instead."""
    try:
        return SentenceEncoder(name, device)
    except CheckpointError as error:
        raise type(error)(f"{error}; give --encoder the folder of a sentence encoder, or none") from error


def donor_table(name: str, tokenizer: Any) -> Tensor:
    """The embedding of the model that a tokenizer comes from.

    Raises:
        ValueError: the model's own tokenizer is another one.
    """
    donor = load(name, pack=False)
    new = ByteIds(tokenizer).table
    own = ByteIds(donor.tokenizer).table if donor.tokenizer is not None else None
    if own is None or own.bytes_V[: len(new)] != new.bytes_V or donor.table_rows < len(new):
        raise ValueError(
            f"{name} has another tokenizer: the donor must be the model that --tokenizer comes from"
        )
    return donor.parts.embedding.weight
