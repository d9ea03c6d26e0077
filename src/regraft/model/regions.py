"""Regions of a text: which part of it each token belongs to, by the markers around it or by labels of one's
own.

Shapes: B prompts, T positions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from regraft.model.model import Model

OUTSIDE = "outside"
"""The region of tokens that are in none."""
FORM = 'write BEGIN...END, for example "<think>...</think>"'


@dataclass(frozen=True)
class Marker:
    """What stands in front of a region and behind it; both belong to it."""

    name: str
    begin: str
    end: str


def marker_of(text: str) -> Marker:
    """A marker as it is written on a command line.

    Raises:
        ValueError: it has no beginning or no end.
    """
    begin, dots, end = text.partition("...")
    if not dots or not begin or not end:
        raise ValueError(f"{text!r} marks no region: {FORM}")
    name = re.sub(r"\W+", "", begin) or begin
    if name == OUTSIDE:
        raise ValueError(f"a region cannot be called {OUTSIDE}: that is what is in none")
    return Marker(name, begin, end)


@dataclass(frozen=True, eq=False)
class Regions:
    """Names of regions, and the number of the region of every token, (B, T): 0 is outside."""

    names: tuple[str, ...]
    number_BT: Tensor

    def of(self, prompt_P: Tensor, position_P: Tensor) -> Tensor:
        """The numbers at places, (P,)."""
        return self.number_BT[prompt_P, position_P]


def regions_of(model: Model, ids: Sequence[Sequence[int]], given: Any, length: int) -> Regions:
    """The regions of texts.

    Args:
        model: whose tokens they are.
        ids: token ids of every prompt with what follows it.
        given: a marker such as "<think>...</think>" or several, or for each prompt a label for each token.
        length: of the padded texts.

    Raises:
        ValueError: a marker that is absent from a text or not closed there; labels that are not one for each
            token.
    """
    listed = [given] if isinstance(given, str) else list(given)
    if not listed:
        raise ValueError(f"there is no region: {FORM}, or give a label for each token")
    if all(isinstance(one, str) for one in listed):
        markers = [marker_of(one) for one in listed]
        if len({marker.name for marker in markers}) < len(markers):
            raise ValueError(f"two regions have one name: {', '.join(marker.name for marker in markers)}")
        rows = [_marked(model, row, markers, number) for number, row in enumerate(ids)]
        names = (OUTSIDE, *(marker.name for marker in markers))
    else:
        rows = _checked(listed, ids)
        names = (OUTSIDE, *dict.fromkeys(label for row in rows for label in row if label != OUTSIDE))
    number = {name: i for i, name in enumerate(names)}
    table = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor([number[label] for label in row], dtype=torch.long)
    return Regions(names, table.to(model.device))


def _checked(given: list[Any], ids: Sequence[Sequence[int]]) -> list[list[str]]:
    """Labels as they were given, empty ones as what is outside."""
    lengths = [len(row) for row in ids]
    shapes = [len(row) if isinstance(row, Sequence) and not isinstance(row, str) else -1 for row in given]
    if shapes != lengths:
        raise ValueError(
            f"regions are markers, or a label for each token: the texts have {lengths} tokens, the labels are"
            f" {['no list' if shape < 0 else shape for shape in shapes]}"
        )
    return [[str(label) if label else OUTSIDE for label in row] for row in given]


def _marked(model: Model, ids: Sequence[int], markers: list[Marker], number: int) -> list[str]:
    """The region of every token of one text: the one in which its first letter stands."""
    pieces = [model.token_text(token) for token in ids]
    text = "".join(pieces)
    spans = [(marker.name, *_span(text, marker, number)) for marker in markers]
    labels, at = [], 0
    for piece in pieces:
        labels.append(next((name for name, begin, end in spans if begin <= at < end), OUTSIDE))
        at += len(piece)
    return labels


def _span(text: str, marker: Marker, number: int) -> tuple[int, int]:
    """Where a region begins and ends, its markers included.

    Raises:
        ValueError: the text does not begin it, or does not end it.
    """
    begin = text.find(marker.begin)
    if begin < 0:
        raise ValueError(
            f"text {number} has no {marker.begin!r}, so it has no region {marker.name!r}: leave it out, or"
            " name other markers"
        )
    end = text.find(marker.end, begin + len(marker.begin))
    if end < 0:
        raise ValueError(
            f"text {number} does not close its region {marker.name!r} with {marker.end!r}: let it be longer"
            " (more tokens), or leave it out"
        )
    return begin, end + len(marker.end)
