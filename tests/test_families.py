"""Every family opens, replays bit for bit, and sweeps as the naive reference does."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES, VOCAB
from regraft.model.load import load
from regraft.sweeps.metrics import logit_difference
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant
from variants import described, swept_and_wanted


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    torch.manual_seed(0)
    opened = load(FAMILIES[request.param]().eval(), pack=False)
    opened.family = request.param
    return opened


def prompt(length=9, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCAB, (length,), generator=generator).tolist()


def recorded(model, *lengths, seed=3):
    ids = [prompt(n, seed + i) for i, n in enumerate(lengths)]
    return model.record(
        ids, [prompt(n - 1, seed + 20 + i) for i, n in enumerate(lengths)] if model.two_stacks else None
    )


def test_replay_is_the_model(model):
    """One row makes the very calls that the model made; three rows are another batch, held to the comparison
    rule."""
    assert model.check.replay == 0.0
    assert model.check.projections == 0.0
    assert model.check.batch <= model.rounding * model.check.largest
    assert model.check.closure <= model.rounding


def test_padded_prompts_replay_too(model):
    from regraft.model.selfcheck import _official, _replay_differences

    recording = recorded(model, 9, 6)
    once, twice = _replay_differences(recording, _official(recording), (1, 2))
    assert once == 0.0
    assert twice <= model.rounding * model.check.largest


def test_sweeps_equal_the_naive_reference(model):
    recording, variants, metric, result, wanted = swept_and_wanted(model)
    gaps = (result.values[metric.name] - wanted).abs().amax(1)
    apart = {described(v): float(g) for v, g in zip(variants, gaps, strict=True) if not g <= 1e-5}
    assert not apart
    assert result.work.executed == result.work.planned
    assert result.work.planned + result.work.preparation <= result.work.naive
    assert result.deviation <= 1e-5
    exact = sweep(recording, variants[::7], metric, exact=True)
    assert torch.allclose(exact.values[metric.name], wanted[::7], atol=1e-5, rtol=1e-5)


def test_logits_of_a_headless_model_are_refused():
    bert = load(FAMILIES["bert_headless"]().eval(), pack=False)
    with pytest.raises(ValueError, match="no output matrix, so there are no logits to measure"):
        sweep(recorded(bert, 7), [Variant()], logit_difference(7, 9))
