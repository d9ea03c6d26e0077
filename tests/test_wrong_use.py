"""The Python API in wrong or easy-going hands: made to work where the meaning is plain, else a sentence with
what to write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import regraft
from families import FAMILIES
from regraft.core.registry import experiments
from regraft.core.tolerance import gap
from regraft.model.load import load
from regraft.sweeps.metrics import loss, token_logit
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Add, Replace, Variant, Zero
from small import METRIC, opened, recorded, reference


@pytest.fixture(scope="module")
def model():
    return opened("llama")


@pytest.fixture(scope="module")
def recording(model):
    return recorded(model, 6)


@pytest.mark.parametrize("name", sorted(experiments()))
def test_a_name_or_a_bare_module_is_no_opened_model(name):
    function = getattr(regraft, name)
    for given, words in (
        (
            "specimen:qwen3",
            rf"{name} takes an opened model, not a str: regraft\.{name}\(regraft\.load\('specimen:qwen3'\)\)",
        ),
        (
            Path("folder"),
            rf"{name} takes an opened model, not a \w+Path: regraft\.{name}\(regraft\.load\('folder'\)\)",
        ),
        (torch.nn.Linear(2, 2), rf"{name} takes an opened model, not a Linear"),
    ):
        with pytest.raises(ValueError, match=words):
            function(given)


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("knockout", {"prompts": "one text"}, "a list, each a text"),
        ("knockout", {"prompts": [5]}, "a list, each a text"),
        ("knockout", {"count": 2.5}, "a whole number"),
        ("knockout", {"count": True}, "a whole number"),
        ("ablate", {"threshold": "high"}, "a number"),
        ("ablate", {"prompt": None}, "to be left out"),
        ("patch", {"exact": 1}, "True or False"),
        ("prune", {"save": 5}, "the name of a file or folder"),
    ],
)
def test_an_option_of_another_kind_is_named(name, options, wanted, model):
    (option,) = options
    with pytest.raises(ValueError, match=rf"{option}=.* of {name} is not {wanted}"):
        getattr(regraft, name)(model, **options)


def test_an_edit_and_a_route_are_variants(model, recording):
    edit, route = Zero("1.mlp_out"), Route.skip(4, {2})
    wanted = sweep(recording, [Variant([edit]), Variant(route=route)], METRIC).values["d"]
    for given in ([edit, route], (edit, Variant(route=route)), [Variant(edit), route]):
        assert gap(sweep(recording, given, METRIC).values["d"], wanted) <= model.rounding
    assert gap(sweep(recording, edit, METRIC).values["d"], wanted[:1]) <= model.rounding
    assert gap(wanted, reference(model, recording, [Variant([edit]), Variant(route=route)])) <= model.rounding


@pytest.mark.parametrize("value", [2, 2.0, [2.0] * 32, np.full(32, 2.0), (2,) * 32, torch.full((32,), 2.0)])
def test_a_value_is_a_number_a_list_an_array_or_a_tensor(value, model, recording):
    wanted = reference(model, recording, [Variant([Replace("1.mlp_out", torch.full((32,), 2.0))])])
    assert (
        gap(sweep(recording, [Variant([Replace("1.mlp_out", value)])], METRIC).values["d"], wanted)
        <= model.rounding
    )


def test_what_means_nothing_is_a_sentence(model, recording):
    edit = Zero("1.mlp_out")
    for wrong, words in (
        (
            lambda: sweep(recording, [5], METRIC),
            r"a int is no variant: give Variant\(\[edits\]\), an edit or a route",
        ),
        (lambda: sweep(recording, ["1.mlp_out"], METRIC), "a str is no variant"),
        (lambda: Variant([edit, "1.mlp_out"]), "a str among the edits of a variant is no edit"),
        (lambda: Variant([edit], route=[0, 1]), "a list is no route: make one with Route.skip"),
        (
            lambda: Add("1.mlp_out", "two"),
            "the value of Add is a str: give a number, a list of numbers, or a tensor",
        ),
        (lambda: Add("1.mlp_out", [[1.0], [1.0, 2.0]]), "the value of Add is a list"),
        (
            lambda: sweep(recording, [edit], loss),
            "loss makes a metric when it is called: write it with parentheses",
        ),
        (lambda: sweep(recording, [edit], [token_logit]), "makes a metric when it is called"),
        (lambda: sweep(recording, [edit], "loss"), "a str is no metric: give one such as loss"),
        (lambda: sweep(recording, [edit], []), "an empty list is no metric"),
        (
            lambda: sweep("5 6 7", [edit], METRIC),
            r"a str is no recording: make one with model\.record\(prompts\)",
        ),
        (lambda: sweep(5, [edit], METRIC), "a int is no recording"),
        (lambda: sweep([], [edit], METRIC), "a list is no recording"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


def test_a_model_and_its_tokenizer_are_opened_together_as_the_readme_shows():
    torch.manual_seed(0)
    hf, tokenizer = FAMILIES["gpt2"]().eval(), load("specimen:gpt2").tokenizer
    together = regraft.load((hf, tokenizer), pack=False)
    assert together.hf is hf
    assert together.tokenizer is tokenizer
