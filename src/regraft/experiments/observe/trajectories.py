"""Contrastive trajectories: the same prompt under two completions, compared depth by depth.

Shapes: S depths (blocks + 1), G groups, C relations, n positions of one completion, D width, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax

from regraft.core.files import read_text
from regraft.core.progress import advance
from regraft.core.quantities import quantity
from regraft.core.signatures import TextFile
from regraft.data.contrasts import Contrast, general, specimen
from regraft.data.generation import is_specimen, prompt_ids
from regraft.data.own_texts import check_sayable, first_of
from regraft.experiments.observe.contrast_measures import (
    DIRECTIONS,
    PUBLISHED,
    SUBSETS,
    alternative_ranks,
    before_the_pivot,
    completion_cka,
    contrast_quantities,
)
from regraft.experiments.observe.geometry import linear_cka
from regraft.model.model import Model
from regraft.model.recording import Recording

RELATIONS = ("synonym", "antonym", "style", "unrelated")
PLACES = ("pivot", "completion")
KINDS = ("immediate", "shared prefix")
RESAMPLES, BAND = 2000, (2.5, 97.5)
"""Resamples of the groups, and the percentiles that bound a 95% band."""
DISTANCES = {
    "cosine": ("cosine of the two states", "1: the two completions are one to the model here."),
    "distance": (
        "length of the difference / mean length",
        "0: one state; the square root of 2: two states of one length at a right angle.",
    ),
    "kl": (
        "nats from the base's lens distribution to the other's",
        "How surprised the other's lens would be at what the base's says.",
    ),
    "kl_reverse": (
        "nats from the other's lens distribution to the base's",
        "How surprised the base's lens would be at what the other's says: the published direction.",
    ),
}
"""What is compared at every depth, in what unit, and how to read it."""
BESIDE = {
    "shared_cosine": (
        "cosine of the two states at the last position that both share",
        "1 in a model that reads from left to right, up to rounding: anything else is a fault of the walk.",
    ),
    "alternative_rank": (
        "tokens that the lens ranks above the alternative's first own token, where both still agree",
        "How far the model is from saying the alternative, before it is made to: at rank 0 it nearly did.",
    ),
    "completion_cka": (
        "linear CKA over the completion's tokens, cut to the shorter (a single token: the cosine)",
        "1: the two completions are laid out alike, up to a rotation. Of two tokens it is always 1.",
    ),
}
"""What is measured of every relation and group at every depth, in what unit, and how to read it."""


def trajectories(
    model: Model,
    groups: Literal["suited", "general", "specimen"] = "suited",
    kind: Literal["all", "immediate", "shared prefix"] = "all",
    file: TextFile = "",
    count: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Follow a base completion and its synonym, antonym, style variant and an unrelated one through the
    depths.

    At the pivot (the first token that differs) and over the whole completion (states, and lens distributions,
    averaged over its tokens): cosine, distance over the mean length, KL of the lens distributions in both
    directions, and linear CKA over the groups. Bands are 95% of 2,000 bootstrap means over the groups.
    Crossover: the depth from which synonyms stay closer than antonyms. Onset: the first depth where the
    antonyms' mean cosine falls two standard deviations of the synonyms below their mean. Beside the curves:
    the last position that both share, the rank of the alternative there, CKA over a completion's tokens, and
    the KL of synonyms less that of antonyms, with and without a shared prefix.

    Args:
        groups: which contrastive groups; by default those that suit the model.
        kind: only groups that differ at the first word, or only those that share a prefix.
        file: a JSON list of groups of your own, each with prompt, base, synonym, antonym, style, unrelated
            and kind.
        count: how many of the groups, at least two, taken in turn from both kinds; 0 for all.
        seed: of everything drawn at random.

    Raises:
        ValueError: fewer than two groups, a file that cannot be used, or a model without a tokenizer.

    Examples:
        >>> data = regraft.trajectories(model, count=2)
        >>> dict(data["cosine_mean"].sizes), data["cosine_mean"].attrs["units"]
        ({'relation': 4, 'place': 2, 'depth': 13}, 'cosine of the two states')
    """
    chosen = _in_turn(_chosen(model, groups, kind, file), count)
    walks = []
    for group in chosen:
        walks.append(_walk(model, group))
        advance("groups", len(walks), len(chosen))
    values = {name: np.stack([w[name] for w in walks], axis=2) for name in DISTANCES}
    beside = {name: np.stack([w[name] for w in walks], axis=1) for name in BESIDE}
    states = torch.stack([w["states"] for w in walks])
    pairs = [(c, p) for c in range(len(RELATIONS)) for p in range(len(PLACES))]
    cka = np.array([[_cka(pair) for pair in states[:, c, p].unbind(1)] for c, p in pairs])
    cka = cka.reshape(len(RELATIONS), len(PLACES), -1)
    return _dataset(values, beside, cka, chosen, seed)


