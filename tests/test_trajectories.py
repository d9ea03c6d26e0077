"""Contrastive trajectories: identical completions, symmetry, planted curves, bands, and every kind of
model."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

from families import FAMILIES
from regraft.core.registry import experiments
from regraft.data.contrasts import Contrast
from regraft.experiments.observe.trajectories import (
    PLACES,
    RELATIONS,
    bands,
    compare,
    crossover,
    onset,
    pivot,
)
from regraft.experiments.running import run_experiment
from regraft.model.load import load
from small import opened

RUN = partial(run_experiment, experiments()["trajectories"])


def groups(tmp_path, *entries):
    file = tmp_path / "groups.json"
    file.write_text(json.dumps(list(entries)))
    return str(file)


def entry(
    prompt="The ship was", base=" big", synonym=" large", antonym=" small", style=" great", unrelated=" green"
):
    return {
        **dict(prompt=prompt, base=base, synonym=synonym, antonym=antonym, style=style, unrelated=unrelated),
        "kind": "immediate",
    }


@pytest.fixture(scope="module")
def model():
    return load("specimen:gpt2")


def test_identical_completions_are_at_distance_zero_at_every_depth(model, tmp_path):
    same = entry(synonym=" big", base=" big")
    data = RUN(model, file=groups(tmp_path, same, entry(prompt="The farm was", synonym=" big")))
    for place in PLACES:
        one = data.sel(relation="synonym", place=place)
        assert (one.distance.values == 0).all()
        assert (one.cosine.values == 1).all()
        assert (one.kl.values == 0).all()
        other = data.sel(relation="antonym", place=place)
        assert (other.distance.values > 0).all()


def test_order_does_not_matter_where_it_must_not(model, tmp_path):
    ahead = RUN(model, file=groups(tmp_path, entry(), entry(prompt="The farm was")))
    swapped = entry(base=" large", synonym=" big")
    back = RUN(model, file=groups(tmp_path, swapped, {**swapped, "prompt": "The farm was"}))
    one, other = ahead.sel(relation="synonym"), back.sel(relation="synonym")
    for name in ("cosine", "distance", "cka"):
        assert np.allclose(one[name], other[name], atol=1e-6, equal_nan=True), name
    assert not np.allclose(one.kl, other.kl, rtol=1e-3)


@torch.no_grad()
def test_against_plain_forwards(model, tmp_path):
    """States by full forwards of each text alone: padding and the batch of five change nothing."""
    one = entry(base=" very big", synonym=" very large indeed", unrelated=" green")
    data = RUN(model, file=groups(tmp_path, one, entry(prompt="The farm was")))
    prompt = model.encode(one["prompt"])
    texts = {
        name: prompt + model.tokenizer(one[name], add_special_tokens=False)["input_ids"]
        for name in ("base", *RELATIONS)
    }
    states = {
        n: torch.stack(model.hf(torch.tensor([t]), output_hidden_states=True).hidden_states)[:, 0]
        for n, t in texts.items()
    }
    for relation in RELATIONS:
        at, _ = pivot(texts["base"], texts[relation])
        for depth in (0, 2, 3):
            a, b = states["base"][depth], states[relation][depth]
            cosine = torch.cosine_similarity(a[at], b[at], dim=0)
            found = data.sel(relation=relation, group=0, depth=depth)
            assert float(found.cosine.sel(place="pivot")) == pytest.approx(float(cosine), abs=1e-5)
            a, b = a[len(prompt) :].mean(0), b[len(prompt) :].mean(0)
            wanted = float((a - b).norm() / ((a.norm() + b.norm()) / 2))
            assert float(found.distance.sel(place="completion")) == pytest.approx(wanted, abs=1e-5)
    last = [model.hf(torch.tensor([texts[n]])).logits[0].log_softmax(-1) for n in ("base", "antonym")]
    at, _ = pivot(texts["base"], texts["antonym"])
    kl = torch.nn.functional.kl_div(last[1][at], last[0][at], log_target=True, reduction="sum")
    found = data.sel(relation="antonym", place="pivot", group=0)
    assert float(found.kl[-1]) == pytest.approx(float(kl), rel=1e-4)


def test_the_pivot_is_the_first_token_that_differs():
    assert pivot([1, 2, 3], [1, 2, 4]) == (2, 2)
    assert pivot([1, 2], [1, 2, 4]) == (1, 2)
    assert pivot([1, 2], [1, 2]) == (1, 1)
    assert compare(torch.ones(3), torch.ones(3), None)[:2] == (1.0, 0.0)


def test_crossover_and_onset_of_planted_curves():
    depth = np.arange(5.0)
    assert crossover(depth, np.full(5, 2.5)) == pytest.approx(2.5)
    assert np.isnan(crossover(depth, depth + 1))
    assert np.isnan(crossover(depth + 1, depth)), "always ahead: they never cross"
    twice = np.array([1.0, -1.0, 1.0, -1.0, 3.0])
    assert crossover(twice, np.zeros(5)) == pytest.approx(3.25), "the last crossing counts"
    synonyms = np.array([[1.0, 1.0, 1.0], [0.8, 0.8, 0.8]])
    limit = 0.9 - 2 * synonyms[:, 0].std(ddof=1)
    antonyms = np.array([[0.9, limit + 0.01, limit - 0.01]] * 2)
    assert onset(synonyms, antonyms) == 2
    assert np.isnan(onset(synonyms, np.ones((2, 3))))


def test_bands_cover_what_they_say():
    """Of 200 samples of 25 groups with a known mean, about 95 in 100 bands hold it."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, low, high = bands(generator.normal(3.0, 1.0, (25, 1)), generator)
        hits += int(low[0] <= 3.0 <= high[0])
    assert 178 <= hits <= 198
    _, low, high = bands(np.full((6, 2), 4.0), generator)
    assert (low == 4).all()
    assert (high == 4).all()


