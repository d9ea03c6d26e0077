"""Stages compared and traps named on tensors made for it; a checkpoint's files as a rebuilt model reads
them."""

from __future__ import annotations

import math

import pytest
import torch

from regraft.reference.checkpoint_reader import (
    Named,
    _own_name,
)
from regraft.reference.diagnose import ACTIVATIONS, _sinusoids, causes
from regraft.reference.diagnose_norms import epsilon, not_normed
from regraft.reference.stage_case import StageCase, _in_checkpoint, constant
from regraft.reference.stage_compare import SameTensorError, compare, matching_decimals, rows


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("difference", "decimals"),
    [
        (0.0, 17),
        (0.5, 0),
        (0.05, 1),
        (0.051, 0),
        (0.0049, 2),
        (5.1e-6, 4),
        (4.9e-6, 5),
        (1e-30, 17),
        (3.0, 0),
        (math.inf, 0),
        (math.nan, 0),
    ],
)
def test_decimals_that_match(difference, decimals):
    assert matching_decimals(difference) == decimals


def test_a_stage_is_compared_by_its_largest_difference():
    official = numbers(2, 3, 4).clamp(-1, 1)
    ours = official.clone()
    ours[1, 2, 3] += 0.004
    ours[0, 0, 0] -= 0.002
    row = compare("a", ours, official, 2)
    assert (row.stage, row.shape, row.decimals, row.passed) == ("a", (2, 3, 4), 2, True)
    assert row.largest == pytest.approx(0.004)
    assert row.mean == pytest.approx(0.006 / 24)
    assert not compare("a", ours, official, 3).passed
    assert compare("a", 100 * ours, 100 * official, 2).decimals == 2, "values above 1 are scaled to 1"
    one = official[:1].expand(2, -1, -1)
    assert compare("a", official[:1].clone(), one, 17).decimals == 17
    assert not compare("a", official[:, :2].clone(), official, 0).passed
    assert not compare("a", official[0].clone(), official[:1], 0).passed
    broken = official.clone()
    broken[0, 0, 0] = math.nan
    assert compare("a", broken, official, 1).largest == math.inf


def test_what_a_mask_rules_out_on_both_sides_is_equal():
    official = numbers(1, 3, 3)
    ours = official.clone()
    official[0, 0, 1], ours[0, 0, 1] = -math.inf, torch.finfo(torch.float32).min
    assert compare("scores", ours, official, 17).passed
    ours[0, 0, 1] = 0.0
    assert not compare("scores", ours, official, 1).passed


def test_a_stage_compared_with_itself_is_refused():
    official = numbers(4, 4)
    for ours in (official, official[:2], official.view(16), official.t()):
        with pytest.raises(SameTensorError):
            compare("a", ours, official, 1)
    other = numbers(4, 4)
    with pytest.raises(SameTensorError):
        list(rows([("a", other)], {"a": official, "b": other[:1]}, 1))
    with pytest.raises(LookupError, match="c"):
        list(rows([("c", other)], {"a": official}, 1))
    found = list(
        rows(
            [("a", other), ("b", numbers(2, seed=3)), ("c", numbers(2))],
            {"a": official, "b": numbers(2), "c": numbers(2)},
            5,
        )
    )
    assert [row.stage for row, _ in found] == ["a", "b"], "up to and with the first that parts"


def cause(stage, ours, official, before=None, weights=None, heads=2):
    (said,) = causes(stage, ours, official, before or {}, weights or {}, heads)
    return said


def test_shapes_and_things_that_are_no_numbers():
    assert "exchanged" in cause("a", numbers(2, 3), numbers(3, 2))
    assert "exchanged" not in cause("a", numbers(2, 3), numbers(3, 3))
    assert "exchanged" not in cause("a", numbers(3), numbers(2))
    nan = numbers(2, 3)
    nan[0, 0] = math.nan
    assert "NaN appears here" in cause("a", nan, numbers(2, 3))
    assert "no known trap" in cause("a", numbers(2, 30), numbers(2, 30, seed=1))


def masked(allowed, seed=0):
    return torch.where(allowed, numbers(1, 1, *allowed.shape, seed=seed), -math.inf)


def test_masks():
    full = torch.ones(4, 4, dtype=torch.bool)
    causal, window = full.tril(), full.tril() & full.triu(-1)
    said = cause("0.scores", masked(full), masked(causal))
    assert said.startswith("the official model rules out")
    assert "causal mask is missing" in said
    said = cause("0.scores", masked(causal), masked(full))
    assert said.startswith("this one rules out")
    assert "the causal mask has no place here" in said
    other = cause("0.scores", masked(causal), masked(window))
    assert "causal mask is missing" not in other
    assert "window" in other