def _chosen(model: Model, groups: str, kind: str, file: str) -> list[Contrast]:
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name} has no tokenizer to write the contrastive groups with: name one with --tokenizer"
        )
    suited = specimen() if groups == "specimen" or (groups == "suited" and is_specimen(model)) else general()
    taken = _from_file(Path(file)) if file else suited
    if not file:
        check_sayable(
            model,
            [g.prompt + g.base + g.synonym + g.antonym for g in suited],
            "the English groups that ship with regraft",
        )
    found = [group for group in taken if kind in ("all", group.kind)]
    if len(found) < 2:
        raise ValueError(f"{len(found)} contrastive groups of kind {kind!r} are too few: give at least two")
    return found


def _in_turn(groups: list[Contrast], count: int) -> list[Contrast]:
    """`count` of the groups, as many of each kind as there can be; all of them, as they are, for 0."""
    if count == 1:
        raise ValueError(
            "one contrastive group has nothing to be compared with: give a count of at least two, or 0"
            " for all"
        )
    turns = [
        sum(earlier.kind == group.kind for earlier in groups[:place]) for place, group in enumerate(groups)
    ]
    order = sorted(range(len(groups)), key=turns.__getitem__) if count else range(len(groups))
    return first_of([groups[place] for place in order], count, "groups")


def _from_file(path: Path) -> list[Contrast]:
    wanted = "a JSON list of objects with prompt, base, synonym, antonym, style, unrelated and kind"
    text = read_text(path, f"write {wanted}")
    try:
        found = [Contrast(**entry) for entry in json.loads(text)]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} holds no contrastive groups ({error}): write {wanted}") from error
    for number, group in enumerate(found):
        if not all(isinstance(text, str) and text for text in vars(group).values()):
            raise ValueError(f"group {number} of {path} has a field that is empty or no text: write {wanted}")
        if group.kind not in KINDS:
            raise ValueError(
                f"group {number} of {path} is of kind {group.kind!r}: write {' or '.join(map(repr, KINDS))}"
            )
    return found


def _walk(model: Model, group: Contrast) -> dict[str, Any]:
    """Distances (relation, place, depth) of one group, and its states (relation, place, depth, base and
    other, D)."""
    recording, first = _recorded(model, group)
    ids = [recording.ids_BT[row, : int(recording.lengths_B[row])].tolist() for row in range(5)]
    spans = [list(range(first, len(row) - _closing(model))) for row in ids]
    pivots = [pivot(ids[0], row) for row in ids[1:]]
    blocks = model.main_blocks
    streams = [recording.pre(block.index) for block in blocks] + [recording.post(blocks[-1].index)]
    found: dict[str, Any] = {
        name: np.full((len(RELATIONS), len(PLACES), len(streams)), np.nan) for name in DISTANCES
    }
    beside = {name: np.full((len(RELATIONS), len(streams)), np.nan) for name in BESIDE}
    own = [row[at] for row, (_, at) in zip(ids[1:], pivots, strict=True)]
    states = []
    for depth, stream in enumerate(streams):
        here = stream.double()
        whole = [here[row, span].mean(0) for row, span in enumerate(spans)]
        says = _lenses(recording, [stream[row, span] for row, span in enumerate(spans)])
        beside["shared_cosine"][:, depth] = before_the_pivot(here, pivots)
        if model.causal and model.parts.head is not None and min(at for at, _ in pivots) > 0:
            before = torch.stack([stream[0, at - 1] for at, _ in pivots])
            ranks = alternative_ranks(recording.head(before[:, None])[:, 0], own)
            beside["alternative_rank"][:, depth] = ranks
        for c, (base_at, other_at) in enumerate(pivots):
            beside["completion_cka"][c, depth] = completion_cka(here[0, spans[0]], here[c + 1, spans[c + 1]])
            base_says, other_says = says[0], says[c + 1]
            spoken: list[Any] = [None, None]
            if base_says is not None and other_says is not None:
                spoken = [
                    (base_says[base_at - first], other_says[other_at - first]),
                    (base_says.mean(0), other_says.mean(0)),
                ]
            pairs = [(here[0, base_at], here[c + 1, other_at]), (whole[0], whole[c + 1])]
            states += [torch.stack(pair) for pair in pairs]
            for p, pair in enumerate(pairs):
                back = None if spoken[p] is None else spoken[p][::-1]
                told = (*compare(*pair, spoken[p]), divergence(back))
                for name, value in zip(DISTANCES, told, strict=True):
                    found[name][c, p, depth] = value
    grid = torch.stack(states).unflatten(0, (len(streams), len(RELATIONS), len(PLACES)))
    return {**found, **beside, "states": grid.movedim(0, 2)}


