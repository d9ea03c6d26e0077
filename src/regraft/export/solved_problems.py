"""Held-out problems solved by the models that adapters are compared with: right answers, closed thoughts,
length."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile

import torch
import xarray as xr

from regraft.core.progress import advance
from regraft.data.generation import Sampling, write_on
from regraft.data.problems import Attempt, Problem, judged, of_one_length
from regraft.export.transcoder_certificate import MODELS, Standing
from regraft.model.model import Model

BATCH = 64
"""Problems that are written on together."""
UNITS = {
    "right": "share of problems with the right answer",
    "closed": "share of problems whose thought is closed",
    "length": "tokens written for a problem, mean",
}


@dataclass(frozen=True)
class Solution:
    """What was written on behind a problem, of how many tokens, and what that shows."""

    text: str
    tokens: int
    attempt: Attempt


def solve(
    model: Model, problems: Sequence[Problem], new_tokens: int, ends: Collection[int] = ()
) -> list[Solution]:
    """Write on behind every problem, greedily whatever the model's own settings are, as the model runs now;
    those of one length together. A text ends in front of the first of `ends` or of the model's own."""
    found: dict[int, Solution] = {}
    tokenizer, stops = model.tokenizer, {*ends, *end_tokens(model)}
    for numbers in of_one_length(tokenizer, problems):
        for start in range(0, len(numbers), BATCH):
            some = numbers[start : start + BATCH]
            prompts = [problems[number].prompt for number in some]
            ids = torch.tensor(tokenizer(prompts, add_special_tokens=False)["input_ids"], device=model.device)
            for number, row in zip(some, write_on(model, ids, Sampling(new_tokens)), strict=True):
                kept = list(takewhile(lambda token: token not in stops, row))
                text = tokenizer.decode(kept)
                found[number] = Solution(text, len(kept), judged(problems[number], text))
            advance("solving problems", len(found), len(problems))
    return [found[number] for number in range(len(problems))]


def end_tokens(model: Model) -> set[int]:
    """Ids that end a text by the model's settings."""
    stated = model.hf.generation_config.eos_token_id
    return set(stated if isinstance(stated, list) else [] if stated is None else [stated])


def add_problem_rates(
    data: xr.Dataset, standing: Standing, problems: Sequence[Problem], new_tokens: int
) -> None:
    """Let base, target, hybrid and adapted model solve problems; what comes of it stands in the certificate
    as `right`, `closed` and `length`."""
    solved: dict[str, list[Solution]] = {}
    for name, model, placed in (("target", standing.target, nullcontext()), *standing.named()):
        with placed:
            solved[name] = solve(model, problems, new_tokens, end_tokens(standing.target))
    rates = {
        "right": [[one.attempt.right for one in solved[name]] for name in MODELS],
        "closed": [[one.attempt.closed for one in solved[name]] for name in MODELS],
        "length": [[one.tokens for one in solved[name]] for name in MODELS],
    }
    for name, values in rates.items():
        means = [sum(row) / len(row) for row in values]
        data[name] = ("model", means, {"units": UNITS[name]})
    data.attrs |= {"problems": len(problems), "problem_tokens": new_tokens}


def problem_sentence(data: xr.Dataset) -> str:
    """Who solves how many problems, and how."""
    each = [
        f"{name} {float(data.right.sel(model=name)):.1%} right, {float(data.closed.sel(model=name)):.1%} of"
        f" the thoughts closed, {float(data.length.sel(model=name)):.1f} tokens"
        for name in MODELS
    ]
    return f"{data.attrs['problems']:,} held-out problems: {'; '.join(each)}"
