"""Text cut into chunks of random length, and a sample of bounded size of any stream of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from regraft.core.files import read_text

SUM = 1e-6
"""How far from 1 probabilities may add up: written decimals, no more."""
LONGEST = 1_000_000
"""Characters of the longest chunk that can be asked for."""


@dataclass(frozen=True)
class ChunkLengths:
    """How probable a chunk of 1, 2, 3, ... characters is.

    Raises:
        ValueError: there are none, one is negative or no number, or they do not sum to 1.
    """

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.probabilities or not all(math.isfinite(p) and p >= 0 for p in self.probabilities):
            raise ValueError(
                "the probabilities of the chunk lengths must be numbers of at least 0, for each length from"
                " 1 on"
            )
        if abs(total := math.fsum(self.probabilities) - 1) > SUM:
            raise ValueError(f"the probabilities of the chunk lengths sum to {total + 1:.6g}, not to 1")

    @property
    def mean(self) -> float:
        """Mean length in characters."""
        return math.fsum(length * p for length, p in enumerate(self.probabilities, 1))


def gaussian(mean: float, deviation: float, longest: int | None = None) -> ChunkLengths:
    """A Gaussian over whole lengths from 1 to `longest` (by default four deviations above the mean), scaled
    to sum to 1.

    Raises:
        ValueError: the mean or the deviation is not above 0, nothing of it lies within the lengths, or they
            are too long.
    """
    if not (0 < mean < math.inf and 0 < deviation < math.inf):
        raise ValueError(
            f"a Gaussian of mean {mean:g} and deviation {deviation:g} cuts no chunks: both must be above 0"
            " and finite"
        )
    longest = math.ceil(min(mean + 4 * deviation, 2.0 * LONGEST)) if longest is None else longest
    if not 1 <= longest <= LONGEST:
        raise ValueError(
            f"chunks of up to {longest:,} characters cannot be cut: the longest must be from 1 to {LONGEST:,}"
        )
    lengths = np.arange(1, longest + 1)
    weights = np.exp(-0.5 * ((lengths - mean) / deviation) ** 2)
    if not weights.sum() > 0:
        raise ValueError(
            f"no length up to {lengths[-1]} is likely under mean {mean:g} and deviation {deviation:g}"
        )
    return ChunkLengths(tuple((weights / weights.sum()).tolist()))


def read_lengths(stated: str) -> ChunkLengths:
    """A distribution as the command line gives it.

    `gaussian:MEAN:DEVIATION[:LONGEST]`, probabilities of 1, 2, ... characters between commas, or a YAML file
    with either `gaussian: {mean: 24, deviation: 8}` or `probabilities: [0.5, 0.5]`.

    Raises:
        ValueError: it is none of them, or not a distribution.
    """
    if Path(stated).suffix in (".yaml", ".yml"):
        return _from_yaml(Path(stated))
    try:
        if stated.startswith("gaussian:"):
            mean, deviation, *longest = stated.removeprefix("gaussian:").split(":", 2)
            parts = float(mean), float(deviation), *(int(text) for text in longest)
        else:
            parts = tuple(float(text) for text in stated.split(","))
    except ValueError as error:
        raise ValueError(
            f"{stated!r} is no distribution of chunk lengths: write gaussian:MEAN:DEVIATION, probabilities"
            " between commas, or name a YAML file"
        ) from error
    return gaussian(*parts) if stated.startswith("gaussian:") else ChunkLengths(parts)  # type: ignore[arg-type]


def _from_yaml(file: Path) -> ChunkLengths:
    text = read_text(file, "name a YAML file with the chunk lengths")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    match content:
        case {"gaussian": {"mean": mean, "deviation": deviation, **more}} if set(more) <= {"longest"}:
            if {type(mean), type(deviation)} <= {int, float} and type(more.get("longest", 1)) is int:
                return gaussian(mean, deviation, more.get("longest"))
        case {"probabilities": [*values]} if all(type(value) in (float, int) for value in values):
            return ChunkLengths(tuple(map(float, values)))
    raise ValueError(
        f"{file} has neither `gaussian` with mean, deviation and perhaps a whole `longest`, nor a list of"
        " `probabilities`"
    )


def chunks(texts: Iterable[str], lengths: ChunkLengths, seed: int) -> Iterator[str]:
    """Cut texts into chunks of random length, whatever stands at the cuts; the last chunk of a text is what
    is left."""
    draw = np.random.default_rng(seed)
    values = np.array(lengths.probabilities)
    for text in texts:
        start = 0
        while start < len(text):
            likely = math.ceil((len(text) - start) / lengths.mean) + 8
            drawn = 1 + draw.choice(len(values), p=values / values.sum(), size=likely)
            for length in drawn.tolist():
                if start >= len(text):
                    break
                yield text[start : start + length]
                start += length


def sampled(texts: Iterable[str], most: int, seed: int, piece: int = 4096) -> list[str]:
    """Pieces of texts that together hold at most `most` characters, every piece as likely as any other, in
    one pass.

    Each piece has a random number; when the limit is passed, those with the highest go.
    """
    piece = max(1, min(piece, most // 20))
    draw = np.random.default_rng(seed)
    kept: list[tuple[float, int, str]] = []
    held, bound, number = 0, 1.0, 0
    for text in texts:
        for start in range(0, len(text), piece):
            number += 1
            if (chance := draw.random()) >= bound:
                continue
            kept.append((chance, number, text[start : start + piece]))
            held += len(kept[-1][2])
            if held > most:
                kept.sort()
                while held > 0.8 * most:
                    bound, _, gone = kept.pop()
                    held -= len(gone)
    return [text for _, _, text in sorted(kept, key=lambda one: one[1])]
