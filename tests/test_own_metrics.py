"""Metrics of one's own, and targets of several tokens, beside full forwards."""

from __future__ import annotations

import pytest
import torch

from regraft.model.load import load
from regraft.sweeps.metrics import log_probability, loss, probability
from regraft.sweeps.own_metrics import metric
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Scale, Variant
from small import opened, recorded, reference

VARIANTS = [Variant([Scale("1.mlp_out", 3.0)]), Variant([Scale("2.attn_out", -2.0, -1)])]


def entropy(logits):
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_metric_of_ones_own_is_measured_at_the_last_position(name):
    model = opened(name)
    recording = recorded(model, 8, 5)
    result = sweep(
        recording, VARIANTS, [metric(entropy, "nats"), metric(entropy, "nats", name="first", position=0)]
    )
    assert set(result.values) == {"entropy", "first"}
    assert result.units["entropy"] == "nats"
    assert torch.allclose(result.values["entropy"], reference(model, recording, VARIANTS, entropy), atol=1e-5)
    assert not torch.allclose(result.values["entropy"], result.values["first"], atol=1e-5)


def test_a_metric_of_ones_own_averages_over_scored_tokens():
    model = opened("llama")
    recording = model.record([[5, 6, 7], [8, 9]], [[10, 11, 12], [13]], attention_mask="all")
    own = metric(entropy, "nats", scored=True)
    result = sweep(recording, VARIANTS, [own, loss()])
    assert torch.equal(result.weights["entropy"], result.weights["loss"])
    with torch.no_grad():
        first = entropy(model.run(input_ids=torch.tensor([[5, 6, 7, 10, 11, 12]])).logits[0])[2:5].mean()
    assert float(result.clean["entropy"][0]) == pytest.approx(float(first), abs=1e-5)


def test_what_a_metric_returns_is_looked_at_before_the_sweep():
    model = opened("llama")
    blocks = []
    handle = model.blocks[1].module.register_forward_hook(lambda *given: blocks.append(1))
    recording = recorded(model, 8, 5)
    blocks.clear()

    def refused(function, match):
        with pytest.raises(ValueError, match=match):
            sweep(recording, VARIANTS, metric(function, "nats", name="own"))
        assert not blocks

    refused(lambda logits: logits.mean(), r"the metric own returned \(\) for logits of \(2, 96\)")
    refused(lambda logits: logits, r"it must return a number for each row, \(2,\)")
    refused(lambda logits: 1.0, "the metric own returned float for logits")
    refused(lambda logits: logits[:, 0] / 0, "the metric own returned a number that is not finite")
    handle.remove()
    with pytest.raises(ValueError, match="a float is no function of the logits"):
        metric(1.0, "nats")
    with pytest.raises(ValueError, match="read one position, or all that are scored: not both"):
        metric(entropy, "nats", position=1, scored=True)


def test_a_target_of_several_tokens_is_the_sum_along_the_completion():
    model = load("specimen:qwen3", pack=False)
    prompts, text = ["The river runs", "She went home and"], " unwillingly northwards"
    ids = model.continuation(text)
    assert len(ids) > 1
    recording = model.record(prompts, [text] * 2)
    result = sweep(recording, [Scale("3.mlp_out", 0.0)], [log_probability(text), probability(" the")])
    for row, prompt in enumerate(prompts):
        own = model.encode(prompt)
        for changed in (False, True):
            hook = (
                model.blocks[3]
                .branch("mlp")
                .last.register_forward_hook(lambda m, a, out, on=changed: out * 0 if on else out)
            )
            with torch.no_grad():
                logits = model.run(input_ids=torch.tensor([[*own, *ids]])).logits[0].log_softmax(-1)
            hook.remove()
            wanted = sum(float(logits[len(own) - 1 + i, token]) for i, token in enumerate(ids))
            found = (
                result.values["log_probability"][0, row] if changed else result.clean["log_probability"][row]
            )
            assert float(found) == pytest.approx(wanted, abs=1e-3)
    longer = model.record(prompts, [text + " and on"] * 2)
    again = sweep(longer, [], log_probability(text)).clean["log_probability"]
    assert torch.allclose(again, result.clean["log_probability"], atol=1e-4)
    told = "choose one that is one token, or record the prompts with this text"
    for completions in (None, [text, " unwillingly"]):
        given = model.record(prompts, completions)
        with pytest.raises(ValueError, match=told):
            sweep(given, [], log_probability(text))