def _recorded(model: Model, group: Contrast) -> tuple[Recording, int]:
    """The base and its four alternatives in one batch, and the position of the first token of the
    completion."""
    texts = [group.base, *(getattr(group, relation) for relation in RELATIONS)]
    if model.causal:
        ids = prompt_ids(model, group.prompt)
        recording = model.record([ids] * 5, texts, attention_mask="all")
        return recording, 1 if model.two_stacks else len(ids)
    recording = model.record([group.prompt + one for one in texts], attention_mask="all")
    prompt = model.encode(group.prompt)
    first = len(prompt) - _closing(model)
    for row in recording.ids_BT.tolist():
        first = min(
            first, next((i for i, (a, b) in enumerate(zip(prompt, row, strict=False)) if a != b), first)
        )
    return recording, first


def _closing(model: Model) -> int:
    """How many special tokens an encoder's tokenizer puts behind a text."""
    if model.causal:
        return 0
    ids, special = model.encode("a"), set(model.tokenizer.all_special_ids)
    behind = next((i for i, token in enumerate(reversed(ids)) if token not in special), 0)
    return behind


def pivot(base: list[int], other: list[int]) -> tuple[int, int]:
    """Position of the first token that differs, in both; the last one of each where one is the other's
    beginning."""
    for position, (a, b) in enumerate(zip(base, other, strict=False)):
        if a != b:
            return position, position
    return len(base) - 1, len(other) - 1


def _lenses(recording: Recording, streams: list[Tensor]) -> list[Any]:
    """Probabilities (n, V) that the head gives to each of some streams (n, D), in one run; None where the
    model has no output matrix."""
    if recording.model.parts.head is None:
        return [None] * len(streams)
    logits_nV = recording.head(torch.cat(streams)[:, None])[:, 0]
    return list(log_softmax(logits_nV.double(), -1).exp().split([len(one) for one in streams]))


def compare(
    base_D: Tensor, other_D: Tensor, texts: tuple[Tensor, Tensor] | None
) -> tuple[float, float, float]:
    """Cosine, distance over the mean length, and KL of what is said (NaN where nothing is); equal states give
    1, 0, 0."""
    mean_length = (base_D.norm() + other_D.norm()) / 2
    cosine = 1.0 if torch.equal(base_D, other_D) else float(cosine_similarity(base_D, other_D, dim=0))
    return cosine, float((base_D - other_D).norm() / mean_length), divergence(texts)


def divergence(texts: tuple[Tensor, Tensor] | None) -> float:
    """KL of the second distribution from the first, in nats; NaN where nothing is said."""
    if texts is None:
        return float("nan")
    p, q = texts
    return float((p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-300).log())).sum().clamp_min(0))


def _cka(pair_G2D: Tensor) -> float:
    """Linear CKA over the groups between the states of the base and those of a relation."""
    return float(linear_cka(pair_G2D.transpose(0, 1))[0, 1])


