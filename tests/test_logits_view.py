"""Generation with a tree head: what a search reads of a row is exact, beside the whole distribution as
reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from regraft.modules.logits_view import LogitsView, needed
from regraft.modules.placement import placed
from regraft.modules.tree_head import tree_head
from regraft.modules.trees import by_id, huffman, widened
from small import opened

CONFIGS = {
    "greedy": dict(do_sample=False),
    "beams": dict(do_sample=False, num_beams=3),
    "top-k": dict(do_sample=True, top_k=5, temperature=0.7, top_p=0.9),
    "top-p": dict(do_sample=True, top_k=0, top_p=0.8),
    "penalty": dict(do_sample=False, repetition_penalty=1.5),
}


def case(levels=1):
    model = opened("llama")
    torch.manual_seed(3)
    head = tree_head(widened(by_id(model.table_rows), levels), model.width, 8)
    with torch.no_grad():
        head.rows.weight[:-1].normal_(std=2.0)
        head.adapter.down.weight.normal_(std=0.3)
    return model, LogitsView(head)


def generated(model, view, config, **how):
    asked = GenerationConfig(max_new_tokens=8, eos_token_id=None, pad_token_id=0, **config)
    torch.manual_seed(5)
    with placed(model.hf, model.parts.head, view), view.asked(asked, **how):
        return model.hf.generate(torch.tensor([[5, 9, 30], [7, 8, 20]]), generation_config=asked)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_generation_equals_that_from_whole_distributions(name, levels):
    model, view = case(levels)
    wanted = generated(model, view, CONFIGS[name], every=True)
    assert view.visited == 0
    found = generated(model, view, CONFIGS[name])
    assert torch.equal(found, wanted)
    searched = name in ("greedy", "beams", "top-k")
    assert (view.visited > 0) == searched
    assert view.mode == "full", "the view is given back as it was"


def test_only_what_is_needed_is_asked_for():
    def asked(**given):
        return needed(GenerationConfig(**given))

    assert asked(do_sample=False) == ("top", 1)
    assert asked(do_sample=False, num_beams=4, eos_token_id=2) == ("top", 8)
    assert asked(do_sample=False, num_beams=4, eos_token_id=[2, 3, 4]) == ("top", 16)
    assert asked(do_sample=True, top_k=50) == ("top", 50)
    assert asked(do_sample=True, top_k=0) == ("draw", 1)
    assert asked(do_sample=True) == ("full", 0), "what is open may be any number"
    assert asked() == ("full", 0)
    assert asked(do_sample=True, top_k=0, temperature=0.5) == ("full", 0)
    assert asked(do_sample=True, num_beams=2) == ("full", 0)
    assert asked(do_sample=False, no_repeat_ngram_size=2) == ("full", 0)
    assert asked(do_sample=False, num_beams=2, output_scores=True) == ("full", 0)


def test_the_rest_of_the_mass_keeps_a_softmax_exact():
    """Beams add log-softmaxes: with nothing for the rest (the neighbour that is wrong) the kept tokens' would
    be too high."""
    _, view = case()
    hidden = torch.randn(6, view.head.width)
    whole = view(hidden)
    view.mode, view.count = "top", 4
    found = view(hidden)
    best = whole.topk(4)
    torch.testing.assert_close(found.log_softmax(-1).gather(1, best.indices), best.values)
    assert torch.equal(found.topk(4).indices, best.indices)
    alone = torch.full_like(whole, -torch.inf).scatter(1, best.indices, best.values)
    assert float((alone.log_softmax(-1).gather(1, best.indices) - best.values).detach().max()) > 1e-2


def test_draws_of_the_view_follow_the_distribution():
    _, view = case()
    hidden = torch.randn(1, view.head.width)
    wanted = view(hidden)[0].exp().detach()
    view.mode = "draw"
    torch.manual_seed(0)
    rows = view(hidden.expand(20_000, -1))
    assert torch.equal((rows == 0).sum(1), torch.ones(20_000, dtype=torch.long))
    share = (rows == 0).double().mean(0)
    assert float((share - wanted).abs().max()) < 4 * math.sqrt(0.25 / 20_000)


def test_the_best_of_a_thousand_states_is_the_brute_force_argmax():
    rng = np.random.default_rng(0)
    head = tree_head(huffman(rng.pareto(1.0, 300) + 0.01), 16)
    torch.manual_seed(0)
    with torch.no_grad():
        head.rows.weight[:-1].normal_()
    states = torch.randn(1000, 16)
    whole = head.log_probabilities(states)
    found = [next(head.best_first(state)) for state in states]
    assert [token for token, _, _ in found] == whole.argmax(-1).tolist()
    assert np.mean([visited for _, _, visited in found]) < 0.5 * 299
