"""A rebuilt model beside the official one, stage by stage, up to the first that parts; and why it may part
there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import CheckpointError
from regraft.reference import bert
from regraft.reference.carry import carried
from regraft.reference.checkpoint_reader import Rebuilt, model_inputs, open_rebuilt, token_ids
from regraft.reference.diagnose import causes
from regraft.reference.official import DTYPES, Official, ask
from regraft.reference.stage_compare import NEEDED, Row, refuse_same, rows
from regraft.sweeps.provenance import provenance

TEXTS = ("She sells sea shells by the", "The time displayed is 9:00 pm. Therefore, it is currently the")
GENERATED = 12
"""Tokens of the greedy continuation that is compared."""
HEAD = ("scaled", "logits")


@dataclass(frozen=True)
class PartedStage:
    """A stage that parts, what usually causes such a difference, and whether the official tensor went on."""

    stage: str
    causes: list[str]
    carried: bool


@dataclass
class Verdict:
    """The rows of all stages that were compared, and those that parted."""

    rows: list[Row] = field(default_factory=list)
    partings: list[PartedStage] = field(default_factory=list)
    values: str = ""
    stuck: str = ""
    """Why the official tensor could not go on in the place of the last that parted."""

    @property
    def parted(self) -> str:
        """The first stage that parts, or nothing."""
        return self.partings[0].stage if self.partings else ""

    @property
    def causes(self) -> list[str]:
        """What usually causes the first difference."""
        return self.partings[0].causes if self.partings else []


def verify_stages(
    stages: Iterable[tuple[str, Tensor]],
    official: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    heads: int,
    dtype: str = "float32",
    last: str = "",
    verdict: Verdict | None = None,
    carry: bool = False,
) -> Verdict:
    """Compare a stream of named stages with the official tensors, up to the first that parts or the one named
    `last`.

    With `carry` a stage that parts is given the official numbers and the comparison goes on, so that every
    later difference is a mistake of its own. A `verdict` that is given is filled row by row, so that it holds
    what was compared where the stream breaks off.

    Raises:
        LookupError: a stage that the official model does not have.
        SameTensorError: a stage or a weight lies in the official side's memory.
    """
    for name, weight in weights.items():
        refuse_same(name, weight, official.values())
    verdict = Verdict() if verdict is None else verdict
    before: dict[str, Tensor] = {}
    for row, ours in rows(stages, official, NEEDED[dtype], carry):
        verdict.rows.append(row)
        if row.stage == last or not (row.passed or verdict.partings):
            verdict.values = (
                f"{row.stage} begins {_first(ours)} here and {_first(official[row.stage])} officially"
            )
        if not row.passed:
            why = causes(row.stage, ours, official[row.stage], before, weights, heads)
            if carry:
                verdict.stuck = carried(ours, official[row.stage], weights.values())
            verdict.partings.append(PartedStage(row.stage, why, carry and not verdict.stuck))
        before[row.stage] = official[row.stage]
        if row.stage == last or verdict.stuck:
            break
    return verdict


def _first(tensor: Tensor) -> str:
    return "[" + ", ".join(f"{value:.7g}" for value in tensor.flatten()[:5].tolist()) + ", ...]"


def rebuild(
    source: str,
    texts: Sequence[str] = (),
    stage: str = "",
    dtype: str = "float32",
    types: Sequence[Sequence[int]] | None = None,
    generate: int = GENERATED,
    carry: bool = False,
    official: Callable[[dict[str, Any]], Official] = ask,
) -> xr.Dataset:
    """Rebuild a model from its files alone and compare every stage with the official model's own tensors.

    The official model runs in a process of its own and hands over a file. Then the first text's greedy
    continuation is compared, token by token.

    Args:
        source: a folder, a hub id or a specimen.
        texts: what both models read; of several, the shorter ones are padded. Without them, two short
            sentences.
        stage: the last stage to compare.
        dtype: float32, or float64 to tell rounding from error.
        types: a type for every token of every text (BERT).
        generate: how many tokens to continue greedily.
        carry: at a stage that parts take the official tensor and go on.
        official: how the official tensors are had.

    Returns:
        For every stage its shape, the largest difference from the official tensor and how many decimals
        match.

    Raises:
        CheckpointError: no rebuilt architecture has such tensors, or the folder is not whole.
        ValueError: a variant that is not rebuilt, a wrong dtype, an unknown stage, an empty text.

    Examples:
        >>> data = regraft.rebuild("specimen:gpt2", generate=2)
        >>> dict(data.largest.sizes), bool((data.decimals >= 5).all())
        ({'stage': 53}, True)
    """
    if dtype not in NEEDED:
        raise ValueError(f"dtype {dtype!r} cannot be compared in: choose {' or '.join(NEEDED)}")
    started = time.perf_counter()
    folder, name = resolve(source)
    rebuilt = open_rebuilt(folder, DTYPES[dtype], name)
    given = list(texts) or (
        list(TEXTS) if (folder / "tokenizer.json").is_file() else ["5 6 7 8 9", "10 11 12"]
    )
    ids = token_ids(folder, given)
    rebuilt.check_ids(ids)
    inputs = model_inputs(rebuilt.config, ids, rebuilt.two_stacks, types)
    wanted = generate if rebuilt.module.GENERATES and not stage else 0
    stated = official(order_of(rebuilt, dtype, ids, given, inputs, wanted))
    if ids != stated.rows:
        wrong = next(i for i, (a, b) in enumerate(zip(ids, stated.rows, strict=True)) if a != b)
        raise ValueError(
            f"the two tokenizers part on {given[wrong]!r}: {ids[wrong]} here, {stated.rows[wrong]} officially"
        )
    if stage and stage not in stated.tensors:
        near = ", ".join(get_close_matches(stage, stated.tensors, 6, 0.3)) or ", ".join(
            list(stated.tensors)[:6]
        )
        raise ValueError(f"there is no stage {stage!r}: stages like it are {near}")
    verdict = _compared(rebuilt, inputs, stated, dtype, stage, carry)
    same, unused = "", []
    if not verdict.parted and not stage:
        unused = rebuilt.weights.unused
        if stated.facts["generates"]:
            with torch.no_grad():
                same = _same(rebuilt.greedy(inputs, wanted), stated.generated)
    return _dataset(rebuilt, verdict, stated, unused, same, time.perf_counter() - started, given)


def _compared(
    rebuilt: Rebuilt, inputs: Mapping[str, Tensor], stated: Official, dtype: str, stage: str, carry: bool
) -> Verdict:
    """The comparison; a tensor that is not there, or shapes that do not fit, mean that the variant is not
    rebuilt."""
    verdict = Verdict()
    try:
        with torch.no_grad():
            stages = (
                pair for pair in rebuilt.stages(inputs) if pair[0] not in HEAD or pair[0] in stated.tensors
            )
            return verify_stages(
                stages, stated.tensors, rebuilt.weights, rebuilt.heads, dtype, stage, verdict, carry
            )
    except (KeyError, RuntimeError) as error:
        where = f"behind {verdict.rows[-1].stage}" if verdict.rows else "at its first stage"
        what = f"it has no tensor {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise CheckpointError(
            f"{rebuilt.name} is no {rebuilt.architecture} of a kind that is rebuilt here: {where}, {what}"
        ) from error


def order_of(
    rebuilt: Rebuilt,
    dtype: str,
    ids: list[list[int]],
    texts: list[str],
    inputs: Mapping[str, Tensor],
    generate: int,
) -> dict[str, Any]:
    """What the process of the official model is told."""
    return {
        "folder": str(rebuilt.folder),
        "architecture": rebuilt.architecture,
        "prefix": rebuilt.module.PREFIX,
        "dtype": dtype,
        "rows": ids,
        "texts": texts,
        "inputs": {name: value.tolist() for name, value in inputs.items()},
        "generate": generate,
        "threads": torch.get_num_threads(),
        "ends": rebuilt.ends,
        "pooling": rebuilt.config["pooling"] if rebuilt.module is bert else "",
        "normalises": rebuilt.config["normalises"],
    }


def _same(ours: list[int], official: list[int]) -> str:
    if ours == official:
        return f"{len(ours)} tokens continued greedily are the same"
    place = next(
        (i for i, (a, b) in enumerate(zip(ours, official, strict=False)) if a != b),
        min(len(ours), len(official)),
    )
    return f"the greedy continuations part at token {place}: {ours} here, {official} officially"


def _dataset(
    rebuilt: Rebuilt,
    verdict: Verdict,
    stated: Official,
    unused: list[str],
    same: str,
    seconds: float,
    texts: list[str],
) -> xr.Dataset:
    found = verdict.rows
    went_on = {one.stage for one in verdict.partings if one.carried}
    left = rebuilt.config["pooling"] and rebuilt.module is not bert
    headless = rebuilt.module.GENERATES and "logits" not in stated.tensors
    notes = [f"The folder's pooling ({rebuilt.config['pooling']}) is not compared"] if left else []
    notes += [f"{stated.facts['class']} has no head, so no logits are compared"] if headless else []
    return xr.Dataset(
        {
            "largest": ("stage", [row.largest for row in found], {"units": "largest absolute difference"}),
            "mean": ("stage", [row.mean for row in found], {"units": "mean absolute difference"}),
            "decimals": (
                "stage",
                [row.decimals for row in found],
                {"units": "decimals that match, values above 1 scaled to 1 (17: equal to the bit)"},
            ),
            "shape_of_ours": (
                "stage",
                [" x ".join(map(str, row.shape)) for row in found],
                {"units": "of the rebuilt tensor"},
            ),
            "shape_of_official": (
                "stage",
                [" x ".join(map(str, r.official_shape)) for r in found],
                {"units": "of the official one"},
            ),
            "carried": (
                "stage",
                [int(row.stage in went_on) for row in found],
                {"units": "1: it parts, and the official tensor went on in its place"},
            ),
        },
        coords={"stage": [row.stage for row in found]},
        attrs={
            **provenance(rebuilt),
            "experiment": "rebuild",
            "architecture": rebuilt.architecture,
            "official": (
                f"{stated.facts['class']} of transformers {stated.facts['transformers']},"
                " in a process of its own"
            ),
            "needed": NEEDED[str(rebuilt.dtype).removeprefix("torch.")],
            "parted": verdict.parted,
            "causes": "; ".join(verdict.causes),
            "partings": " | ".join(f"{one.stage}: {'; '.join(one.causes)}" for one in verdict.partings),
            "stuck": verdict.stuck,
            "values": verdict.values,
            "generated": same,
            "agrees": int(not verdict.parted and " part at " not in same),
            "notes": "; ".join(notes),
            "unused": ", ".join(unused),
            "texts": " | ".join(texts),
            "seed": 0,
            "seconds": round(seconds, 3),
        },
    )
