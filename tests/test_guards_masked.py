"""Traps in scores of which a mask rules some out on both sides: what is ruled out is not compared."""

from __future__ import annotations

import math

import torch

from regraft.reference.diagnose import causes

LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cause(ours, official, before):
    (said,) = causes(
        "0.scores", ours.masked_fill(LATER, -math.inf), official.masked_fill(LATER, -math.inf), before, {}, 2
    )
    return said


def test_one_factor_of_the_scores():
    official = numbers(2, 2, 5, 5)
    said = cause(official / 0.35, official, {"0.q": numbers(2, 5, 16), "0.k": numbers(2, 5, 16)})
    assert said.startswith("the official values are 0.35 times these everywhere")
    said = cause(official * 8**0.5, official, {"0.q": numbers(2, 5, 16), "0.k": numbers(2, 5, 8)})
    assert "1/√8, the root of a head's width: the division of the scores" in said


def test_a_factor_of_what_a_bias_is_added_to():
    q, k, bias = numbers(2, 5, 16), numbers(2, 5, 16, seed=1), numbers(1, 2, 5, 5, seed=2)
    heads = [x.unflatten(-1, (2, 8)).transpose(1, 2) for x in (q, k)]
    raw = heads[0] @ heads[1].transpose(2, 3)
    before = {"0.q": q, "0.k": k}
    assert cause(raw / 8**0.5 + bias, raw + bias, before).startswith(
        "q·k is divided by √8 here and not officially"
    )
    assert cause(raw + bias, raw / 8**0.5 + bias, before).startswith(
        "q·k is divided by √8 officially and not here"
    )
    assert "differs by 0.25 times itself" in cause(raw + bias, 1.25 * raw + bias, before)


def test_a_bias_of_head_and_distance():
    official, by_distance = numbers(2, 2, 5, 5), numbers(2, 9, seed=1)
    place = torch.arange(5)
    bias = by_distance[:, place[:, None] - place[None] + 4]
    assert "the relative bias" in cause(official - bias, official, {})
    assert "the relative bias" not in cause(official - bias - 0.1 * numbers(2, 2, 5, 5, seed=3), official, {})


def test_the_same_scores_in_another_order():
    official = numbers(2, 2, 5, 5)
    assert "in another order" in cause(official.flip(0), official, {})