def bands(values_G: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of resampled groups, (resamples, ...), and the band that holds 95% of them; groups come first."""
    picks = generator.integers(0, len(values_G), (RESAMPLES, len(values_G)))
    means = np.stack([values_G[pick].mean(0) for pick in picks])
    low, high = np.percentile(means, BAND, axis=0)
    return means, low, high


def crossover(synonym_S: np.ndarray, antonym_S: np.ndarray) -> float:
    """The depth from which the synonyms' cosine stays above the antonyms', interpolated; NaN where they do
    not cross so."""
    ahead = synonym_S - antonym_S
    below = np.flatnonzero(ahead <= 0)
    if not len(below) or below[-1] == len(ahead) - 1:
        return float("nan")
    last = below[-1]
    return float(last + -ahead[last] / (ahead[last + 1] - ahead[last]))


def onset(synonym_GS: np.ndarray, antonym_GS: np.ndarray) -> float:
    """First depth where the antonyms' mean cosine is below the synonyms' mean - 2 standard deviations; NaN
    for none."""
    limit = synonym_GS.mean(0) - 2 * synonym_GS.std(0, ddof=1)
    below = np.flatnonzero(antonym_GS.mean(0) < limit)
    return float(below[0]) if len(below) else float("nan")


def _dataset(
    values: dict[str, np.ndarray],
    beside: dict[str, np.ndarray],
    cka: np.ndarray,
    chosen: list[Contrast],
    seed: int,
) -> xr.Dataset:
    generator = np.random.default_rng(seed)
    dims = ("relation", "place", "group", "depth")
    data: dict[str, Any] = {
        name: quantity(dims, values[name], *told, PUBLISHED) for name, told in DISTANCES.items()
    }
    for name, (unit, _) in DISTANCES.items():
        _, low, high = bands(np.moveaxis(values[name], 2, 0), generator)
        for suffix, array in (("mean", values[name].mean(2)), ("low", low), ("high", high)):
            data[f"{name}_{suffix}"] = (("relation", "place", "depth"), array, {"units": unit})
    synonym, antonym = (
        np.moveaxis(values["cosine"][RELATIONS.index(r)], 0, 1) for r in ("synonym", "antonym")
    )
    joint, _, _ = bands(np.stack([synonym, antonym], axis=1), generator)
    crossed = np.array([[crossover(one[0, p], one[1, p]) for p in range(len(PLACES))] for one in joint])
    happened = np.isfinite(crossed)
    interval = [
        np.percentile(c[h], BAND) if h.any() else [np.nan] * 2
        for c, h in zip(crossed.T, happened.T, strict=True)
    ]
    per_place = {
        "crossover": (
            [crossover(synonym[:, p].mean(0), antonym[:, p].mean(0)) for p in range(len(PLACES))],
            "depth",
        ),
        "crossover_low": ([i[0] for i in interval], "depth, 95% of the resamples that cross"),
        "crossover_high": ([i[1] for i in interval], "depth, 95% of the resamples that cross"),
        "crossover_share": (happened.mean(0), "of the resamples cross"),
        "onset": ([onset(synonym[:, p], antonym[:, p]) for p in range(len(PLACES))], "depth"),
    }
    return xr.Dataset(
        {
            **data,
            "cka": (("relation", "place", "depth"), cka, {"units": "linear CKA over groups"}),
            **{
                name: quantity(("relation", "group", "depth"), beside[name], *told, PUBLISHED)
                for name, told in BESIDE.items()
            },
            **contrast_quantities(values["kl"], values["kl_reverse"], [g.kind for g in chosen], RELATIONS),
            **{
                name: ("place", np.array(array), {"units": unit}) for name, (array, unit) in per_place.items()
            },
        },
        coords={
            "relation": list(RELATIONS),
            "place": list(PLACES),
            "depth": np.arange(values["cosine"].shape[-1]),
            "prompt": ("group", [g.prompt for g in chosen]),
            "kind": ("group", [g.kind for g in chosen]),
            "direction": list(DIRECTIONS),
            "subset": list(SUBSETS),
            "prefix_kind": list(SUBSETS[1:]),
        },
        attrs={"groups": len(chosen)},
    )