def test_dropout():
    official = numbers(4, 50)
    kept = torch.rand(4, 50, generator=torch.Generator().manual_seed(1)) > 0.2
    said = cause("0.attn_out", torch.where(kept, official / 0.8, 0.0), official)
    assert "here" in said
    assert "p = 0.20" in said
    assert "officially" in cause("0.attn_out", official, torch.where(kept, official / 0.8, 0.0))
    half = torch.where(official > 0, official, 0.0)
    share = float(((half != 0) & ~kept).double().mean())
    assert f"{share:.0%} of the values are 0 here" in cause(
        "0.mlp_act", torch.where(kept, half / 0.8, 0.0), half
    )
    assert "dropout" not in cause("0.attn_out", torch.where(kept, official, 0.0), official)
    zeros = torch.where(kept & (official > 1), 0.0, official)
    assert bool((zeros != official).any())
    assert "dropout" not in cause("0.attn_out", torch.where(kept, official / 0.8, 0.0), zeros), (
        "not all else is scaled"
    )


@pytest.mark.parametrize(
    ("stage", "before", "width", "words"),
    [
        ("0.scores", {"0.q": (1, 3, 8)}, 4, "a head's width"),
        ("0.scores", {"0.qkv": (1, 3, 24)}, 4, "a head's width"),
        ("0.embed", {}, 9, "a scale is missing"),
        ("logits", {"final_norm": (1, 3, 16)}, 16, "the model's width"),
    ],
)
def test_one_factor_everywhere(stage, before, width, words):
    stages = {name: numbers(*shape) for name, shape in before.items()}
    ours = numbers(1, 3, 9)
    for factor, said in (
        (width**0.5, f"√{width}"),
        (width**-0.5, f"1/√{width}"),
        (float(width), f"= {width},"),
        (1 / width, f"= 1/{width},"),
    ):
        found = cause(stage, ours, factor * ours, stages)
        assert said in found
        assert words in found
    assert "times these everywhere" in cause(stage, ours, 1.37 * ours, stages)
    assert "times these everywhere" not in cause(stage, ours, 1.001 * ours, stages)
    assert constant(2 * ours, ours) == pytest.approx(2)
    assert constant(ours, 0 * ours) is None
    assert constant(ours, numbers(1, 3, 9, seed=4)) is None


def test_scores_with_a_bias():
    q, k, bias = numbers(1, 3, 8), numbers(1, 3, 8, seed=1), numbers(1, 2, 3, 3, seed=2)
    raw = torch.einsum("bqhd,bkhd->bhqk", q.unflatten(-1, (2, 4)), k.unflatten(-1, (2, 4)))
    before = {"0.q": q, "0.k": k}
    assert "√4 here and not officially" in cause("0.scores", raw / 2 + bias, raw + bias, before)
    assert "√4 officially and not here" in cause("0.scores", raw + bias, raw / 2 + bias, before)
    assert "another scale" in cause("0.scores", 0.7 * raw + bias, raw + bias, before)
    assert "relative bias" in cause("0.scores", raw, raw + distance_bias(3), before)
    assert "relative bias" not in cause("0.scores", raw, raw + bias, before)


def distance_bias(length):
    table = numbers(2, 2 * length - 1, seed=5)
    places = torch.arange(length)
    return table[:, places[None] - places[:, None] + length - 1][None]


def test_a_vector_that_is_missing_is_named():
    ours, bias, table = numbers(2, 3, 6), numbers(6, seed=1), numbers(2, 6, seed=2)
    bias[1] = 0.0
    other = torch.cat([bias[:2], numbers(4, seed=3)])
    weights = {"other.bias": other, "x.bias": bias, "type_table": table, "large": numbers(100, 6)}
    assert "x.bias is missing" in cause("0.out", ours, ours + bias, weights=weights)
    assert "x.bias is missing" in cause("0.out", ours, ours - bias, weights=weights)
    assert "row 1 of type_table (the type" in cause("embed", ours, ours + table[1], weights=weights)
    assert "does not hold" in cause("0.out", ours, ours + 3, weights={"b": bias})
    assert _in_checkpoint(weights["large"][7], weights) == ""
    assert "same vector" not in cause("0.out", ours[:1, :1], ours[:1, :1] + numbers(6, seed=8))


def test_positions_that_are_computed_or_shifted():
    table = numbers(12, 8)
    for shift, said in ((1, "1 too low"), (2, "2 too low"), (-1, "1 too high"), (-2, "2 too high")):
        assert said in cause("positions", table[3 - shift : 9 - shift][None], table[3:9][None])
    sinusoids = _sinusoids(6, 8)
    for name, made in sinusoids.items():
        assert name in cause("positions", made[None], table[:6][None])
    first, second = sinusoids.values()
    for p in range(6):
        for i in range(4):
            angle = p / 10000 ** (2 * i / 8)
            assert first[p, 2 * i : 2 * i + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)])
            assert [float(second[p, i]), float(second[p, 4 + i])] == pytest.approx(
                [math.sin(angle), math.cos(angle)]
            )


