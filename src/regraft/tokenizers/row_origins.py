"""What each row of a new vocabulary was made of: one token explained, all of them listed, the frequent ones
measured.

Shapes: N new tokens, V old tokens, D width, P parts of one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.quantities import quantity
from regraft.core.strict_json import json_text
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import shown
from regraft.tokenizers.control_rows import DrawnRows
from regraft.tokenizers.init_methods import InitSettings, TransplantCase, estimate, local, near
from regraft.tokenizers.mixtures import Mixture
from regraft.tokenizers.transplantation import Transplant
from regraft.tokenizers.vocab_map import Matching

FREQUENT, LARGEST = 20, 8
"""New tokens whose make-up a certificate shows, and old tokens of each: what lies behind is summed up."""
OF_PIECES = ("hybrid", "local")
TINY = 1e-12
"""Methods that weigh a token's pieces by likeness and length, `hybrid` adds neighbours; a length that divides
nothing by zero."""
SOURCE = "TokenAdapt (Sharthak et al., 2025)"


def token_number(reader: ByteIds, asked: str) -> int:
    """The id of a token that is asked for: by its text, its name in the vocabulary, or `#` and its id.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    size = len(reader.table)
    if asked[:1] == "#" and asked[1:].isdecimal():
        if int(asked[1:]) >= size:
            raise ValueError(f"there is no id {asked[1:]}: the new tokenizer's go up to {size - 1:,}")
        return int(asked[1:])
    found = reader.id_of.get(asked.encode("utf-8", "surrogatepass"), reader.tokenizer.get_vocab().get(asked))
    if found is not None:
        return found
    cut = [shown(reader.table.bytes_V[i]) for i in reader.encode(asked.encode("utf-8", "surrogatepass"))]
    pieces = ", ".join(map(repr, cut))
    raise ValueError(
        f"the new tokenizer has no token {asked!r}, it cuts it into {pieces}: give one of its tokens with the"
        " space in front of it, if any, its name in the vocabulary, or # and its id"
    )


def explained(case: TransplantCase, settings: InitSettings, asked: str) -> xr.Dataset:
    """What the rows of one new token are made of, part by part.

    Of a token that takes an old one's rows over there is one part, of weight 1. Of an estimated one there is
    a part for each old token that is in its rows; `hybrid` and `local` say of each how much of the token's
    length it is, how much alike, and what weight that makes; `hybrid` also the cosine and weight of the
    neighbours. What no method looks at (special tokens, drawn rows) has no parts.

    Raises:
        ValueError: the new tokenizer has no such token.
    """
    number = token_number(case.new, asked)
    told = {
        "experiment": "token origin",
        "token": _text(case.new, number),
        "new_id": number,
        "method": settings.method,
        "share_of_neighbours": settings.weight if settings.method == "hybrid" else 0.0,
    }
    if (source := int(case.matching.source_V[number])) >= 0:
        return _parts(
            case, [source], {"weight": np.ones(1)}, {**told, "made": "taken over", "mean_share": 0.0}
        )
    if number not in case.matching.missing:
        return _parts(case, [], {"weight": np.zeros(0)}, {**told, "made": "mean row", "mean_share": 1.0})
    alone = replace(case, matching=Matching(case.matching.source_V, np.array([number], np.int64)))
    mixed = estimate(alone, settings)
    if isinstance(mixed, DrawnRows):
        return _parts(case, [], {"weight": np.zeros(0)}, {**told, "made": "drawn", "mean_share": 0.0})
    ids, weights = _ordered(mixed, 0)
    more = _of_pieces(alone, settings, ids) if settings.method in OF_PIECES else {}
    made = {**told, "made": "estimated", "mean_share": float(mixed.mean_N[0])}
    return _parts(case, ids, {"weight": weights, **more}, made)


