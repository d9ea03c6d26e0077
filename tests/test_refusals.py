"""Variants and metrics that mean nothing are refused, and those that could be taken for another are read
right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regraft.experiments.intervene.ablate import ablate
from regraft.experiments.intervene.knockout import knockout
from regraft.experiments.intervene.noise import noise
from regraft.experiments.intervene.swap import swap
from regraft.model.load import load
from regraft.sweeps.metrics import kl_to_clean, loss, token_logit
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Add, Noise, Replace, Scale, Variant, Zero
from small import METRIC, ids, opened, recorded, reference


@pytest.fixture(scope="module")
def model():
    return opened("llama")


@pytest.mark.parametrize(
    "mask",
    [
        [False, False, True, False, True, False],
        torch.tensor([False, False, True, False, True, False]),
        np.array([False, False, True, False, True, False]),
        True,
        np.True_,
    ],
)
def test_a_mask_is_no_list_of_positions(model, mask):
    with pytest.raises(ValueError, match="is a mask: give the numbers of its positions"):
        sweep(recorded(model, 6), [Variant([Zero("1.z", position=mask)])], METRIC)


@pytest.mark.parametrize("position", [1.5, [0, 2.0], "3", torch.tensor([0.5])])
def test_a_fraction_is_no_position(model, position):
    with pytest.raises(ValueError, match="is no whole number"):
        sweep(recorded(model, 6), [Variant([Zero("1.z", position=position)])], METRIC)


@pytest.mark.parametrize(
    "position", [np.int64(2), torch.tensor(2), [np.int64(2)], torch.tensor([2]), range(2, 3)]
)
def test_whole_numbers_of_any_kind_are_positions(model, position):
    recording = recorded(model, 6)
    found = sweep(recording, [Variant([Zero("1.z", position=position)])], METRIC)
    assert torch.equal(
        found.values["d"], sweep(recording, [Variant([Zero("1.z", position=2)])], METRIC).values["d"]
    )


@pytest.mark.parametrize("position", [1.5, True, "last"])
def test_a_metric_reads_a_whole_position(model, position):
    for metric in (token_logit(7, position), kl_to_clean(position)):
        with pytest.raises(ValueError, match="is no position: write a whole number"):
            sweep(recorded(model, 6), [Variant()], metric)
    assert sweep(recorded(model, 6), [Variant()], token_logit(7, np.int64(-1))).deviation == 0.0


def test_a_route_made_for_another_number_of_blocks_is_refused(model):
    recording = recorded(model, 6)
    for route in (Route.skip(3, {1}), Route.swap(3, 0, 1), Route.repeat(3, 1, 2), Route.replace(3, {})):
        with pytest.raises(ValueError, match="the route was made for 3 blocks, the model has 4"):
            sweep(recording, [Variant(route=route)], METRIC)
    shorter = [Variant(route=Route.order([0, 1, 2]))]
    assert torch.allclose(
        sweep(recording, shorter, METRIC).values["d"], reference(model, recording, shorter), atol=1e-5
    )


@pytest.mark.parametrize("times", [-1, 1.5, True])
def test_a_block_is_repeated_a_whole_number_of_times(times):
    with pytest.raises(ValueError, match=r"cannot be run -1 times|is no number of times"):
        Route.repeat(4, 1, times)
    assert [stop.block for stop in Route.repeat(4, 1, 0).stops] == [0, 2, 3]
    assert [stop.block for stop in Route.repeat(4, 1, 3).stops] == [0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("block", [4, -1, 1.0, True])
def test_a_route_names_blocks_by_number(block):
    with pytest.raises(ValueError, match=r"there is no block|is no block"):
        Route.skip(4, {block})


def test_a_position_from_the_end_needs_a_source_that_ends_there(model):
    """Source and target are batches of unequal prompts that end in different places."""
    source, target = recorded(model, 10, 6), recorded(model, 6, 10, seed=40)
    for edit in (
        Replace("1.resid_pre", source["1.resid_pre"], position=-1),
        Add("1.z", source["1.z"], position=[0, -1]),
    ):
        with pytest.raises(
            ValueError,
            match=r"counts from the end of prompts of \[6, 10\] tokens, its value comes from prompts of",
        ):
            sweep(target, [Variant([edit])], METRIC)
    derived = Replace("1.resid_pre", 2 * source["1.resid_pre"], position=-1)
    with pytest.raises(
        ValueError, match="comes from prompts of unknown lengths: give the values at the edited positions"
    ):
        sweep(target, [Variant([derived])], METRIC)
    rows = torch.arange(2)
    at_the_end = source["1.resid_pre"][rows, source.lengths_B - 1][:, None]
    found = sweep(target, [Variant([Replace("1.resid_pre", at_the_end, position=-1)])], METRIC)
    hooked = []
    for b, length in enumerate((6, 10)):
        alone = model.record(target.ids_BT[b, :length].tolist())
        hooked.append(
            reference(model, alone, [Variant([Replace("1.resid_pre", at_the_end[b], position=length - 1)])])
        )
    assert torch.allclose(found.values["d"][0], torch.cat(hooked)[:, 0], atol=1e-5)


def test_a_source_of_the_same_lengths_is_read_at_its_own_end(model):
    source, target = recorded(model, 10, 6), recorded(model, 10, 6, seed=40)
    edits = [Replace("1.resid_pre", source["1.resid_pre"], position=-1), Scale("2.z", 0.5, position=-2)]
    variants = [Variant([edit]) for edit in edits]
    assert torch.allclose(
        sweep(target, variants, METRIC).values["d"], reference(model, target, variants), atol=1e-5
    )
    one, other = recorded(model, 8), recorded(model, 8, seed=50)
    even = [Variant([Replace("1.z", 0.5 * other["1.z"], position=-1)])]
    assert torch.allclose(sweep(one, even, METRIC).values["d"], reference(model, one, even), atol=1e-5)


def test_a_row_without_a_scored_token_has_no_mean(model):
    scored = torch.tensor([[False, True, True, False, False, False], [False] * 6])
    recording = model.record([ids(6, 1), ids(6, 2)], scored=scored)
    with pytest.raises(ValueError, match="no token of prompt 1 is scored"):
        sweep(recording, [Variant()], loss())


@pytest.mark.parametrize("size", [float("nan"), float("inf"), -float("inf")])
def test_an_edit_has_a_finite_size(model, size):
    for edit in (Scale("1.z", size), Noise("1.z", size)):
        with pytest.raises(ValueError, match="write a finite number"):
            sweep(recorded(model, 6), [Variant([edit])], METRIC)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda model: ablate(model, threshold=float("nan")), "is no size of a change"),
        (lambda model: ablate(model, threshold=-0.1), "is no size of a change"),
        (lambda model: swap(model, tolerance=-1.0), "is no share of the loss"),
        (lambda model: noise(model, levels=[0.1, float("nan")]), "is no standard deviation"),
        (lambda model: noise(model, levels=[-0.1]), "is no standard deviation"),
        (
            lambda model: knockout(model, mode="greedy", limit=float("nan"), count=1, tokens=2),
            "must be above 1",
        ),
    ],
)
def test_an_experiments_sizes_are_numbers_that_mean_something(run, words):
    with pytest.raises(ValueError, match=words):
        run(load("specimen:gpt2", pack=False))
