"""What single features of adapters do with the hesitation of the tuned specimen: necessary, sufficient, told.

A worked sum hesitates where its first sum came out wrong. Problems are given up to there, with a wrong first
sum or a right one, and the adapted model writes on, greedily. Features are chosen by what they add to the
score of " Wait" over that of " Then" (value times gradient, over all tokens of the problem), some at a time,
each time with those chosen before ablated, on problems that are not among those counted. They are ablated
where a hesitation is due, and held at a multiple of their mean there where none is, beside random features
that are about as frequent. Shapes: L blocks, F features, N problems.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.data.problems import Problem, of_one_length, worked_problems
from regraft.data.records import PADDING
from regraft.export.solved_problems import solve
from regraft.export.transcoder_certificate import Standing
from regraft.features.feature_sources import adapter_features, neuron_features, random_features
from regraft.jobs.transcoder_text import worked_sums
from regraft.model.model import Model
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import beside
from regraft.specimens import almanac
from regraft.training.tasks.transcoder_task import inputs_of, split_batch

WAIT, THEN = " Wait", " Then"
"""How a hesitation begins, and how the text goes on without one."""
PROBLEMS, TAUGHT = 200, 120
"""Problems that are counted, and others that features are chosen on."""
CHOSEN, A_ROUND = (1, 16, 64, 256), 16
"""How many features are changed, and how many are chosen between two gradients."""
HELD_AT = (1.0, 4.0)
"""Multiples of their mean in front of a hesitation that features are held at."""
SELDOM = 0.1
"""Share of the hesitations in front of which a feature must be above zero to be named as one of theirs."""
NEW_TOKENS = 72
"""Tokens written behind a problem; a worked sum has fewer."""
Places = list[tuple[int, int]]


def sums(seed: int, count: int, wrong: bool) -> list[Problem]:
    """Worked sums up to the end of the first sum, which came out wrong, or right."""
    drawn, made = random.Random(seed), []
    while len(made) < count:
        text = almanac.reasoning(drawn)
        if (WAIT in text) == wrong:
            answer = text.rpartition("Answer: ")[2].rstrip(".")
            made.append(Problem(text[: text.index(WAIT if wrong else THEN)], answer))
    return made


def hesitation(standing: Standing) -> dict[str, Any]:
    """Rates of hesitations and of right answers, features ablated, held, or neither."""
    due, not_due, free = sums(41, PROBLEMS, True), sums(42, PROBLEMS, False), worked_problems(PROBLEMS, 4711)
    taught = sums(31, TAUGHT, True)
    places, means = _chosen(standing, taught), _means(standing, taught)
    frequency = _frequency(standing)
    told: dict[str, Any] = {
        "features": [f"{block}.feature.{feature}" for block, feature in places[:16]],
        "due": {"nothing changed": _rates(standing, due, {})},
        "not due": {"nothing changed": _rates(standing, not_due, {})},
        "whole": {
            "nothing changed": _rates(standing, free, {}),
            "target": _counted(standing.target, free),
        },
    }
    for count in CHOSEN:
        chosen = places[:count]
        others = _like(frequency, chosen, np.random.default_rng(count))
        for name, some in ((f"{count} chosen", chosen), (f"{count} random", others)):
            off = {"scaled": dict.fromkeys(some, 0.0)}
            told["due"][f"{name} ablated"] = _rates(standing, due, off)
            told["whole"][f"{name} ablated"] = _rates(standing, free, off)
            for times in HELD_AT:
                held = {"clamped": {place: times * float(means[place]) for place in some}}
                told["not due"][f"{name} held at {times:g} times"] = _rates(standing, not_due, held)
    return told


def fires_before(standing: Standing, most: int = 5) -> dict[str, Any]:
    """The features that are above zero most surely in front of " Wait" and nowhere else in worked sums: share
    of a feature's tokens that stand there (precision), and of the places where it is above zero (recall)."""
    wait = standing.target.tokenizer(WAIT, add_special_tokens=False)["input_ids"][0]
    source, text = adapter_features(standing.carrier, standing.graft), worked_sums(standing.target, 400, 33)
    active_LF, hits_LF, places = 0.0, 0.0, 0
    for start in range(0, len(text), 16):
        ids_BT, kind_BT = split_batch(text.rows(range(start, min(start + 16, len(text)))))
        real_BT = kind_BT > PADDING
        there_BT = (ids_BT.roll(-1, 1) == wait) & real_BT
        with torch.no_grad():
            values = source.values(inputs_of(ids_BT, kind_BT))
        active_LF = active_LF + torch.stack([(one > 0)[real_BT].sum(0) for one in values]).numpy()
        hits_LF = hits_LF + torch.stack([(one > 0)[there_BT].sum(0) for one in values]).numpy()
        places += int(there_BT.sum())
    precision_LF, recall_LF = hits_LF / np.maximum(active_LF, 1), np.asarray(hits_LF) / places
    sure_LF = np.where(recall_LF >= SELDOM, precision_LF, 0.0)
    best = np.argsort(-sure_LF, axis=None, kind="stable")[:most]
    found = [tuple(int(i) for i in np.unravel_index(place, sure_LF.shape)) for place in best]
    return {
        "places": places,
        "features": [
            {
                "name": f"{b}.feature.{f}",
                "precision": float(precision_LF[b, f]),
                "recall": float(recall_LF[b, f]),
            }
            for b, f in found
        ],
    }