def test_the_groups_of_the_specimen(model):
    data = RUN(model)
    assert data.attrs["groups"] == 30
    assert RUN(model, kind="immediate").sizes["group"] == 15
    assert np.isfinite(data.cosine.values).all()
    assert (
        (data.cosine_low <= data.cosine_mean + 1e-12) & (data.cosine_mean <= data.cosine_high + 1e-12)
    ).all()
    assert ((data.cka >= 0) & (data.cka <= 1 + 1e-9)).all()
    assert (data.kl.values >= 0).all()


class Words:
    """A tokenizer of one token for each letter, with a start and an end token as encoders have them."""

    chat_template = None
    all_special_ids = (1, 2)

    def __init__(self, closes):
        self.closes = closes

    def __call__(self, text, add_special_tokens=True):
        ids = [5 + ord(c) % 80 for c in text]
        return {"input_ids": [1, *ids, 2] if self.closes and add_special_tokens else ids}

    def decode(self, ids):
        return "x" * len(ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_followed(name, tmp_path):
    torch.manual_seed(1)
    encoder = name in ("bert", "bert_headless", "roberta", "modernbert")
    model = load(FAMILIES[name]().eval(), Words(encoder), pack=False)
    data = RUN(
        model,
        file=groups(tmp_path, entry(), entry(prompt="It is", base=" quite big", synonym=" quite large")),
    )
    assert data.sizes["depth"] == len(model.main_blocks) + 1
    assert np.isfinite(data.cosine.values).all()
    assert np.isfinite(data.kl.values).all() == (model.parts.head is not None)
    assert (data.distance.sel(relation="antonym").values > 0).all()


def test_wrong_groups_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="holds no contrastive groups"):
        RUN(model, file=groups(tmp_path, {"prompt": "a"}))
    with pytest.raises(ValueError, match="1 contrastive groups of kind 'all' are too few"):
        RUN(model, file=groups(tmp_path, entry()))
    with pytest.raises(ValueError, match="has no tokenizer to write the contrastive groups with"):
        RUN(opened("llama"))
    for wrong, sentence in (
        ({"base": ""}, "group 1 of"),
        ({"prompt": 5}, "no text"),
        ({"kind": "odd"}, "is of kind 'odd'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            RUN(model, file=groups(tmp_path, entry(), {**entry(), **wrong}))
    with pytest.raises(ValueError, match=r"cannot be read \(No such file or directory\): write a JSON list"):
        RUN(model, file=str(tmp_path / "nowhere.json"))
    assert Contrast(**entry()).kind == "immediate"


class Pairs(Words):
    """A tokenizer of two letters a token: a prompt's last token may hold the completion's first letter."""

    def __call__(self, text, add_special_tokens=True):
        ids = [
            5 + (ord(text[i]) + 3 * sum(map(ord, text[i + 1 : i + 2]))) % 80 for i in range(0, len(text), 2)
        ]
        return {"input_ids": [1, *ids, 2] if self.closes and add_special_tokens else ids}


def test_an_encoder_whose_tokens_cross_the_end_of_the_prompt(tmp_path):
    torch.manual_seed(1)
    model = load(FAMILIES["bert"]().eval(), Pairs(True), pack=False)
    odd = entry(prompt="somet", base="hing", synonym="ime", antonym="imes", style="hings", unrelated="o be")
    data = RUN(model, file=groups(tmp_path, odd, entry()))
    assert np.isfinite(data.cosine.values).all()
    assert (data.distance.sel(relation="unrelated", place="pivot").values > 0).all()
