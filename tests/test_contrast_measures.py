"""Contrastive trajectories beside their curves: the free check, the alternative's rank, both directions of
the divergence, prefixes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from regraft.core.registry import experiments
from regraft.experiments.observe import contrast_measures
from regraft.experiments.observe.contrast_measures import (
    before_the_pivot,
    completion_cka,
    contrast_quantities,
    sign_changes,
)
from regraft.experiments.observe.geometry import linear_cka
from regraft.experiments.observe.trajectories import RELATIONS
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from regraft.reporting.drawings import drawing_of
from test_trajectories import entry, groups

RUN = partial(run_experiment, experiments()["trajectories"])


@pytest.fixture(scope="module")
def model():
    return load("specimen:gpt2")


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    shared = {
        **entry(base=" very big", synonym=" very large", antonym=" very small indeed"),
        "kind": "shared prefix",
    }
    listed = [entry(), shared, entry(prompt="The farm was")]
    return RUN(model, file=groups(tmp_path_factory.mktemp("groups"), *listed))


def test_the_last_shared_position_is_one(data, model):
    """The free check of a causal model; a position further it is no more."""
    assert np.allclose(data.shared_cosine.values, 1.0, atol=model.rounding)
    assert not np.allclose(data.cosine.sel(place="pivot").values, 1.0, atol=1e-2)


def test_the_check_would_see_a_walk_that_is_one_off():
    draw = torch.Generator().manual_seed(0)
    here = torch.randn(2, 5, 4, generator=draw).double()
    here[1, :3] = here[0, :3]
    assert before_the_pivot(here, [(3, 3)]) == [1.0]
    assert before_the_pivot(here, [(4, 4)])[0] < 0.999
    assert np.isnan(before_the_pivot(here, [(0, 3)])[0]), "there is nothing before the first token"


@torch.no_grad()
def test_the_alternative_against_a_plain_forward(data, model):
    one = entry()
    prompt = model.encode(one["prompt"])
    out = model.hf(input_ids=torch.tensor([prompt]), output_hidden_states=True)
    for c, relation in enumerate(RELATIONS):
        token = model.continuation(one[relation])[0]
        last = out.logits[0, -1]
        assert int(data.alternative_rank[c, 0, -1]) == int((last > last[token]).sum())
        early = model.hf.lm_head(model.hf.transformer.ln_f(out.hidden_states[2][0, -1]))
        assert int(data.alternative_rank[c, 0, 2]) == int((early > early[token]).sum())


def test_the_two_directions_of_the_divergence(model, tmp_path):
    """What is other to base here is base to other where both change places."""
    ahead = RUN(model, file=groups(tmp_path, entry(), entry(prompt="The farm was")))
    swapped = entry(base=" large", synonym=" big")
    back = RUN(model, file=groups(tmp_path, swapped, {**swapped, "prompt": "The farm was"}))
    one, other = ahead.sel(relation="synonym"), back.sel(relation="synonym")
    assert np.allclose(one.kl, other.kl_reverse, rtol=1e-4, atol=1e-6)
    assert np.allclose(one.kl_reverse, other.kl, rtol=1e-4, atol=1e-6)
    assert not np.allclose(one.kl, one.kl_reverse, rtol=1e-2)


def test_synonyms_less_antonyms_by_prefix(data):
    kl, reverse = data.kl.sel(place="pivot").values, data.kl_reverse.sel(place="pivot").values
    synonym, antonym = RELATIONS.index("synonym"), RELATIONS.index("antonym")
    immediate = data.kind.values == "immediate"
    assert np.allclose(data.kl_contrast[0, 0], kl[synonym].mean(0) - kl[antonym].mean(0))
    assert np.allclose(data.kl_contrast[1, 1], (reverse[synonym] - reverse[antonym])[immediate].mean(0))
    assert np.allclose(data.kl_by_prefix[:, 1], reverse[:, ~immediate].mean(1))
    assert data.groups_by_prefix.values.tolist() == [2, 1]
    assert data.groups_by_prefix.values.sum() == data.sizes["group"], "a census: every group is of one kind"


def test_sign_changes_are_interpolated():
    assert sign_changes(np.array([-1.0, 1.0, 3.0, -1.0])) == pytest.approx([0.5, 2.75])
    assert sign_changes(np.array([1.0, 0.0, 1.0])) == [], "touching is no crossing"
    assert sign_changes(np.array([1.0, 0.0, -1.0])) == pytest.approx([1.0])
    assert sign_changes(np.array([np.nan, -2.0, 2.0])) == pytest.approx([1.5])
    assert sign_changes(np.zeros(4)) == []


def test_crossings_are_kept_in_order_and_absent_kinds_are_nan():
    kl = np.zeros((4, 2, 2, 4))
    kl[RELATIONS.index("synonym"), 0] = [[1.0, -1.0, 1.0, -1.0]] * 2
    found = contrast_quantities(kl, -kl, ["immediate"] * 2, RELATIONS)
    crossings = found["kl_crossings"][1]
    assert crossings[0, 0, :2] == pytest.approx([1.5, 2.5]), "what the embedding says does not count"
    assert np.isnan(crossings[0, 0, 2:]).all()
    assert np.isnan(found["kl_contrast"][1][:, 2]).all(), "there is no group with a shared prefix"


def test_cka_over_the_tokens_of_a_completion():
    draw = torch.Generator().manual_seed(0)
    base, other = (torch.randn(n, 6, generator=draw).double() for n in (5, 4))
    wanted = float(linear_cka(torch.stack([base[:4], other]))[0, 1])
    assert completion_cka(base, other) == pytest.approx(wanted)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=draw).double()).Q
    assert completion_cka(base, 3 * base @ rotation) == pytest.approx(1.0)
    cosine = float(torch.cosine_similarity(base[0], other[0], dim=0))
    assert completion_cka(base[:1], other) == pytest.approx(cosine)
    assert completion_cka(base[:2], other[:2]) == pytest.approx(1.0), "two centred points are one line"
    assert contrast_measures.FEWEST_TOKENS == 2


def test_folded_figures(data):
    folded = drawing_of(data).folded(data)
    assert [one.caption.partition(" ")[0] for one in folded].count("Every") == 2
    assert len(folded) == 9
    assert all(one.reading for one in folded)