def tells(standing: Standing) -> dict[str, Any]:
    """How well the best single feature tells, at the end of the first sum, that it came out wrong: chosen on
    one half of the problems, measured on the other, of adapters, neurons and random directions."""
    told: dict[str, Any] = {}
    texts = [sums(51, PROBLEMS, True), sums(52, PROBLEMS, False)]
    makers = {
        "adapters": lambda: adapter_features(standing.carrier, standing.graft),
        "neurons": lambda: neuron_features(standing.carrier, standing.graft),
        "random": lambda: random_features(
            standing.carrier, standing.graft, [worked_sums(standing.target, 64, 5)], seed=0
        ),
    }
    for name, make in makers.items():
        source = make()
        wrong, right = ([_last_values(standing, source, half) for half in _halves(some)] for some in texts)
        first = _area(wrong[0], right[0])
        best = np.unravel_index(int(np.argmax(np.abs(first - 0.5))), first.shape)
        found = float(_area(wrong[1], right[1])[best])
        told[name] = {
            "features": source.features * source.blocks, "best": f"{best[0]}.{best[1]}",
            "area": found if float(first[best]) > 0.5 else 1 - found,
        }  # fmt: skip
    return told


def _halves(problems: list[Problem]) -> tuple[list[Problem], list[Problem]]:
    return problems[::2], problems[1::2]


def _last_values(standing: Standing, source: Any, problems: Sequence[Problem]) -> np.ndarray:
    """Every feature's value at the last token, (N, L, F)."""
    found = []
    for ids in _batches(standing, problems):
        with torch.no_grad():
            values = source.values({"input_ids": ids})
        found.append(torch.stack([value[:, -1].float() for value in values], dim=1).numpy())
    return np.concatenate(found)


def _area(above_NLF: np.ndarray, below_NLF: np.ndarray) -> np.ndarray:
    """Chance (L, F) that a value of the first kind lies above one of the second, ties half."""
    more = (above_NLF[:, None] > below_NLF[None]).mean((0, 1))
    return more + 0.5 * (above_NLF[:, None] == below_NLF[None]).mean((0, 1))


def _batches(standing: Standing, problems: Sequence[Problem]) -> Iterator[Tensor]:
    tokenizer = standing.target.tokenizer
    for numbers in of_one_length(tokenizer, problems):
        texts = [problems[number].prompt for number in numbers]
        yield torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])