def _of_pieces(alone: TransplantCase, settings: InitSettings, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """What `local` and `near` saw in each old token; not a number where a token is no piece, or no
    neighbour."""
    cut, share = alone.cuts[0], alone.shares[0]
    whole_E = alone.whole_NE[0].numpy()
    known_VE = alone.known_VE.numpy()
    inside = np.array([i in cut for i in ids], bool)
    lengths = np.array([share[[one == i for one in cut]].sum() if i in cut else np.nan for i in ids])
    alike = np.array([float(known_VE[i] @ whole_E) for i in ids])
    pieces = local(alone, settings).weights_NV[[0]].toarray()[0][list(ids)]
    found = {
        "length_share": lengths,
        "likeness": np.where(inside, alike, np.nan),
        "piece_weight": np.where(inside, pieces, np.nan),
    }
    if settings.method != "hybrid":
        return found
    neighbours = near(alone, settings).weights_NV[[0]].toarray()[0][list(ids)]
    beside = neighbours > 0
    return {
        **found,
        "cosine": np.where(beside, alike / max(float(np.linalg.norm(whole_E)), TINY), np.nan),
        "neighbour_weight": np.where(beside, neighbours, np.nan),
    }


PART_UNITS = {
    "weight": ("share of the new row", "What stands in the rows of both tables: the weights sum to 1."),
    "length_share": ("share of the token's bytes", "A piece that stands twice counts twice."),
    "likeness": (
        "product of the piece's unit vector and the whole token's vector",
        "An encoder's whole has length 1; without one it is the mean of the pieces' unit rows, and shorter.",
    ),
    "piece_weight": ("share among the pieces", "Softmax of the mean of likeness and length."),
    "cosine": ("product of unit vectors", "1: the same direction in the encoder's space."),
    "neighbour_weight": ("share among the neighbours", "Softmax of the cosines at the temperature."),
}


def _parts(
    case: TransplantCase, ids: Sequence[int], values: Mapping[str, np.ndarray], told: Mapping[str, Any]
) -> xr.Dataset:
    texts = np.array([_text(case.old, i) for i in ids], dtype=str)
    found = {name: quantity("part", value, *PART_UNITS[name], SOURCE) for name, value in values.items()}
    return xr.Dataset(
        {**found, "old_token": ("part", texts, {"units": "text of the old token"})},
        coords={"part": np.array(ids, np.int64)},
        attrs=dict(told),
    )


def _ordered(mixed: Mixture, row: int) -> tuple[list[int], np.ndarray]:
    """The old tokens in one row, the largest weight first, and the weights."""
    begin, end = mixed.weights_NV.indptr[row : row + 2]
    ids, weights = mixed.weights_NV.indices[begin:end], mixed.weights_NV.data[begin:end]
    order = np.argsort(-np.abs(weights), kind="stable")
    order = order[weights[order] != 0]
    return ids[order].tolist(), weights[order]


def origin_lines(done: Transplant) -> Iterator[str]:
    """A line of JSON for every id of the new vocabulary: what its rows were made of before any healing."""
    place = {int(number): row for row, number in enumerate(done.matching.missing)}
    for number, source in enumerate(done.matching.source_V.tolist()):
        told: dict[str, Any] = {"id": number, "token": _text(done.new, number)}
        if source >= 0:
            told |= {"made": "taken over", "old": [[source, _text(done.old, source), 1.0]]}
        elif (row := place.get(number)) is None:
            told |= {"made": "mean row"}
        elif isinstance(done.mixed, DrawnRows):
            told |= {"made": f"drawn ({done.mixed.kind})"}
        elif done.mixed.mean_N[row] > 0:
            told |= {"made": "mean row"}
        else:
            parts = zip(*_ordered(done.mixed, row), strict=True)
            told |= {"made": "estimated"}
            told["old"] = [[i, _text(done.old, i), round(float(weight), 6)] for i, weight in parts]
        yield json_text(told)


def _text(reader: ByteIds, number: int) -> str:
    """A token as a reader sees it: its bytes, or its name where it stands for none."""
    return shown(reader.table.bytes_V[number]) or str(reader.tokenizer.convert_ids_to_tokens(number))


def frequent_origins(done: Transplant, domains: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The estimated tokens that are most frequent in the text, and the old tokens that their rows were mixed
    of; nothing where rows are not mixed, or none of them occurs."""
    if isinstance(done.mixed, DrawnRows) or not len(done.matching.missing):
        return {}
    counts_V = np.zeros(len(done.new.table), np.int64)
    for texts in domains.values():
        for ids in done.new.encode_texts(list(texts)):
            np.add.at(counts_V, np.asarray(ids, np.int64), 1)
    counts_N = counts_V[done.matching.missing]
    rows = [int(row) for row in np.argsort(-counts_N, kind="stable")[:FREQUENT] if counts_N[row]]
    if not rows:
        return {}
    texts = np.full((len(rows), LARGEST), "", dtype=object)
    weights = np.zeros((len(rows), LARGEST))
    for place, row in enumerate(rows):
        ids, shares = _ordered(done.mixed, row)
        for part, (number, share) in enumerate(zip(ids[:LARGEST], shares[:LARGEST], strict=True)):
            texts[place, part], weights[place, part] = _text(done.old, number), share
    made = [_text(done.new, int(done.matching.missing[row])) for row in rows]
    how = (
        f"The {LARGEST} old tokens with the largest weights; what is missing to 1 is in smaller ones, and the"
        " mean row."
    )
    return {
        "made_token": ("made", made, {"units": "estimated token, the most frequent in the text first"}),
        "made_count": ("made", counts_N[rows], {"units": "times in the text"}),
        "made_part": (("made", "largest"), texts.astype(str), {"units": "old token in its row"}),
        "made_weight": quantity(("made", "largest"), weights, "share of the new row", how, SOURCE),
    }
