"""Gradients at sites beside PyTorch's own through the plain model, and beside differences."""

from __future__ import annotations

import pytest
import torch
import transformers

import naive
from regraft.model.load import load
from regraft.model.sites import SiteError
from regraft.sweeps.metrics import (
    kl_to_clean,
    log_probability,
    logit_difference,
    loss,
    probability,
    rank,
    stream_distance,
)
from regraft.sweeps.own_metrics import metric
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Replace, Variant
from small import ids, opened


def by_torch(model, recording, module, value):
    """Gradient of a value of the logits with respect to what a module returns, by a hook that keeps it."""
    kept = []

    def keep(module, args, out):
        kept.append(out[0] if isinstance(out, tuple) else out)

    handle = module.register_forward_hook(keep)
    logits = model.hf(**recording.inputs, use_cache=False).logits
    handle.remove()
    return torch.autograd.grad(value(logits), kept[0])[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3_5", "bloom"])
def test_gradients_are_those_of_the_plain_model(name):
    model = opened(name)
    recording = model.record([ids(6, 3), ids(4, 4)], attention_mask="all")
    last = recording.lengths_B - 1
    found = recording.gradients(logit_difference(7, 9), ["1.resid_post", "2.mlp_out", "embed", "logits"])
    modules = {
        "1.resid_post": model.blocks[1].module,
        "2.mlp_out": model.blocks[2].branch("mlp").last,
        "embed": model.parts.embedding,
        "logits": model.parts.head,
    }
    for site, module in modules.items():

        def value(logits):
            at = logits[torch.arange(2), last]
            return (at[:, 7] - at[:, 9]).sum()

        wanted = by_torch(model, recording, module, value)
        assert found[site].shape == recording[site].shape
        torch.testing.assert_close(found[site], wanted.reshape(found[site].shape), atol=1e-7, rtol=1e-4)
    assert not any(p.grad is not None for p in model.hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def scaled():
    """A model whose blocks add a constant multiple of what their branches return."""
    torch.manual_seed(1)
    config = transformers.GraniteConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, residual_multiplier=0.3,
    )  # fmt: skip
    return load(transformers.GraniteForCausalLM(config).eval(), pack=False)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "t5", "olmo2"])
@pytest.mark.parametrize("site", ["resid_mid", "z", "head.1", "neuron.3", "attn_out"])
def test_a_small_change_moves_a_metric_by_its_gradient(name, site):
    """Up and down by a hundredth in the live model with hooks: parts of sites, constant multiples, streams
    that no module returns."""
    model = scaled() if name == "granite" else opened(name)
    at = "decoder.1" if model.two_stacks else "1"
    texts = [ids(6, 3), ids(4, 4)]
    recording = model.record(texts, texts[::-1] if model.two_stacks else None, attention_mask="all")
    slope = recording.gradients(logit_difference(7, 9), f"{at}.{site}")[f"{at}.{site}"]
    value = recording[f"{at}.{site}"]
    assert slope.shape == value.shape
    flat = value.flatten(2)
    change = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)) * flat.std() * 1e-2
    rows, last = torch.arange(2), recording.lengths_B - 1
    ends = []
    for sign in (1, -1):
        logits = naive.logits(model, recording, Variant([Replace(f"{at}.{site}", flat + sign * change)]))
        ends.append(logits[rows, last, 7] - logits[rows, last, 9])
    moved = (slope.flatten(2) * change).sum((1, 2))
    assert torch.allclose(moved, (ends[0] - ends[1]) / 2, rtol=0.03, atol=2e-6)
    assert float(moved.abs().max()) > 1e-6


def test_every_smooth_metric_has_one_and_a_prompt_only_its_own():
    model = opened("llama")
    recording = model.record([ids(6, 3), ids(4, 4)], [[10, 11, 12], [13]], attention_mask="all")

    def entropy(logits):
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)

    metrics = [loss(), log_probability(7), probability(9, position=2), metric(entropy, "nats", scored=True)]
    for one in metrics:
        found = recording.gradients(one, "1.resid_post")["1.resid_post"]
        alone = model.record([ids(4, 4)], [[13]], attention_mask="all").gradients(one, "1.resid_post")
        near = 2 * model.rounding * float(alone["1.resid_post"].abs().max())
        torch.testing.assert_close(found[1, :5], alone["1.resid_post"][0], atol=near, rtol=0)
        step = 1e-2 * found / found.norm()
        ends = [
            sweep(recording, Replace("1.resid_post", recording["1.resid_post"] + sign * step), one).values
            for sign in (1, -1)
        ]
        (up,), (down,) = (next(iter(end.values())) for end in ends)
        assert float(up.sum() - down.sum()) / 2 == pytest.approx(float((found * step).sum()), rel=0.02)
    for flat in (kl_to_clean(), stream_distance()):
        found = recording.gradients(flat, "1.resid_post")["1.resid_post"]
        assert float(found.nan_to_num().abs().max()) < 1e-5, "the clean run is where they are least"


def test_what_has_no_gradient_is_refused():
    model = opened("llama")
    recording = model.record([ids(6, 3)], attention_mask="all")
    with pytest.raises(ValueError, match="the metric rank moves in steps, so it has no gradient"):
        recording.gradients(rank(7), "1.resid_post")
    with pytest.raises(SiteError, match="there are 4 blocks here"):
        recording.gradients(logit_difference(7, 9), "9.resid_post")
    frozen = opened("llama")
    frozen.hf.requires_grad_(False)
    same = frozen.record([ids(6, 3)], attention_mask="all").gradients(logit_difference(7, 9), ["1.z", "2.z"])
    wanted = recording.gradients(logit_difference(7, 9), ["1.z", "2.z"])
    assert all(torch.allclose(same[site], wanted[site], atol=1e-7) for site in same)
    assert float(same["1.z"].abs().max()) > 0