def _chosen(standing: Standing, problems: Sequence[Problem]) -> Places:
    """Features in the order of what they add, a round of them at a time."""
    chosen: Places = []
    while len(chosen) < max(CHOSEN):
        adds_LF = _adds(standing, problems, chosen)
        for place in chosen:
            adds_LF[place] = -np.inf
        best = np.argsort(-adds_LF, axis=None, kind="stable")[:A_ROUND]
        chosen += [(int(b), int(f)) for b, f in zip(*np.unravel_index(best, adds_LF.shape), strict=True)]
    return chosen


def _adds(standing: Standing, problems: Sequence[Problem], ablated: Places) -> np.ndarray:
    """What every feature (L, F) adds to the score of " Wait" over " Then", value times gradient, all tokens
    of a problem together, mean over problems."""
    tokenizer = standing.target.tokenizer
    wait, then = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (WAIT, THEN))
    carrier, graft = standing.carrier, standing.graft
    adds_LF = np.zeros((graft.shape.blocks, graft.shape.features))
    with (
        torch.enable_grad(),
        beside(carrier.hf, mlps_of(carrier), graft),
        graft.switch(scaled=dict.fromkeys(ablated, 0.0)),
    ):
        for ids in _batches(standing, problems):
            with graft.hearing() as heard:
                logits_NV = carrier.run(input_ids=ids).logits[:, -1]
            features = [own[0][1] for own in heard]
            gradients = torch.autograd.grad((logits_NV[:, wait] - logits_NV[:, then]).sum(), features)
            for block, (found, slope) in enumerate(zip(features, gradients, strict=True)):
                adds_LF[block] += (found.detach() * slope).sum((0, 1)).numpy()
    return adds_LF / len(problems)


def _means(standing: Standing, problems: Sequence[Problem]) -> np.ndarray:
    """Mean value (L, F) where a hesitation is due."""
    source = adapter_features(standing.carrier, standing.graft)
    return _last_values(standing, source, problems).mean(0)


def _frequency(standing: Standing) -> np.ndarray:
    """Share of the tokens (L, F) of worked sums at which a feature is above zero."""
    source, above, tokens = adapter_features(standing.carrier, standing.graft), 0.0, 0
    for ids in _batches(standing, worked_problems(TAUGHT, 61)):
        with torch.no_grad():
            values = source.values({"input_ids": ids})
        above = above + torch.stack([(value > 0).flatten(0, 1).sum(0) for value in values]).numpy()
        tokens += ids.numel()
    return np.asarray(above / tokens)


def _like(frequency: np.ndarray, chosen: Places, draw: np.random.Generator) -> Places:
    """As many other features, each drawn among those nearest in frequency to one that was chosen."""
    taken, others = set(chosen), []
    for place in chosen:
        order = np.argsort(np.abs(frequency - frequency[place]), axis=None, kind="stable")[
            : 4 * len(chosen) + 100
        ]
        near = [(int(b), int(f)) for b, f in zip(*np.unravel_index(order, frequency.shape), strict=True)]
        free = [one for one in near if one not in taken]
        others.append(free[int(draw.integers(len(free)))])
        taken.add(others[-1])
    return others


def _rates(standing: Standing, problems: Sequence[Problem], switched: dict[str, Any]) -> dict[str, float]:
    """Share of the texts that hesitate, and that end with the right answer."""
    with (
        beside(standing.carrier.hf, mlps_of(standing.carrier), standing.graft),
        standing.graft.switch(**switched),
    ):
        return _counted(standing.carrier, problems)


def _counted(model: Model, problems: Sequence[Problem]) -> dict[str, float]:
    found = solve(model, problems, NEW_TOKENS)
    waits = sum(WAIT.strip() in one.text for one in found) / len(found)
    return {"waits": waits, "right": sum(one.attempt.right for one in found) / len(found)}