def test_norms_that_stand_elsewhere_or_have_another_epsilon():
    raw, weight = 0.02 * numbers(2, 3, 32), numbers(32, seed=1).abs() + 0.5

    def normed(eps):
        return raw / (raw.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight

    assert "epsilon" in cause("0.norm", normed(1e-5), normed(1e-6))
    assert "comes out of the norm n officially" in cause(
        "0.norm", 5 * numbers(2, 3, 32, seed=4), normed(0.0), weights={"n.weight": weight}
    )
    assert "epsilon" not in cause("0.attn_out", normed(1e-5), normed(1e-6))


@pytest.mark.parametrize(
    ("stage", "asked"),
    [
        ("0.norm", True),
        ("0.attn_norm", True),
        ("0.resid_post", True),
        ("0.attn_out", False),
        ("0.mlp_out", False),
    ],
)
def test_only_stages_that_a_norm_may_end_are_asked_for_one(stage, asked):
    raw, weight, other = (
        x.double()
        for x in (0.02 * numbers(2, 3, 32), numbers(32, seed=1).abs() + 0.5, numbers(2, 3, 32, seed=4))
    )
    mean = raw.pow(2).mean(-1, keepdim=True)
    exact, near = (raw / (mean + eps).sqrt() * weight for eps in (0.0, 1e-6))
    assert bool(not_normed(StageCase(stage, 5 * other, exact, {}, {"n.weight": weight}, 2))) == asked
    assert bool(epsilon(StageCase(stage, near, exact, {}, {"n.weight": weight}, 2))) == asked
    assert not not_normed(StageCase(stage, exact, exact, {}, {"n.weight": weight}, 2))


def test_logits_of_another_matrix():
    final, own, tied = numbers(1, 3, 8), numbers(20, 8, seed=1), numbers(20, 8, seed=2)
    before = {"embed": numbers(1, 3, 8, seed=3), "final_norm": final}
    said = cause("logits", final @ tied.T, final @ own.T, before, {"lm_head": own, "wte": tied})
    assert "these logits come from wte" in said


@pytest.mark.parametrize("gate", [False, True])
def test_activations_are_told_apart(gate):
    inner, up = 3 * numbers(1, 4, 40), numbers(1, 4, 40, seed=1)
    before = {"0.mlp_gate": inner, "0.mlp_up": up} if gate else {"0.mlp_in": inner}
    names = list(ACTIVATIONS)
    for mine, theirs in zip(names, names[1:] + names[:1], strict=True):
        a, b = (ACTIVATIONS[name](inner) * (up if gate else 1) for name in (mine, theirs))
        assert cause("0.mlp_act", a, b, before) == f"the activation is {mine} here and {theirs} officially"


def test_rotations():
    length, width = 5, 8
    q, k = numbers(1, length, 2 * width), numbers(1, length, 2 * width, seed=1)
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    cos, sin = (torch.cat([f(angle), f(angle)], -1).double() for f in (torch.cos, torch.sin))
    heads = [x.unflatten(-1, (2, width)).transpose(1, 2) for x in (q, k)]

    def scores(turn):
        a, b = map(turn, heads)
        return a @ b.transpose(2, 3) / width**0.5

    def halves(x):
        return x * cos + torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1) * sin

    def woven(x):
        c, s = cos[:, : width // 2].repeat_interleave(2, -1), sin[:, : width // 2].repeat_interleave(2, -1)
        return x * c + torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2) * s

    before = {"rope.cos": cos[None], "rope.sin": sin[None], "0.q": q, "0.k": k}
    assert "in these scores neighbours" in cause("0.scores", scores(woven), scores(halves), before)
    assert "in the official scores neighbours" in cause("0.scores", scores(halves), scores(woven), before)
    assert "in these scores nothing" in cause("0.scores", scores(lambda x: x), scores(halves), before)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    ours, official = (scores(turn).masked_fill(later, -math.inf) for turn in (woven, halves))
    assert "in these scores neighbours" in cause("0.scores", ours, official, before), (
        "what a mask rules out is not compared"
    )


def test_numbers_in_another_order_and_rounding():
    official = numbers(2, 5, 6)
    assert "another order" in cause("0.z", official.transpose(0, 1).reshape(2, 5, 6), official)
    assert "rounding" in cause("0.z", official + 3e-6 * numbers(2, 5, 6, seed=1), official)
    assert "no known trap" in cause("0.z", official + 3e-4 * numbers(2, 5, 6, seed=1), official)
    known = {"decoder.2.cross_q": official, "decoder.2.q": official}
    case = StageCase("decoder.2.cross_scores", official, official, known, {}, 2)
    assert case.kind == "scores"


def test_names_that_were_asked_for_and_names_that_were_not():
    one = numbers(2)
    named = Named({"a": one, "copy of a": one.clone(), "b": numbers(3), "c": numbers(2, seed=1)})
    assert named["a"] is one
    assert "b" in named
    assert len(list(named.items())) == len(named) == 4
    assert named.unused == ["b", "c"]
    assert _own_name("model.x.LayerNorm.gamma", "model.") == "x.LayerNorm.weight"
    assert _own_name("x.beta", "model.") == "x.bias"
    assert _own_name("gamma", "") == "weight"
